"""Train, prune and export the network that `coresident demo` counts cell nuclei with.

    python training/nuclei.py --data DIR --out DIR [--seed 0] [--epochs N | --minutes M]

`--data` holds `images/*.png` (8-bit, grey or colour) and `labels/*.png` (16-bit, 0 background, 1..n nuclei)
of the same names. A fifth of the pictures, drawn by the seed, is held out and only ever measured on. The
network is trained dense, then pruned by magnitude while it trains on (each layer by itself, on a cubic
schedule), then fine-tuned with the zeros fixed; the dense network that it is compared with has seen half as
many crops. Written to `--out`: nuclei.onnx (the pruned network), held_out.json (every figure, per picture),
and overlays to look at.
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
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from coresident.vision.nuclei import MULTIPLE, count, crop, overlay, preprocess

CHANNELS = (16, 32, 56, 96)
CROP = 144
BATCH = 8
SPARSITY = 0.87
Convolution = (nn.Conv2d, nn.ConvTranspose2d)
Rate = Callable[[float], float]
STAGES = (0.5, 0.2, 0.3)  # shares of the epochs: dense, pruning, fine-tuning


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


class Probability(nn.Module):
    """The network as exported: `image` [N, 1, H, W] to `probability` [N, 2, H, W]."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return the probabilities of nucleus and outline."""
        return torch.sigmoid(self.network(image))


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


def prunable(network: UNet) -> dict[str, nn.Parameter]:
    """Return the weights to prune by name: every convolution but the first and the last."""
    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, Convolution)]
    return {name: module.get_parameter("weight") for name, module in layers[1:-1]}


@torch.no_grad()
def prune(network: UNet, sparsity: float) -> dict[str, Tensor]:
    """Zero the smallest `sparsity` of each layer's weights in place; return the masks (1 keeps)."""
    masks = {}
    for name, weight in prunable(network).items():
        mask = torch.ones(weight.numel())
        mask[weight.abs().flatten().argsort()[: round(sparsity * weight.numel())]] = 0
        masks[name] = mask.view(weight.shape)
        weight.mul_(masks[name])
    return masks


def train(network: UNet, crops: Crops, steps: int, rate: Rate, first: float = 0.0, last: float = 0.0) -> None:
    """Train for `steps` batches; `rate` gives the learning rate at a share 0..1 of them.

    The sparsity rises from `first` to `last` as s(t) = last + (first - last) (1 - t)^3, renewed every 20
    batches; where the two are equal the zeros stay as they are.
    """
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate(0.0), weight_decay=1e-4)
    masks = prune(network, first)
    weights = prunable(network)
    start = time.monotonic()
    for step in range(steps):
        if first != last and (step % 20 == 0 or step == steps - 1):
            masks = prune(network, last + (first - last) * (1 - (step + 1) / steps) ** 3)
        for group in optimizer.param_groups:
            group["lr"] = rate(step / steps)
        images, target = crops.batch()
        loss = loss_of(network(images), target)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(network.parameters(), 2.0)
        optimizer.step()
        for name, mask in masks.items():
            weights[name].data.mul_(mask)
        if (step + 1) % 100 == 0 or step == steps - 1:
            print(f"  batch {step + 1}/{steps} loss {loss:.3f} {time.monotonic() - start:.0f} s")


@torch.no_grad()
def measure(network: UNet, samples: list[Sample], draw: Path) -> dict[str, Any]:
    """Measure foreground Dice and count error per picture, and their means; overlays go to `draw`."""
    model = Probability(network).eval()
    pictures: dict[str, dict[str, Any]] = {}
    for sample in samples:
        probability = model(torch.from_numpy(preprocess(sample.image)))[0].numpy()
        labels, found = count(crop(probability, *sample.labels.shape))
        true = len(np.unique(sample.labels[sample.labels > 0]))
        covered = int(((labels > 0) & (sample.labels > 0)).sum())
        dice = 2 * covered / max(int((labels > 0).sum() + (sample.labels > 0).sum()), 1)
        pictures[sample.name] = {"true": true, "found": found, "dice": round(dice, 4)}
        draw.mkdir(parents=True, exist_ok=True)
        Image.fromarray(overlay(sample.image, labels)).save(draw / sample.name)
    rows = pictures.values()
    dices, trues, errors = np.array([(r["dice"], r["true"], abs(r["found"] - r["true"])) for r in rows]).T
    return {
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


@torch.no_grad()
def export(network: UNet, path: Path) -> float:
    """Write the ONNX file and return its largest difference from PyTorch on two input sizes."""
    model = Probability(network).eval()
    axes = {name: {0: "batch", 2: "height", 3: "width"} for name in ("image", "probability")}
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["probability"], "dynamic_axes": axes}
    example = (torch.rand(1, 1, 64, 64),)
    torch.onnx.export(model, example, str(path), dynamo=False, opset_version=17, **names)
    graph = onnx.load(path)
    for tensor in graph.graph.initializer:  # folding leaves zeros of either sign: keep the positive one
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 0.0, tensor.name))
    onnx.save(graph, path)
    onnx.checker.check_model(graph)
    if any(node.op_type == "BatchNormalization" for node in graph.graph.node):
        raise SystemExit("batch normalisation was not folded")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for shape in ((1, 1, 256, 256), (2, 1, 24 * MULTIPLE, 13 * MULTIPLE)):
        image = torch.rand(shape)
        found = session.run(None, {"image": image.numpy()})[0]
        worst = max(worst, float(np.abs(found - model(image).numpy()).max()))
    return worst


def fall(share: float) -> float:
    """Return the half cosine from 1 at share 0 to 0 at share 1."""
    return 0.5 + 0.5 * math.cos(math.pi * share)


def main() -> None:
    """Run everything as the module's docstring says."""
    parser = argparse.ArgumentParser(description="Train, prune and export the nuclei network.")
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and labels/")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="in all; one is a crop for each training picture")
    parser.add_argument("--minutes", type=float, default=30.0, help="without --epochs: run what fits")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    begin = time.monotonic()
    training, held = split(load(options.data), options.seed)
    crops = Crops(training, options.seed)
    network = UNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = math.ceil(len(training) / BATCH)
    epochs = options.epochs
    if epochs is None:
        start = time.monotonic()
        train(deepcopy(network), Crops(training, options.seed), batches, fall)
        epochs = max(4, int(60 * options.minutes / (time.monotonic() - start)))
    steps = [round(share * epochs * batches) for share in STAGES]
    print(f"{len(training)} training pictures, {epochs} epochs of {batches} batches")

    results: dict[str, dict[str, Any]] = {}

    def run(title: str, stage: int, rate: Rate, first: float = 0.0, last: float = 0.0) -> None:
        print(title)
        train(network, crops, steps[stage], rate, first, last)
        results[title] = measure(network, held, options.out / title)
        report(title, results[title])

    run("dense", 0, lambda t: 3e-3 * min(1.0, 0.05 + 10 * t) * fall(t) + 1e-4)
    run("at full sparsity", 1, lambda t: 1.5e-3, 0.0, SPARSITY)
    run("pruned", 2, lambda t: 1.5e-3 * fall(t) + 1e-5, SPARSITY, SPARSITY)

    difference = export(network, options.out / "nuclei.onnx")
    weights = prunable(network)
    sparsity = {name: round(float((w == 0).float().mean()), 4) for name, w in weights.items()}
    zeros, size = sum(int((w == 0).sum()) for w in weights.values()), sum(w.numel() for w in weights.values())
    for name, share in sparsity.items():
        print(f"  {name:10s} {list(weights[name].shape)!s:18s} {100 * share:.2f} % zero")
    print(f"  overall {100 * zeros / size:.2f} % of the {size} weights of these layers")
    print(f"nuclei.onnx: {(options.out / 'nuclei.onnx').stat().st_size} bytes, {difference:.1e} from PyTorch")
    print(f"{(time.monotonic() - begin) / 60:.1f} minutes")
    figures = {"seed": options.seed, "epochs": epochs, "sparsity": round(zeros / size, 4), "layers": sparsity}
    (options.out / "held_out.json").write_text(json.dumps({**figures, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
