"""A report as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coresident.sparsification.report import LayerReport, Report

_MOST_REJECTED = 20
_FIGURES: Mapping[str, tuple[str, str]] = {
    "top1_agreement": ("same best class", ".2%"),
    "pixel_agreement": ("same class of a pixel", ".2%"),
    "dice": ("Dice", ".4f"),
    "matched_boxes": ("boxes that both find", ".2%"),
    "kl": ("KL divergence", ".3g"),
    "relative_squared_error": ("relative squared error", ".3g"),
}
"""Of an agreement: what to call it, and its format."""
_TWICE = frozenset(("task", "samples", "share", "loss"))
"""What other lines say, or figures under other names."""


def markdown(report: Report, pictures: Sequence[str] = (), remark: str = "") -> str:
    """The whole report.

    Args:
        pictures: names of files to show.
        remark: said in their place.
    """
    parts = [f"# {_text(report.model)}", *summary(report, _text), "", *_whole(report), *_quality(report)]
    parts += _layers(report)
    parts += [line for name in pictures for line in (f"![{name}]({name})", "")]
    parts += [remark, ""] if remark else []
    parts += _circumstances(report)
    return "\n".join(parts).rstrip() + "\n"


def summary(report: Report, name_of: Callable[[str], str]) -> list[str]:
    """What came of it, in a few sentences, one each line.

    Args:
        name_of: how to write the name of a layer.
    """
    latency = report.latency
    lines = [
        f"{latency.speedup:.2f} times as fast as the dense float32 network: {_ms(latency.dense_float)} ms "
        f"became {_ms(latency.result)} ms; {report.sparsity:.1%} of the weights are zero."
    ]
    target = report.target
    how = {"target_speedup": "speed-up of", "latency_ms": "latency in ms of", "sparsity": "sparsity of"}
    asked = f"{how.get(target.kind, 'drop of at most')} {target.asked:.4g}"
    lines.append(f"Asked: {asked}; reached: {target.reached:.4g}.")
    if not target.feasible:
        names = ", ".join(f"{name_of(name)} ({share:.0%})" for name, share in target.holding)
        held = f" Layers that hold it, with their share of the least time: {names}." if names else ""
        lines.append(f"That is out of reach on this CPU; the result is as far as it goes.{held}")
    return lines


def agreement(report: Report) -> list[tuple[str, str]]:
    """How far the network agrees with the original, as (what, how much)."""
    found = []
    for name, value in _flat(report.agreement):
        if name in _FIGURES:
            text, form = _FIGURES[name]
            found.append((text, f"{value:{form}}"))
        elif name not in _TWICE:
            found.append((_text(name), _value(value)))
    return found


def _whole(report: Report) -> list[str]:
    latency, sizes = report.latency, report.sizes
    rows = [
        ("dense float32", latency.dense_float),
        ("dense int8", latency.dense_int8),
        ("**result**", latency.result),
        ("ONNX Runtime, original", latency.onnxruntime_original),
        ("ONNX Runtime, result", latency.onnxruntime_result),
    ]
    shapes = ", ".join(f"{_text(name)} {'x'.join(map(str, shape))}" for name, shape in report.shapes.items())
    threads = f"{report.machine.threads} thread{'s' if report.machine.threads > 1 else ''}"
    where = f"One call on {_text(report.machine.cpu)}, {threads}" + (f", {shapes}" if shapes else "")
    measured = [
        [name, _ms(seconds), f"{latency.dense_float / seconds:.2f}x"] for name, seconds in rows if seconds
    ]
    files = [["ONNX before", _mb(sizes.onnx_before)], ["ONNX after", _mb(sizes.onnx_after)]]
    files += [["compiled", _mb(sizes.artifact)]] if sizes.artifact is not None else []
    return [
        "## Speed and size",
        f"{where}:",
        "",
        *_table(["", "ms", "faster"], measured),
        "",
        *_table(["file", "MB"], files),
        "",
    ]


def _quality(report: Report) -> list[str]:
    lines = ["## Quality"]
    held = report.held_back_samples
    if report.agreement:
        what = _text(report.agreement.get("task", "network"))
        lines += [f"Agreement with the original {what} on {held} samples held back:", ""]
        lines += [*_table(["", ""], agreement(report)), ""]
    if report.accuracy is not None:
        one = report.accuracy
        row = [_text(one.metric), _value(one.before), _value(one.after), f"{one.after - one.before:+.4g}"]
        lines += ["Against the labels:", "", *_table(["", "before", "after", "change"], [row]), ""]
    else:
        lines += ["Accuracy is not known: there were no labels.", ""]
    return lines


def _layers(report: Report) -> list[str]:
    heads = [
        "layer",
        "operator",
        "weights",
        "zeros",
        "pattern",
        "type",
        "ms before",
        "ms after",
        "error",
        "kept",
    ]
    return ["## Layers", "", *_table(heads, map(_row, report.layers)), ""]


def _row(layer: LayerReport) -> list[str]:
    return [
        _text(layer.name),
        _text(layer.op),
        "x".join(map(str, layer.shape)),
        f"{layer.sparsity:.1%}",
        layer.pattern,
        layer.dtype,
        _ms(layer.seconds_before),
        _ms(layer.seconds_after),
        "" if math.isnan(layer.error) else f"{layer.error:.2e}",
        _text(layer.kept),
    ]


def _circumstances(report: Report) -> list[str]:
    lines = ["## How it was made"]
    lines += [f"- {_text(note)}" for note in report.notes]
    lines.append(
        f"- {report.calibration_samples} samples to calibrate with, {report.held_back_samples} held back, "
        f"seed {report.seed}, {report.seconds:.0f} s."
    )
    settings = ", ".join(f"{_text(name)} {_value(value)}" for name, value in _flat(report.settings))
    lines += [f"- Settings: {settings}."] if settings else []
    versions = ", ".join(f"{_text(name)} {_text(one)}" for name, one in report.machine.versions.items())
    lines.append(f"- {versions}.")
    if report.rejected:
        lines.append(f"- {len(report.rejected)} samples could not be read:")
        lines += [f"  - {_text(name)}: {_text(why)}" for name, why in report.rejected[:_MOST_REJECTED]]
        if (rest := len(report.rejected) - _MOST_REJECTED) > 0:
            lines.append(f"  - and {rest} more, in report.json")
    return lines


def _flat(record: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    """Objects inside objects as names with dots."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _text(value: object) -> str:
    """Names come from models and file systems: nothing in them is Markdown."""
    line = " ".join(str(value).split())
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>|#$" else sign for sign in line)


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return " ".join(map(_value, value)) or "none"
    return "none" if value is None else _text(value)


def _ms(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{seconds * 1e3:.4g}"


def _mb(size: int) -> str:
    return f"{size / 1e6:.3g}"
