"""Writes the networks of this folder as ONNX, by the exporters that people use, with their own outputs.

    pip install torch==2.13.0 torchvision==0.28.0 onnx onnxscript
    python tests/exports/make_exports.py torch
    pip install tensorflow-cpu==2.21.0 tf2onnx==1.17.0
    python tests/exports/make_exports.py tensorflow

(two environments: the exporters do not agree on protobuf). Each network's folder holds `truth.npz`, arrays
`x0`, `y0`, `x1`... of the framework's own inputs and outputs, and a compressed file for each export.
For measuring speed, `--width 8` writes networks eight times as wide, `--size 20` pictures of twenty times the
height and width.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
HERE = Path(__file__).parent
SEED = 7


@dataclass(frozen=True)
class Export:
    """How a network is exported.

    Args:
        tool: "dynamo", "torchscript" or "tf2onnx".
        opset: of the file.
        free: axes of the input that stay free, with their names.
        optimised: whether the exporter cleans up behind itself.
        external: whether weights lie in a file of their own.
        half: whether the network is float16.
        functions: whether each layer of the network is a function of the model.
    """

    tool: str
    opset: int
    free: dict[int, str] = field(default_factory=dict)
    optimised: bool = True
    external: bool = False
    half: bool = False
    functions: bool = False

    @property
    def name(self) -> str:
        """Of the file."""
        what = [self.tool, str(self.opset), *(["free"] if self.free else [])]
        what += ["raw"] if not self.optimised else []
        what += [word for word in ("external", "half", "functions") if getattr(self, word)]
        return "-".join(what) + ".onnx"


BATCH = {0: "batch"}
PLANE = {2: "height", 3: "width"}
ALL = BATCH | PLANE
"""Axes that are left free."""


def inputs(shapes: list[Shape]) -> list[Array]:
    """Noise of few values, which compresses well."""
    generator = np.random.default_rng(SEED)
    return [(generator.integers(-8, 9, shape) / 4).astype(np.float16) for shape in shapes]


def write_truth(folder: Path, network: Callable[[Array], Array], fed: list[Array]) -> None:
    """The framework's own outputs for some inputs."""
    arrays: dict[str, Array] = {}
    for i, x in enumerate(fed):
        arrays |= {f"x{i}": x, f"y{i}": network(x.astype(np.float32))}
    np.savez_compressed(folder / "truth.npz", allow_pickle=False, **arrays)


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without what names the machine that it was made on: the stack of each call."""
    graphs = [model.graph.node, *(function.node for function in model.functions)]
    for node in (node for nodes in graphs for node in nodes):
        node.ClearField("doc_string")
        del node.metadata_props[:]
    for values in (model.graph.input, model.graph.output, model.graph.value_info, model.graph.initializer):
        for value in values:
            del value.metadata_props[:]
            value.ClearField("doc_string")
    del model.metadata_props[:]
    return model


def pack(path: Path) -> None:
    """Compress a model and its external data: names and shapes, said over and over, are most of it."""
    onnx.save(tidied(onnx.load(path, load_external_data=False)), path)
    for file in (path, path.with_name(f"{path.name}.data")):
        if file.exists():
            Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))
            file.unlink()


def write_torch(to: Path, width: int, size: int, only: str) -> None:
    """Everything that PyTorch exports."""
    import torch
    import torch_detectors as detectors
    import torch_networks as networks

    square = [(2, 3, 32, 32)]
    planes = [(1, 3, 32, 24), (1, 3, 16, 40)]
    halves = [(1, 3, 32, 64), (1, 3, 48, 32)]
    plan: dict[str, tuple[Callable[[], torch.nn.Module], list[Shape], list[Export]]] = {
        "residual": (
            lambda: networks.Residual(4 * width),
            square,
            [
                Export("torchscript", 9, BATCH),
                Export("torchscript", 13),
                Export("dynamo", 18, BATCH),
                Export("dynamo", 18, half=True),
            ],
        ),
        "mobile": (
            lambda: networks.Mobile(4 * width),
            square,
            [
                Export("torchscript", 9),
                Export("torchscript", 13, BATCH),
                Export("torchscript", 17, functions=True),
                Export("dynamo", 21, BATCH),
            ],
        ),
        "unet": (
            lambda: networks.UNet(4 * width),
            planes,
            [
                Export("torchscript", 11, ALL),
                Export("dynamo", 18, ALL),
                Export("dynamo", 18, ALL, optimised=False),
            ],
        ),
        "transformer": (
            lambda: networks.Transformer(8 * width, (4 * size) ** 2),
            square,
            [
                Export("torchscript", 14),
                Export("torchscript", 17, BATCH),
                Export("dynamo", 18, BATCH, optimised=False),
                Export("dynamo", 20, half=True),
                Export("dynamo", 23, BATCH),
            ],
        ),
        "next": (
            lambda: networks.Next(4 * width),
            square,
            [Export("torchscript", 13, BATCH), Export("dynamo", 20, ALL, external=True)],
        ),
        "shuffle": (
            lambda: networks.Shuffle(8 * width),
            planes,
            [Export("torchscript", 13, ALL), Export("dynamo", 22, ALL)],
        ),
        "anchor_free": (
            lambda: detectors.AnchorFree(4 * width),
            halves,
            [
                Export("torchscript", 12),
                Export("torchscript", 17, ALL),
                Export("dynamo", 20, ALL),
            ],
        ),
        "end_to_end": (
            lambda: detectors.EndToEnd(4 * width),
            halves,
            [Export("torchscript", 17, ALL), Export("dynamo", 18)],
        ),
        "anchor_based": (
            lambda: detectors.AnchorBased(4 * width),
            halves,
            [Export("torchscript", 11), Export("torchscript", 17, PLANE), Export("dynamo", 18, ALL)],
        ),
        "suppressed": (
            lambda: detectors.Suppressed(4 * width),
            halves,
            [Export("torchscript", 13), Export("dynamo", 18)],
        ),
    }
    for name, (make, shapes, exports) in plan.items():
        if only not in name:
            continue
        torch.manual_seed(SEED)
        network = networks.settle(make())
        folder = to / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        fed = inputs([(*shape[:2], *(size * one for one in shape[2:])) for shape in shapes])

        def run(x: Array, network: torch.nn.Module = network) -> Array:
            with torch.no_grad():
                return network(torch.from_numpy(x)).numpy()

        write_truth(folder, run, fed)
        for export in exports:
            example = torch.from_numpy(fed[0].astype(np.float32))
            of = network
            if export.half:
                of, example = networks.settle(make()), example.half()
                of.load_state_dict(network.state_dict())
                of = of.half()
            write_export(of, example, export, folder / export.name)
            print(name, export.name)


def write_export(network: Any, example: Any, export: Export, path: Path) -> None:
    """One file by one of PyTorch's exporters."""
    import torch

    options: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "opset_version": export.opset}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if export.tool == "torchscript":
            axes = {"x": export.free} if export.free else None
            if export.functions:
                options["export_modules_as_functions"] = {type(module) for module in network.children()}
            torch.onnx.export(network, (example,), str(path), dynamo=False, dynamic_axes=axes, **options)
        else:
            free = dict.fromkeys(export.free, torch.export.Dim.DYNAMIC) or None
            options |= {"dynamic_shapes": (free,) if free else None, "optimize": export.optimised}
            options["external_data"] = export.external
            torch.onnx.export(network, (example,), str(path), dynamo=True, **options)
    pack(path)


def write_tensorflow(to: Path, width: int, size: int, only: str) -> None:
    """Everything that tf2onnx exports."""
    import keras
    import keras_networks as networks
    import tensorflow as tf
    import tf2onnx

    plan: dict[str, tuple[keras.Model, list[Shape], list[Export]]] = {
        "keras_classifier": (
            networks.classifier(4 * width, (32 * size, 32 * size)),
            [(2, 32, 32, 3)],
            [Export("tf2onnx", 9), Export("tf2onnx", 13, BATCH), Export("tf2onnx", 18, BATCH)],
        ),
        "keras_segmenter": (
            networks.segmenter(4 * width),
            [(1, 32, 24, 3), (1, 16, 40, 3)],
            [Export("tf2onnx", 13), Export("tf2onnx", 18, {0: "batch", 1: "height", 2: "width"})],
        ),
    }
    for name, (network, shapes, exports) in plan.items():
        if only not in name:
            continue
        keras.utils.set_random_seed(SEED)
        networks.settle(network)
        folder = to / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        fed = inputs([(shape[0], *(size * one for one in shape[1:-1]), shape[-1]) for shape in shapes])
        function = networks.as_function(network)
        write_truth(folder, lambda x, function=function: function(tf.constant(x)).numpy(), fed)
        for export in exports:
            shape = [None if axis in export.free else one for axis, one in enumerate(fed[0].shape)]
            signature = [tf.TensorSpec(shape, tf.float32, name="x")]
            path = folder / export.name
            tf2onnx.convert.from_function(function, signature, export.opset, output_path=str(path))
            pack(path)
            print(name, export.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("framework", choices=["torch", "tensorflow"])
    parser.add_argument("--width", type=int, default=1)
    parser.add_argument("--size", type=int, default=1)
    parser.add_argument("--only", default="", help="networks whose names contain this")
    parser.add_argument("--to", type=Path, default=HERE / "models", help="folder to write to")
    arguments = parser.parse_args()
    if arguments.framework == "torch":
        write_torch(arguments.to, arguments.width, arguments.size, arguments.only)
    else:
        write_tensorflow(arguments.to, arguments.width, arguments.size, arguments.only)


if __name__ == "__main__":
    main()
