"""Write the benchmark's models as ONNX: `python bench/models.py FOLDER [FAMILY ...]`. Needs PyTorch, and ONNX
Runtime to quantise.

For each family the dense network, and pruned ones in which 80, 90 and 95 % of the weights are zero, anywhere
("unstructured"): of every convolution and matrix but the first, the depthwise and those of under 8 outputs.
Weights are random, from a fixed seed; what is left after pruning is scaled so that activations keep their
variance. Of 2-D families also the dense network, one with 85 % of its blocks of four neighbouring input
channels zero and one with 90 % of its weights zero, quantised to int8 (QDQ, weights per channel), and the
dense one with weights of 7 bits (`_q7`). About 1.2 GB in all.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from networks import MobileNetV2, ResNet50, UNet
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

SPARSITIES = (0.8, 0.9, 0.95)
BLOCK, BLOCK_SPARSITY = 4, 0.85
QUANTISED_SPARSITY = 0.9
PICTURES = 4
"""That quantisation is calibrated with."""
OPSET = 13
SEED = 0
LEAST_OUTPUTS = 8
"""Layers of fewer outputs are not pruned."""


@dataclass(frozen=True)
class Family:
    """A network and the input that it is measured on."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


FAMILIES = {
    "rn50": Family(ResNet50, (1, 3, 224, 224)),
    "mbv2": Family(MobileNetV2, (1, 3, 224, 224)),
    "unet": Family(lambda: UNet(width=32, depth=4, dimensions=2), (1, 1, 512, 512)),
    "unet3d": Family(lambda: UNet(width=16, depth=3, dimensions=3), (1, 1, 64, 64, 64)),
}


@torch.no_grad()
def prune(network: nn.Module, sparsity: float, block: int = 1) -> None:
    """Set a share of the weights to zero, at random; `block` neighbouring input channels together."""
    generator = torch.Generator().manual_seed(SEED)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d | nn.Linear)]
    for layer in layers[1:]:
        if layer.weight.shape[0] < LEAST_OUTPUTS or getattr(layer, "groups", 1) > 1:
            continue
        outputs, inputs, *taps = layer.weight.shape
        drawn = torch.rand((outputs, -(-inputs // block), *taps), generator=generator) >= sparsity
        kept = drawn.repeat_interleave(block, dim=1)[:, :inputs]
        layer.weight.mul_(kept / math.sqrt(1 - sparsity))


@torch.no_grad()
def settle(network: nn.Module) -> None:
    """Give batch normalisation statistics as after training, so that it can't be folded into nothing."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 1.5)
            layer.weight.uniform_(0.5, 1.0)
            layer.bias.normal_(0, 0.1)


def write(folder: Path, name: str, family: Family, sparsity: float, block: int = 1) -> None:
    """Build one network and export it."""
    torch.manual_seed(SEED)
    network = family.build().eval()
    settle(network)
    if sparsity:
        prune(network, sparsity, block)
    example = (torch.zeros(family.shape),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no further package says that it is old
        torch.onnx.export(
            network,
            example,
            str(folder / f"{name}.onnx"),
            dynamo=False,
            opset_version=OPSET,
            input_names=["x"],
            output_names=["y"],
        )


class Pictures(CalibrationDataReader):
    """Random inputs to calibrate with, from a fixed seed."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(SEED)
        self._feeds = iter([{"x": rng.standard_normal(shape, dtype=np.float32)} for _ in range(PICTURES)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantise(folder: Path, name: str, shape: tuple[int, ...], reduced: bool = False) -> None:
    """Write `name`_q.onnx beside `name`.onnx, or `name`_q7.onnx, with weights of 7 bits."""
    quantize_static(
        folder / f"{name}.onnx",
        folder / f"{name}_q{'7' if reduced else ''}.onnx",
        Pictures(shape),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=reduced,
    )


def main() -> None:
    """As the module's docstring says."""
    parser = argparse.ArgumentParser(description="Write the benchmark's models.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(FAMILIES))
    options = parser.parse_args()
    if unknown := [name for name in options.families if name not in FAMILIES]:
        parser.error(f"no family {unknown[0]!r}; there are {', '.join(FAMILIES)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.families or FAMILIES:
        write(options.folder, name, FAMILIES[name], 0.0)
        for sparsity in SPARSITIES:
            write(options.folder, f"{name}_s{round(100 * sparsity)}", FAMILIES[name], sparsity)
        if len(FAMILIES[name].shape) == 4:
            blocks = f"{name}_b{round(100 * BLOCK_SPARSITY)}"
            write(options.folder, blocks, FAMILIES[name], BLOCK_SPARSITY, BLOCK)
            for each in (name, blocks, f"{name}_s{round(100 * QUANTISED_SPARSITY)}"):
                quantise(options.folder, each, FAMILIES[name].shape)
            quantise(options.folder, name, FAMILIES[name].shape, reduced=True)
        print(f"{name} written")


if __name__ == "__main__":
    main()
