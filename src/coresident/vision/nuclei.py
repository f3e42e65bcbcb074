"""Counting cell nuclei: picture to network input, network output to labelled nuclei, and a drawing of them.

The network these functions belong to takes `image` float32 [batch, 1, height, width] with height and width
multiples of `MULTIPLE`, and returns `probability` float32 [batch, 2, height, width]: channel 0 is the
probability that a pixel lies in a nucleus, channel 1 that it lies on the outline of one (a line about two
pixels wide, wider where two nuclei meet).
"""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from coresident.errors import InputError

MULTIPLE = 8
"""Height and width of the network's input are multiples of this (three 2x2 poolings)."""

Picture = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]


def _colours(image: Picture) -> Picture:
    """Return the picture as uint8 [height, width, channels] without alpha; reject anything else."""
    if image.dtype != np.uint8:
        raise InputError(f"expected a picture of uint8, got {image.dtype}", shape=list(image.shape))
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise InputError("expected a picture [H, W], [H, W, 3] or [H, W, 4]", shape=list(image.shape))
    return image[:, :, :3]


def _stretch(grey: Floats) -> Floats:
    """Map the 1st..99.8th percentile of `grey` to 0..1, clipped; a picture of one level becomes all zero."""
    low, high = (float(v) for v in np.percentile(grey, (1.0, 99.8)))
    stretched: Floats = np.clip((grey - low) / max(high - low, 1.0), 0.0, 1.0).astype(np.float32)
    return stretched


def preprocess(image: Picture) -> Floats:
    """Turn a picture into the network's input.

    `image` is uint8 [H, W], [H, W, 3] or [H, W, 4] (alpha is ignored). The result is float32
    [1, 1, H', W'] in 0..1 with H' and W' the next multiples of `MULTIPLE`.

    1. Polarity: the background is bright if the median grey level lies nearer to the 99.8th percentile than
       to the 1st. A picture on a bright background (transmitted light, stained tissue) becomes 255 minus its
       darkest colour channel; one on a dark background (fluorescence) becomes its brightest colour channel.
       Nuclei are bright on dark either way, whatever the colour of the dye.
    2. Levels: the 1st..99.8th percentile is stretched to 0..1 and the square root taken, which lifts dim
       nuclei beside bright ones.
    3. Size: the bottom and right edges are padded by reflection; `crop` undoes this.
    """
    colours = _colours(image)
    low, middle, high = np.percentile(colours.mean(axis=2), (1.0, 50.0, 99.8))
    bright = high - middle < middle - low
    grey = 255 - colours.min(axis=2) if bright else colours.max(axis=2)
    levels = np.sqrt(_stretch(grey.astype(np.float32)))
    height, width = levels.shape
    padded = np.pad(levels, ((0, -height % MULTIPLE), (0, -width % MULTIPLE)), mode="reflect")
    return np.ascontiguousarray(padded[None, None])


def crop(probability: Floats, height: int, width: int) -> Floats:
    """Cut the padding of `preprocess` off again: [..., H', W'] to [..., height, width]."""
    return probability[..., :height, :width]


def count(
    probability: Floats, threshold: float = 0.5, minimum_area: int = 16, minimum_seed: int = 4
) -> tuple[Labels, int]:
    """Separate and count the nuclei in the network's output for one picture.

    `probability` is float32 [2, H, W]: nucleus, outline. A seed is a connected patch (4-neighbours) of
    nucleus without outline, of at least `minimum_seed` pixels; a patch without any seed is its own.
    Every nucleus pixel then joins its nearest seed, and nuclei under `minimum_area` pixels are dropped.
    Returns int32 labels [H, W] (0 background, 1..n nuclei) and n.
    """
    if probability.ndim != 3 or probability.shape[0] != 2:
        raise InputError("expected a probability [2, H, W]", shape=list(probability.shape))
    nucleus = probability[0] > threshold
    seeds = _keep(ndimage.label(nucleus & (probability[1] < threshold))[0], minimum_seed)
    patches = ndimage.label(nucleus)[0]
    seeded = np.zeros(int(patches.max()) + 1, dtype=bool)
    seeded[patches[seeds > 0]] = True
    lone = nucleus & ~seeded[patches]
    seeds = np.where(lone, patches + int(seeds.max()), seeds)
    if not seeds.any():
        return np.zeros(nucleus.shape, dtype=np.int32), 0
    rows, columns = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    labels = _keep(np.where(nucleus, seeds[rows, columns], 0), minimum_area)
    return labels, int(labels.max())


def _keep(labels: npt.NDArray[np.integer], area: int) -> Labels:
    """Drop labels of fewer than `area` pixels and renumber the rest 1..n; int [H, W] to int32 [H, W]."""
    areas = np.bincount(labels.ravel())
    kept = areas >= area
    kept[0] = False
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    result: Labels = numbers[labels]
    return result


def overlay(image: Picture, labels: npt.NDArray[np.integer]) -> Picture:
    """Draw the outline of every nucleus in its own colour on the picture.

    `image` is uint8 [H, W], [H, W, 3] or [H, W, 4], `labels` integers [H, W] as `count` gives them. The
    picture is stretched to the full range of levels, as fluorescence is often too dark to see.
    Returns uint8 [H, W, 3].
    """
    colours = _colours(image)
    if labels.shape != colours.shape[:2]:
        raise InputError(
            f"the labels do not fit a picture {list(colours.shape[:2])}", shape=list(labels.shape)
        )
    spread = np.repeat(colours, 3 // colours.shape[2], axis=2).astype(np.float32)
    drawn: Picture = np.rint(_stretch(spread) * 255.0).astype(np.uint8)
    cross = ndimage.generate_binary_structure(2, 1)
    least = ndimage.minimum_filter(labels, footprint=cross, mode="nearest")
    most = ndimage.maximum_filter(labels, footprint=cross, mode="nearest")
    outline = (labels > 0) & ((least != labels) | (most != labels))
    hues = [
        colorsys.hsv_to_rgb(number * 0.618034 % 1.0, 0.85, 1.0) for number in range(int(labels.max()) + 1)
    ]
    palette = np.rint(np.array(hues) * 255.0).astype(np.uint8)
    drawn[outline] = palette[labels[outline]]
    return drawn
