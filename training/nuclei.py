"""Train, prune, quantise and export the network that `coresident demo` counts cell nuclei with.

    python training/nuclei.py --data DIR --out DIR [--seed 0] [--sparsity 0.85 0.9] [--scale 1]

`--data` holds `images/*.png` (8-bit, grey or colour) and `labels/*.png` (16-bit, 0 background, 1..n nuclei)
of the same names. A fifth of the pictures, drawn by the seed, is held out and only ever measured on. The
network is trained dense; then, by this package's own tools (`coresident.sparsification.training`), pruned in
four-blocks on a cubic schedule while it trains on and learns from the dense one, and at last trained as with
bytes. Each sparsity sets out from the one before, as it was before it was quantised. Written to `--out`:
dense.pt and pruned_NN.pt (kept: a second call starts from them), an ONNX file for each sparsity (as float and
as int8), held_out.json (every figure, per picture, of what the ONNX files give in this engine), and overlays.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import coresident
from coresident.sparsification.training import Constant, Distil, Prune, Quantise, Recipe, Sparsifier
from coresident.vision.nuclei import count, crop, overlay, preprocess

CHANNELS = (16, 32, 56, 96)
CROP = 112
BATCH = 8
BATCHES = (500, 150, 80)  # of the dense network, of each pruning, of each quantisation
WEIGHT_BITS: Literal[7, 8] = 7  # exact in 16-bit sums, on CPUs without VNNI and in other engines too
KNOWLEDGE = Distil(0.5, 2.0, "sigmoid")
Rate = Callable[[float], float]


class Sample(NamedTuple):
    """One picture: its name, uint8 [H, W] or [H, W, 3], and int32 labels [H, W]."""

    name: str
    image: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int32]


class Pair(nn.Sequential):
    """Two 3x3 convolutions, each followed by batch normalisation and ReLU; [N, a, H, W] to [N, b, H, W]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [
                nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    """U-Net with concatenated skips: float32 [N, 1, H, W] to logits [N, 2, H, W]; H, W multiples of 8."""

    def __init__(self, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        self.down = nn.ModuleList(Pair(a, b) for a, b in pairwise((1, *channels)))
        self.rise = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(channels))
        self.up = nn.ModuleList(Pair(2 * a, a) for a in channels[:-1])
        self.head = nn.Conv2d(channels[0], 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of nucleus and outline."""
        skips: list[Tensor] = []
        x = image
        for level, pair in enumerate(self.down):
            x = pair(x if level == 0 else functional.max_pool2d(x, 2))
            skips.append(x)
        for level in reversed(range(len(self.up))):
            x = self.up[level](torch.cat((self.rise[level](x), skips[level]), dim=1))
        logits: Tensor = self.head(x)
        return logits


def load(folder: Path) -> list[Sample]:
    """Read every picture and its labels."""
    samples = []
    for path in sorted((folder / "images").glob("*.png")):
        picture = Image.open(path)
        image = np.asarray(picture.convert("L" if picture.mode in ("L", "1") else "RGB"), dtype=np.uint8)
        labels = np.asarray(Image.open(folder / "labels" / path.name)).astype(np.int32)
        samples.append(Sample(path.name, image, labels))
    if not samples:
        raise SystemExit(f"no images/*.png in {folder}")
    return samples


def split(samples: list[Sample], seed: int, share: float = 0.2) -> tuple[list[Sample], list[Sample]]:
    """Split by picture into training and held-out, the same share of each picture size."""
    kinds: dict[tuple[int, ...], list[Sample]] = defaultdict(list)
    for sample in samples:
        kinds[sample.labels.shape].append(sample)
    train: list[Sample] = []
    held: list[Sample] = []
    order = random.Random(seed)
    for kind in sorted(kinds):
        group = order.sample(kinds[kind], len(kinds[kind]))
        cut = round(share * len(group))
        held += group[:cut]
        train += group[cut:]
    return train, held


def targets(labels: Tensor) -> Tensor:
    """Labels [N, H, W] to targets float32 [N, 2, H, W]: nucleus, and outline.

    The outline is two pixels wide, one on either side, and four where two nuclei touch or nearly do.
    """
    x = labels[:, None].float()
    nucleus = x > 0
    edge = functional.max_pool2d(x, 3, 1, 1) != -functional.max_pool2d(-x, 3, 1, 1)
    filled = torch.where(nucleus, x, torch.full_like(x, math.inf))
    contact = functional.max_pool2d(x, 5, 1, 2) > -functional.max_pool2d(-filled, 5, 1, 2)
    return torch.cat((nucleus, edge | contact), dim=1).float()


class Crops:
    """Random training crops: scaled, turned, mirrored, with changed contrast and noise."""

    def __init__(self, samples: list[Sample], seed: int) -> None:
        self.order = random.Random(seed)
        self.inputs = [torch.from_numpy(preprocess(s.image)) for s in samples]
        self.labels = [torch.from_numpy(s.labels).float()[None, None] for s in samples]
        self.weights = [math.sqrt(s.labels.size) for s in samples]

    def one(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an input [1, CROP, CROP] and its labels [CROP, CROP]."""
        height, width = self.labels[index].shape[2:]
        scale = 2.0 ** self.order.uniform(-0.5, 0.5)
        side = min(round(CROP / scale), height, width)
        top, left = self.order.randint(0, height - side), self.order.randint(0, width - side)
        box = (..., slice(top, top + side), slice(left, left + side))
        image = functional.interpolate(self.inputs[index][box], CROP, mode="bilinear", align_corners=False)[0]
        labels = functional.interpolate(self.labels[index][box], CROP, mode="nearest")[0, 0]
        turns = self.order.randint(0, 3)
        image, labels = torch.rot90(image, turns, (1, 2)), torch.rot90(labels, turns, (0, 1))
        if self.order.random() < 0.5:
            image, labels = image.flip(2), labels.flip(1)
        image = image.clamp(0, 1) ** self.order.uniform(0.7, 1.4) * self.order.uniform(0.8, 1.1)
        image = image + torch.randn_like(image) * self.order.uniform(0.0, 0.04)
        return image.clamp(0, 1), labels

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return inputs [BATCH, 1, CROP, CROP] and targets [BATCH, 2, CROP, CROP]."""
        chosen = self.order.choices(range(len(self.inputs)), self.weights, k=BATCH)
        images, labels = zip(*(self.one(index) for index in chosen), strict=True)
        return torch.stack(images).contiguous(memory_format=torch.channels_last), targets(torch.stack(labels))


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy (outline pixels weigh twice) plus soft Dice of either channel; a scalar."""
    entropy = functional.binary_cross_entropy_with_logits(logits, target, weight=1.0 + target[:, 1:])
    probability = logits.sigmoid()
    both = (probability * target).sum(dim=(0, 2, 3))
    dice = (2 * both + 1) / (probability.sum(dim=(0, 2, 3)) + target.sum(dim=(0, 2, 3)) + 1)
    return entropy + (1 - dice).mean()


def train(
    network: UNet,
    crops: Crops,
    batches: int,
    rate: Rate,
    optimizer: torch.optim.Optimizer,
    sparsifier: Sparsifier | None = None,
) -> None:
    """Train for that many batches; `rate` gives the learning rate at a share 0..1 of them."""
    network.train()
    start = time.monotonic()
    for batch in range(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate(batch / batches)
        images, target = crops.batch()
        logits = network(images)
        loss = loss_of(logits, target)
        if sparsifier is not None:
            loss = sparsifier.loss(loss, logits, images)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        if (batch + 1) % 50 == 0 or batch == batches - 1:
            seconds = time.monotonic() - start
            print(f"  batch {batch + 1}/{batches} loss {loss.item():.3f} {seconds:.0f} s", flush=True)


def optimizer_of(network: UNet) -> torch.optim.Optimizer:
    """AdamW, as all stages use it."""
    return torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)


def dense(path: Path, crops: Crops, batches: int) -> UNet:
    """Train the dense network, or read it where `path` holds one."""
    network = UNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if path.exists():
        network.load_state_dict(torch.load(path, weights_only=True))
        return network
    train(
        network,
        crops,
        batches,
        lambda t: 3e-3 * min(1.0, 0.05 + 10 * t) * fall(t) + 1e-5,
        optimizer_of(network),
    )
    torch.save(network.state_dict(), path)
    return network


def prune(network: UNet, teacher: UNet, crops: Crops, batches: int, shares: tuple[float, float]) -> None:
    """Prune from one share of zeros to another, over two thirds of the batches."""
    recipe = Recipe(1, (Prune(shares[1], 0.0, 2 / 3, shares[0], 10 / batches), KNOWLEDGE))
    optimizer = optimizer_of(network)
    with Sparsifier.attach(network, optimizer, batches, recipe, teacher=teacher) as sparsifier:
        train(network, crops, batches, lambda t: 1.5e-3 * (1 - 0.5 * t), optimizer, sparsifier)


def quantise(network: UNet, teacher: UNet, crops: Crops, batches: int, path: Path) -> dict[str, float]:
    """Train a copy as with bytes, its zeros kept, and write it; returns the share of zeros by layer."""
    network = deepcopy(network)
    recipe = Recipe(1, (Constant(), Quantise(0.0, 0.6, 0.5, WEIGHT_BITS), KNOWLEDGE))
    optimizer = optimizer_of(network)
    with Sparsifier.attach(network, optimizer, batches, recipe, teacher=teacher) as sparsifier:
        train(network, crops, batches, lambda t: 7e-4 * fall(t) + 1e-6, optimizer, sparsifier)
        export(sparsifier, path)
        return sparsifier.sparsity()


def export(sparsifier: Sparsifier, path: Path) -> None:
    """Write the network with sigmoids at its end: `image` [N, 1, H, W] to `probability` [N, 2, H, W]."""
    axes = {name: {0: "batch", 2: "height", 3: "width"} for name in ("image", "probability")}
    sparsifier.export(
        path,
        torch.rand(1, 1, 64, 64),
        tail=torch.sigmoid,
        input_names=["image"],
        output_names=["probability"],
        dynamic_axes=axes,
    )


def export_float(network: UNet, path: Path) -> None:
    """Write a network as it is, in floats."""
    with Sparsifier.attach(network, None, 1, Recipe(1)) as sparsifier:
        export(sparsifier, path)


def measure(path: Path, samples: list[Sample], draw: Path) -> dict[str, Any]:
    """Measure an ONNX file: foreground Dice and count error per picture, their means; overlays to `draw`."""
    pictures: dict[str, dict[str, Any]] = {}
    peer = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = 0.0
    draw.mkdir(parents=True, exist_ok=True)
    with coresident.Session(path) as session:
        for sample in samples:
            feeds = {"image": preprocess(sample.image)}
            probability = session.run(None, feeds)[0]
            worst = max(worst, float(np.abs(probability - peer.run(None, feeds)[0]).max()))
            labels, found = count(crop(probability[0], *sample.labels.shape))
            true = len(np.unique(sample.labels[sample.labels > 0]))
            covered = int(((labels > 0) & (sample.labels > 0)).sum())
            dice = 2 * covered / max(int((labels > 0).sum() + (sample.labels > 0).sum()), 1)
            pictures[sample.name] = {"true": true, "found": found, "dice": round(dice, 4)}
            Image.fromarray(overlay(sample.image, labels)).save(draw / sample.name)
    rows = pictures.values()
    dices, trues, errors = np.array([(r["dice"], r["true"], abs(r["found"] - r["true"])) for r in rows]).T
    return {
        "bytes": path.stat().st_size,
        "difference_from_onnxruntime": worst,
        "pictures": len(rows),
        "dice": round(float(dices.mean()), 4),
        "count_mean_absolute_error": round(float(errors.mean()), 3),
        "count_mean_relative_error": round(float((errors / np.maximum(trues, 1)).mean()), 4),
        "count_total_relative_error": round(float(errors.sum() / max(trues.sum(), 1)), 4),
        "per_picture": pictures,
    }


def report(title: str, result: dict[str, Any]) -> None:
    """Print the means of `measure`."""
    print(
        f"{title}: Dice {result['dice']:.4f}, count error {result['count_mean_absolute_error']:.2f} nuclei a "
        f"picture, {100 * result['count_mean_relative_error']:.1f} % (mean over pictures), "
        f"{100 * result['count_total_relative_error']:.1f} % (of all nuclei), {result['pictures']} pictures"
    )


def fall(share: float) -> float:
    """Return the half cosine from 1 at share 0 to 0 at share 1."""
    return 0.5 + 0.5 * math.cos(math.pi * share)


def main() -> None:
    """Run everything as the module's docstring says."""
    parser = argparse.ArgumentParser(description="Train, prune, quantise and export the nuclei network.")
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and labels/")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.85, 0.9], help="in ascending order")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many batches in every stage")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    training, held = split(load(options.data), options.seed)
    crops = Crops(training, options.seed)
    batches = [round(options.scale * number) for number in BATCHES]
    results: dict[str, dict[str, Any]] = {}

    def judge(title: str) -> None:
        results[title] = measure(out / f"{title}.onnx", held, out / title)
        report(title, results[title])
        (out / "held_out.json").write_text(json.dumps({"seed": options.seed, **results}, indent=1) + "\n")

    teacher = dense(out / "dense.pt", crops, batches[0])
    export_float(teacher, out / "dense.onnx")
    judge("dense")
    network, before = deepcopy(teacher), 0.0
    for sparsity in options.sparsity:
        title = f"{round(100 * sparsity)}"
        state = out / f"pruned_{title}.pt"
        if state.exists():
            network.load_state_dict(torch.load(state, weights_only=True))
        else:
            prune(network, teacher, crops, batches[1], (before, sparsity))
            torch.save(network.state_dict(), state)
        export_float(network, out / f"pruned_{title}.onnx")
        judge(f"pruned_{title}")
        layers = quantise(network, teacher, crops, batches[2], out / f"int8_{title}.onnx")
        judge(f"int8_{title}")
        results[f"int8_{title}"]["layers"] = layers
        before = sparsity
    print(f"{(time.monotonic() - begin) / 60:.1f} minutes")
    (out / "held_out.json").write_text(json.dumps({"seed": options.seed, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
