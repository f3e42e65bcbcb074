"""A PyTorch module as an ONNX model of floats, for `sparsify` to take."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from coresident.errors import InputError

OPSET = 17


def exported(module: nn.Module, shapes: Mapping[str, Sequence[int]]) -> bytes:
    """The ONNX file of a module in inference; its mode is as before afterwards.

    Args:
        module: takes float32 tensors.
        shapes: of its arguments, in their order, by the names that the inputs get; the first dimension, a
            batch of 1, is left free.

    Raises:
        InputError: it can't be exported for these shapes.
    """
    was_training = {each: each.training for each in module.modules()}
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    examples = tuple(torch.zeros(tuple(shape), device=device) for shape in shapes.values())
    stream = io.BytesIO()
    module.eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of deprecation, and of every size that the trace fixes
            count = 1 if isinstance(module(*examples), torch.Tensor) else len(module(*examples))
            outputs = [f"output{i}" if count > 1 else "output" for i in range(count)]
            torch.onnx.export(
                module,
                examples,
                stream,
                input_names=list(shapes),
                output_names=outputs,
                dynamic_axes={name: {0: "N"} for name in (*shapes, *outputs)},
                opset_version=OPSET,
                dynamo=False,
            )
    except (RuntimeError, TypeError, ValueError, torch.onnx.OnnxExporterError) as error:
        sizes = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise InputError(f"the module can't be exported with {sizes}: {str(error)[:300]}") from error
    finally:
        for each, mode in was_training.items():
            each.training = mode
    return stream.getvalue()
