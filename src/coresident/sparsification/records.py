"""Frozen dataclasses to JSON and back, checked against their types."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from coresident.errors import InputError

T = TypeVar("T")


def encoded(value: Any) -> Any:
    """A value as JSON values: dataclasses become objects, numbers that JSON does not have null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: encoded(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encoded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encoded(item) for item in value]
    if hasattr(value, "tolist"):  # numbers and arrays of numpy
        return encoded(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def decoded(kind: type[T], record: object) -> T:
    """What `encoded` made of a dataclass of such a type; null in the place of a number becomes NaN.

    Raises:
        InputError: the record is none of it.
    """
    return typing.cast(T, _value(kind, record, kind.__name__))


def _value(kind: Any, record: object, place: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return record
    if origin in (typing.Union, types.UnionType):
        if record is None and type(None) in arguments:
            return None
        (kind,) = (one for one in arguments if one is not type(None))
        return _value(kind, record, place)
    if origin is typing.Literal:
        if record in arguments:
            return record
    elif dataclasses.is_dataclass(kind):
        return _fields(kind, record, place)
    elif origin is tuple and isinstance(record, list):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_value(arguments[0], item, f"{place}[{i}]") for i, item in enumerate(record))
        if len(arguments) == len(record):
            pairs = zip(arguments, record)
            return tuple(_value(one, item, f"{place}[{i}]") for i, (one, item) in enumerate(pairs))
    elif origin is Mapping and isinstance(record, dict):
        return {key: _value(arguments[1], item, f"{place}.{key}") for key, item in record.items()}
    elif kind is float and (record is None or (isinstance(record, int | float) and record is not True)):
        return math.nan if record is None else float(record)
    elif kind in (str, bool, int) and type(record) is kind:
        return record
    raise InputError(f"{place} can't be {record!r:.80}")


def _fields(kind: Any, record: object, place: str) -> Any:
    if not isinstance(record, dict):
        raise InputError(f"{place} can't be {record!r:.80}")
    kinds = typing.get_type_hints(kind)
    fields = {one.name: one for one in dataclasses.fields(kind)}
    needed = {
        name
        for name, one in fields.items()
        if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    }
    if missing := sorted(needed - set(record)):
        raise InputError(f"{place} has no {missing[0]!r}")
    if unknown := sorted(set(record) - set(fields)):
        raise InputError(f"{place} has an unknown {unknown[0]!r}")
    return kind(**{name: _value(kinds[name], item, f"{place}.{name}") for name, item in record.items()})
