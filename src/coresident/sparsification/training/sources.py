"""Models to train: made by a function of a Python file, or saved by `torch.export`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from coresident.errors import InputError, ModelError, ResourceError, UnsupportedModel


def load_model(source: str, weights: Path | None = None) -> nn.Module:
    """The model that a source names, on the CPU.

    Args:
        source: `FILE.py:FUNCTION`, where the function takes nothing and returns an `nn.Module`; or a file
            `.pt2` that `torch.export.save` wrote, whose batch normalisations stay as they were exported.
        weights: a file of a state dict to load into it.

    Raises:
        InputError: no such file or function, or weights for another model.
        UnsupportedModel: a form that can't be trained: ONNX, TorchScript.
        ModelError: the function raised, or the file can't be read.
    """
    path, colon, function = source.rpartition(":")
    if colon and path.endswith(".py"):
        model = _made(Path(path), function)
    else:
        model = _saved(Path(source))
    if weights is not None:
        _fill(model, weights)
    return model


def _made(path: Path, function: str) -> nn.Module:
    if not path.is_file():
        raise InputError("no such file", file=path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
        made = getattr(module, function)()
    except AttributeError as error:
        if not hasattr(module, function):
            raise InputError(f"there is no function {function!r}", file=path) from None
        raise ModelError(f"{function} failed: {error}", file=path) from error
    except Exception as error:
        raise ModelError(f"{function} failed: {type(error).__name__}: {error}", file=path) from error
    if not isinstance(made, nn.Module):
        raise InputError(f"{function} returned {type(made).__name__}, not a torch.nn.Module", file=path)
    return made.cpu()


def _saved(path: Path) -> nn.Module:
    wanted = "give FILE.py:FUNCTION that returns the torch.nn.Module, or a .pt2 of torch.export.save"
    if path.suffix == ".onnx":
        raise UnsupportedModel(f"an ONNX model can't be trained; {wanted}", file=path)
    if not path.is_file():
        raise InputError(f"no such file; {wanted}", file=path)
    if path.suffix != ".pt2":
        raise UnsupportedModel(f"TorchScript and pickled models are not read; {wanted}", file=path)
    try:
        module: Any = torch.export.load(path).module()
    except Exception as error:
        raise ModelError(f"not read by torch.export.load: {error}", file=path) from error

    def stays(mode: bool = True) -> Any:
        return module

    # What is exported is either of both modes for good, and its own methods raise.
    module.train = module.eval = stays
    made: nn.Module = module
    return made


def _fill(model: nn.Module, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ResourceError(f"can't be read: {error.strerror or error}", file=path) from error
    except Exception as error:
        raise InputError(f"not a state dict: {error}", file=path) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"the weights are of another model: {error}", file=path) from None
