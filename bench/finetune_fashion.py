"""Fashion-MNIST: a residual network trained dense, then pruned in four-blocks, fine-tuned and quantised.

    python bench/finetune_fashion.py --data fashion_mnist.npz --out DIR [--sparsity 0.85 0.9] [--threads 1]

Each sparsity sets out from the one before, as it was before it was quantised. Written to `--out`: dense.pt
(kept: a second call starts from it), an ONNX file for each sparsity, and report.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

import coresident
from coresident.sparsification.training import Distil, LearningRate, Prune, Quantise, Recipe, Sparsifier

CHANNELS = (24, 48, 96)
BATCH = 128
EPOCHS, PRUNING, QUANTISING = 5, 3.0, 1.0
AXES = {"image": {0: "batch"}, "logits": {0: "batch"}}
Data = tuple[Tensor, Tensor, Tensor, Tensor]


class Block(nn.Module):
    """Two 3x3 convolutions around which the input, or a 1x1 convolution of it, is added."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 [N, outputs, H / stride, W / stride]."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Residual network of one block a stage: float32 [N, 1, 28, 28] in 0..1 to logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, CHANNELS[0], 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS[0])
        widths = (CHANNELS[0], *CHANNELS)
        self.stages = nn.Sequential(*(Block(widths[i], widths[i + 1], 1 if i == 0 else 2) for i in range(3)))
        self.head = nn.Linear(CHANNELS[-1], 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        x = functional.max_pool2d(functional.relu(self.norm(self.stem(image))), 2)
        logits: Tensor = self.head(functional.adaptive_avg_pool2d(self.stages(x), 1).flatten(1))
        return logits


def read(path: Path) -> Data:
    """Read training images [60000, 1, 28, 28] in 0..1 and labels, then those of the test set."""
    with np.load(path) as file:
        images = [torch.from_numpy(file[name]).float()[:, None] / 255 for name in ("x_train", "x_test")]
        labels = [torch.from_numpy(file[name]).long() for name in ("y_train", "y_test")]
    return images[0], labels[0], images[1], labels[1]


def batches(images: Tensor, labels: Tensor, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of shuffled batches, shifted by up to two pixels and mirrored at random."""
    padded = functional.pad(images, (2, 2, 2, 2))
    for chosen in torch.randperm(len(images), generator=order).split(BATCH)[: len(images) // BATCH]:
        part = padded[chosen]
        top, left = (int(v) for v in torch.randint(0, 5, (2,), generator=order))
        part = part[:, :, top : top + 28, left : left + 28]
        mirrored = torch.rand(len(part), 1, 1, 1, generator=order) < 0.5
        part = torch.where(mirrored, part.flip(3), part)
        yield part.contiguous(memory_format=torch.channels_last), labels[chosen]


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that are classified as labelled."""
    network.eval()
    found = torch.cat([network(part).argmax(1) for part in images.split(500)])
    return float((found == labels).float().mean())


def train_dense(data: Data, path: Path, seed: int) -> ResNet:
    """Train the dense network, or read it where `path` holds one."""
    torch.manual_seed(seed)
    network = ResNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if path.exists():
        network.load_state_dict(torch.load(path, weights_only=True))
        return network
    order = torch.Generator().manual_seed(seed)
    decay = [p for p in network.parameters() if p.ndim > 1]
    rest = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decay, "weight_decay": 5e-4}, {"params": rest}], lr=0.1, momentum=0.9, nesterov=True
    )
    steps, step, start = EPOCHS * (len(data[0]) // BATCH), 0, time.monotonic()
    for epoch in range(EPOCHS):
        network.train()
        for images, labels in batches(data[0], data[1], order):
            share = step / steps
            rate = 0.1 * min(1.0, 0.1 + 6 * share) * (0.5 + 0.5 * math.cos(math.pi * share))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = functional.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        found = accuracy(network, data[2], data[3])
        print(f"dense epoch {epoch + 1}: {100 * found:.2f} %, {time.monotonic() - start:.0f} s", flush=True)
    torch.save(network.state_dict(), path)
    return network


def sparsify(
    network: ResNet, dense: ResNet, data: Data, sparsity: tuple[float, float], out: Path, seed: int
) -> dict[str, Any]:
    """Prune a network from one share of zeros to another, quantise and write it; returns its figures.

    The network is left as it was before it was quantised.
    """
    first, last = sparsity
    recipe = Recipe(
        PRUNING + QUANTISING,
        (
            Prune(last, 0.0, PRUNING / 2, initial=first, every=0.04),
            Quantise(PRUNING, PRUNING + QUANTISING / 2, PRUNING + QUANTISING / 2, weight_bits=7),
            Distil(0.5, 2.0),
            LearningRate(0.05, 0.0005, curve="cosine"),
        ),
    )
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    steps = len(data[0]) // BATCH
    figures: dict[str, Any] = {}
    kept: dict[str, Tensor] = {}
    start = time.monotonic()
    with Sparsifier.attach(network, optimizer, steps, recipe, teacher=dense) as sparsifier:
        while sparsifier.epoch < recipe.epochs:
            network.train()
            for images, labels in batches(data[0], data[1], order):
                outputs = network(images)
                loss = sparsifier.loss(functional.cross_entropy(outputs, labels), outputs, images)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if not kept and sparsifier.quantising:
                    kept = {name: value.clone() for name, value in network.state_dict().items()}
                    figures["pruned"] = accuracy(without_hooks(network, kept), data[2], data[3])
                    print(
                        f"pruned to {last:.0%}: {figures['pruned']:.2%}, {time.monotonic() - start:.0f} s",
                        flush=True,
                    )
                    network.train()
                if sparsifier.epoch >= recipe.epochs:
                    break
        figures["sparsity"] = sparsifier.sparsity()
        figures["int8"] = accuracy(network, data[2], data[3])
        name = f"int8_{round(100 * last)}.onnx"
        sparsifier.export(
            out / name, data[2][:1], input_names=["image"], output_names=["logits"], dynamic_axes=AXES
        )
    network.load_state_dict(kept)
    return figures | {"file": name, "seconds": time.monotonic() - start}


def without_hooks(network: ResNet, state: dict[str, Tensor]) -> ResNet:
    """The network without what is attached to it."""
    copied = ResNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    copied.load_state_dict(state)
    return copied


def judge(path: Path, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy of an ONNX file in this engine, and how far ONNX Runtime's logits are."""
    with coresident.Session(path) as session:
        logits = np.concatenate([session.run(None, {"image": part.numpy()})[0] for part in images.split(100)])
    peer = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    other = np.concatenate([peer.run(None, {"image": part.numpy()})[0] for part in images.split(100)])
    return {
        "accuracy": float((logits.argmax(1) == labels.numpy()).mean()),
        "difference_from_onnxruntime": float(np.abs(logits - other).max()),
        "bytes": path.stat().st_size,
    }


def main() -> None:
    """Run everything as the module's docstring says."""
    parser = argparse.ArgumentParser(description="Prune and quantise a residual network on Fashion-MNIST.")
    parser.add_argument("--data", type=Path, required=True, help="fashion_mnist.npz")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.85, 0.9], help="in ascending order")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = read(options.data)
    dense = train_dense(data, options.out / "dense.pt", options.seed)
    found: dict[str, Any] = {"dense": accuracy(dense, data[2], data[3])}
    print(f"dense: {found['dense']:.2%}", flush=True)
    network, last = deepcopy(dense), 0.0
    for sparsity in options.sparsity:
        figures = sparsify(network, dense, data, (last, sparsity), options.out, options.seed)
        figures["onnx"] = judge(options.out / figures["file"], data[2], data[3])
        found[f"{sparsity:g}"], last = figures, sparsity
        lost = 100 * (found["dense"] - figures["onnx"]["accuracy"])
        print(
            f"{sparsity:.0%} four-block int8: {figures['onnx']['accuracy']:.2%}, {lost:.2f} points lost",
            flush=True,
        )
        (options.out / "report.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
