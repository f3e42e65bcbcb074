"""ONNX's messages and schemas, without the rest of the package.

Importing all of `onnx` takes about as long as importing numpy, and most of that goes into helpers that a
reader of models does not use; so its two modules that hold the messages and the schemas are loaded alone,
under their own names: the package finds them there when somebody imports it later. Where it is imported
already, its own are taken.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from typing import TYPE_CHECKING, Any


def _part(name: str) -> Any:
    """A module of the package, loaded without its parent where that can be."""
    whole = f"onnx.{name}"
    if "onnx" in sys.modules or whole in sys.modules:
        return importlib.import_module(whole)
    package = find_spec("onnx")
    spec = PathFinder.find_spec(whole, package.submodule_search_locations) if package else None
    if spec is None or spec.loader is None:
        return importlib.import_module(whole)
    module = module_from_spec(spec)
    sys.modules[whole] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[whole]
        raise
    return module


if TYPE_CHECKING:
    from onnx import (
        AttributeProto,
        FunctionProto,
        GraphProto,
        ModelProto,
        NodeProto,
        TensorProto,
        TensorShapeProto,
        ValueInfoProto,
    )
    from onnx.defs import SchemaError, get_schema
else:
    _messages = _part("onnx_ml_pb2")
    AttributeProto = _messages.AttributeProto
    FunctionProto = _messages.FunctionProto
    GraphProto = _messages.GraphProto
    ModelProto = _messages.ModelProto
    NodeProto = _messages.NodeProto
    TensorProto = _messages.TensorProto
    TensorShapeProto = _messages.TensorShapeProto
    ValueInfoProto = _messages.ValueInfoProto
    _schemas = _part("onnx_cpp2py_export").defs
    SchemaError = _schemas.SchemaError
    get_schema = _schemas.get_schema

__all__ = [
    "AttributeProto",
    "FunctionProto",
    "GraphProto",
    "ModelProto",
    "NodeProto",
    "SchemaError",
    "TensorProto",
    "TensorShapeProto",
    "ValueInfoProto",
    "get_schema",
]
