"""Recipes in YAML: this project's own names, and those of SparseML.

    epochs: 10
    variables: {target: 0.9}
    modifiers:
      - prune: {sparsity: eval(target), start: 0, end: 5, pattern: 4block}
      - quantise: {start: 7.5, weight_bits: 8}
      - distil: {share: 0.7, temperature: 2}
      - learning_rate: {first: 0.05, last: 0.0005, curve: cosine}

or, as SparseML wrote them,

    num_epochs: 10
    pruning_modifiers:
      - !GMPruningModifier {params: __ALL_PRUNABLE__, init_sparsity: 0.05, final_sparsity: 0.9,
                            start_epoch: 0.0, end_epoch: 5.0, update_frequency: 0.5, mask_type: [1, 4]}
      - !EpochRangeModifier {start_epoch: 0.0, end_epoch: eval(num_epochs)}
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coresident.errors import InputError, ResourceError
from coresident.sparsification.training.arithmetic import compute
from coresident.sparsification.training.recipe import (
    Alternate,
    Constant,
    Distil,
    LearningRate,
    Modifier,
    Prune,
    Quantise,
    Recipe,
    WeightDecay,
)

_OWN: dict[str, type[Any]] = {
    "prune": Prune,
    "alternate": Alternate,
    "constant": Constant,
    "quantise": Quantise,
    "quantize": Quantise,
    "distil": Distil,
    "distill": Distil,
    "learning_rate": LearningRate,
    "weight_decay": WeightDecay,
}
_LISTS = ("layers", "skip", "groups")
_MOST = 1 << 20
"""Characters of a recipe at most."""
_EXPRESSION = re.compile(r"^eval\((.*)\)$", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class _Tagged:
    """A `!Name {field: value}` of the file."""

    name: str
    fields: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class _EpochRange:
    """How long training lasts."""

    end: float


def load(source: str | os.PathLike[str]) -> Recipe:
    """Read a recipe from a file (YAML, or Markdown that begins with YAML), or from a text of several lines.

    Raises:
        InputError: it is no recipe; the message names the modifier and field, and what is accepted.
        ResourceError: PyYAML is not installed.
    """
    if isinstance(source, str) and "\n" in source:
        return parse(source)
    path = Path(source)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"can't read the recipe: {error}", file=path) from None
    try:
        return parse(text)
    except InputError as error:
        raise error.at(file=path) from None


def parse(text: str) -> Recipe:
    """Read a recipe from its text; raises as `load` does."""
    if len(text) > _MOST:
        raise InputError(f"a recipe of {len(text)} characters; {_MOST} are the most")
    content = _yaml(_front_matter(text))
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError("a recipe is a mapping, with `modifiers` and perhaps `epochs` and variables")
    lists = {key: value for key, value in content.items() if key.endswith("modifiers")}
    if not lists:
        raise InputError("a recipe without `modifiers`")
    variables = _variables({key: value for key, value in content.items() if key not in lists})
    found: list[Modifier] = []
    ends: list[float] = []
    for key, items in lists.items():
        if not isinstance(items, list):
            raise InputError(f"{key!r} is not a list")
        for item in items:
            modifier = _modifier(item, variables)
            if isinstance(modifier, _EpochRange):
                ends.append(modifier.end)
            else:
                found.append(modifier)
    epochs = variables.get("epochs", max(ends) if ends else variables.get("num_epochs"))
    if epochs is None:
        raise InputError("a recipe needs `epochs: N`, or an !EpochRangeModifier")
    return Recipe(float(epochs), tuple(found), variables)


def _front_matter(text: str) -> str:
    parts = re.split(r"^---\s*$", text, maxsplit=2, flags=re.MULTILINE)
    return parts[1] if len(parts) == 3 and not parts[0].strip() else text


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError:
        raise ResourceError("recipes need PyYAML: python -m pip install 'coresident[train]'") from None

    class Loader(yaml.SafeLoader):
        pass

    def tagged(loader: Any, suffix: str, node: Any) -> _Tagged:
        if not isinstance(node, yaml.MappingNode):
            raise InputError(f"!{suffix} needs its fields as a mapping")
        return _Tagged(suffix, loader.construct_mapping(node, deep=True))

    Loader.add_multi_constructor("!", tagged)
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"not YAML: {' '.join(str(error).split())}") from None


def _variables(content: Mapping[str, Any]) -> dict[str, float]:
    raw = dict(content)
    nested = raw.pop("variables", {})
    if not isinstance(nested, dict):
        raise InputError("`variables` is not a mapping")
    raw |= nested
    values = {key: value for key, value in raw.items() if _number(value)}
    waiting = {key: match[1] for key, value in raw.items() if (match := _expression(value))}
    while waiting:
        ready = [key for key, text in waiting.items() if not _names(text) & waiting.keys()]
        if not ready:
            raise InputError(f"variables that need one another: {', '.join(sorted(waiting))}")
        values |= {key: compute(waiting.pop(key), values) for key in ready}
    return values


def _names(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w*", text))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _expression(value: object) -> re.Match[str] | None:
    return _EXPRESSION.match(value.strip()) if isinstance(value, str) else None


def _computed(value: Any, variables: Mapping[str, float]) -> Any:
    """The value with its expressions computed."""
    if isinstance(value, list):
        return [_computed(item, variables) for item in value]
    if isinstance(value, dict):
        return {_computed(key, variables): _computed(item, variables) for key, item in value.items()}
    match = _expression(value)
    return compute(match[1], variables) if match else value


def _modifier(item: Any, variables: Mapping[str, float]) -> Modifier | _EpochRange:
    if isinstance(item, _Tagged):
        fields = {key: _computed(value, variables) for key, value in item.fields.items()}
        return _from_sparseml(item.name, fields)
    if not isinstance(item, dict) or len(item) != 1:
        raise InputError(f"a modifier is one name with its fields; accepted names: {', '.join(_OWN)}")
    ((name, fields),) = item.items()
    if name not in _OWN:
        raise InputError(f"no modifier is called {name!r}; accepted: {', '.join(_OWN)}")
    if not isinstance(fields, dict):
        raise InputError(f"{name}: its fields are a mapping")
    return _made(name, _OWN[name], {key: _computed(value, variables) for key, value in fields.items()})


def _made(name: str, kind: type[Any], fields: dict[str, Any]) -> Modifier:
    accepted = {field.name for field in dataclasses.fields(kind)}
    required = {
        field.name
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    for key in fields:
        if key not in accepted:
            raise InputError(f"{name} has no field {key!r}; accepted: {', '.join(sorted(accepted))}")
    if missing := required - fields.keys():
        raise InputError(f"{name} needs {', '.join(sorted(missing))}")
    for key in _LISTS:
        if key in fields:
            value = fields[key]
            fields[key] = tuple(value) if isinstance(value, list) else (value,)
            if not all(isinstance(entry, int if key == "groups" else str) for entry in fields[key]):
                raise InputError(f"{name}: {key} is {value!r}; names are accepted, or a list of them")
    made: Modifier = kind(**fields)
    return made


Fields = dict[str, Any]


def _from_sparseml(name: str, fields: Fields) -> Modifier | _EpochRange:
    if name not in _SPARSEML:
        own = ", ".join(_OWN)
        raise InputError(f"no modifier !{name} is known; accepted: {', '.join(_SPARSEML)}; or {own}")
    build, accepted = _SPARSEML[name]
    for key in fields:
        if key not in accepted:
            raise InputError(f"!{name} has no field {key!r}; accepted: {', '.join(accepted)}")
    try:
        made: Modifier | _EpochRange = build(fields)
    except KeyError as error:
        raise InputError(f"!{name} needs {error.args[0]}") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"!{name}: {error}") from None
    return made


def _names_of(fields: Fields, key: str, default: str) -> tuple[str, ...]:
    value = fields.get(key, default)
    names = tuple(value) if isinstance(value, list) else (value,)
    if not all(isinstance(entry, str) for entry in names):
        raise InputError(f"{key} is {value!r}; names are accepted, or a list of them")
    return names


def _pattern(fields: Fields) -> Any:
    mask = fields.get("mask_type", "unstructured")
    if mask == "unstructured":
        return "unstructured"
    if mask in ("block4", "block", [1, 4], "4block"):
        return "4block"
    raise InputError(f"mask_type is {mask!r}; accepted: unstructured, block4, [1, 4]")


def _end(fields: Fields, default: float | None = None) -> Any:
    value = fields.get("end_epoch", -1.0)
    return default if isinstance(value, int | float) and value < 0 else value


def _gradual(fields: Fields) -> Prune:
    final = fields["final_sparsity"]
    names = _names_of(fields, "params", "__ALL_PRUNABLE__")
    if isinstance(final, dict):
        final = {
            pattern: share
            for share, patterns in final.items()
            for pattern in (patterns if isinstance(patterns, list) else [patterns])
        }
    curve = fields.get("inter_func", "cubic")
    if curve not in ("cubic", "linear"):
        raise InputError(f"inter_func is {curve!r}; accepted: cubic, linear")
    every = fields.get("update_frequency", 0.1)
    start = max(fields["start_epoch"], 0.0)
    return Prune(
        final,
        start,
        _end(fields, start),
        fields.get("init_sparsity", 0.05),
        every if every > 0 else 0.1,
        _pattern(fields),
        names,
        together=bool(fields.get("global_sparsity", False)),
        curve=curve,
    )


def _global(fields: Fields) -> Prune:
    return _gradual({"global_sparsity": True} | fields)


def _alternate(fields: Fields) -> Alternate:
    return Alternate(
        fields["compression_sparsity"],
        max(fields["start_epoch"], 0.0),
        fields["end_epoch"],
        fields["update_frequency"],
        _pattern(fields),
        _names_of(fields, "params", "__ALL_PRUNABLE__"),
        together=bool(fields.get("global_sparsity", True)),
    )


def _constant(fields: Fields) -> Constant:
    return Constant(max(fields.get("start_epoch", 0.0), 0.0), _names_of(fields, "params", "__ALL__"))


def _quantise(fields: Fields) -> Quantise:
    ranges = fields.get("disable_quantization_observer_epoch")
    norms = fields.get("freeze_bn_stats_epoch")
    ignored = fields.get("ignore", [])
    skip = _names_of({"ignore": ignored}, "ignore", "") if ignored else ()
    bits = fields.get("weight_bits", 8)
    return Quantise(max(fields.get("start_epoch", 0.0), 0.0), ranges, norms, bits, skip=skip)


def _distil(fields: Fields) -> Distil:
    return Distil(
        fields.get("hardness", 0.5),
        fields.get("temperature", 2.0),
        start=max(fields.get("start_epoch", 0.0), 0.0),
        end=_end(fields),
    )


def _groups(fields: Fields) -> tuple[int, ...]:
    value = fields.get("param_groups") or []
    if not isinstance(value, list) or not all(isinstance(entry, int) for entry in value):
        raise InputError(f"param_groups is {value!r}; a list of numbers is accepted")
    return tuple(value)


def _rate(fields: Fields) -> LearningRate:
    start = max(fields.get("start_epoch", 0.0), 0.0)
    return LearningRate(fields["learning_rate"], start=start, groups=_groups(fields))


def _rate_function(fields: Fields) -> LearningRate:
    curve = fields["lr_func"]
    if curve not in ("linear", "cosine"):
        raise InputError(f"lr_func is {curve!r}; accepted: linear, cosine")
    return LearningRate(
        fields["init_lr"],
        fields["final_lr"],
        max(fields.get("start_epoch", 0.0), 0.0),
        _end(fields),
        curve,
        _groups(fields),
    )


def _decay(fields: Fields) -> WeightDecay:
    return WeightDecay(fields["weight_decay"], max(fields.get("start_epoch", 0.0), 0.0))


def _epochs(fields: Fields) -> _EpochRange:
    return _EpochRange(fields["end_epoch"])


_GRADUAL = (
    *("params", "init_sparsity", "final_sparsity", "start_epoch", "end_epoch", "update_frequency"),
    *("inter_func", "mask_type", "global_sparsity", "leave_enabled", "log_types"),
)
_SPARSEML: dict[str, tuple[Callable[[Fields], Modifier | _EpochRange], tuple[str, ...]]] = {
    "GMPruningModifier": (_gradual, _GRADUAL),
    "MagnitudePruningModifier": (_gradual, _GRADUAL),
    "GlobalMagnitudePruningModifier": (_global, _GRADUAL),
    "ACDCPruningModifier": (
        _alternate,
        (
            *("params", "compression_sparsity", "start_epoch", "end_epoch", "update_frequency"),
            *("mask_type", "global_sparsity", "leave_enabled", "momentum_buffer_reset"),
        ),
    ),
    "ConstantPruningModifier": (_constant, ("params", "start_epoch", "end_epoch", "update_frequency")),
    "QuantizationModifier": (
        _quantise,
        (
            *("start_epoch", "end_epoch", "disable_quantization_observer_epoch", "freeze_bn_stats_epoch"),
            *("ignore", "weight_bits"),
        ),
    ),
    "DistillationModifier": (
        _distil,
        ("start_epoch", "end_epoch", "hardness", "temperature", "update_frequency"),
    ),
    "SetLearningRateModifier": (_rate, ("learning_rate", "start_epoch", "end_epoch", "param_groups")),
    "LearningRateFunctionModifier": (
        _rate_function,
        ("lr_func", "init_lr", "final_lr", "start_epoch", "end_epoch", "update_frequency", "param_groups"),
    ),
    "SetWeightDecayModifier": (_decay, ("weight_decay", "start_epoch", "end_epoch")),
    "EpochRangeModifier": (_epochs, ("start_epoch", "end_epoch")),
}
"""What SparseML calls a modifier -> how it is made here, and the fields that are understood."""
