"""A picture of layers under the ceilings of the machine (Williams et al., "Roofline", 2009)."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from coresident.codegen.peak import Peak
from coresident.errors import ImageError, InputError, ResourceError
from coresident.measure.layers import Layer
from coresident.runtime.files import write_atomically

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")


def check(file: Path) -> None:
    """Find out before any work whether a picture can be drawn.

    Raises:
        ResourceError: matplotlib is not installed.
        ImageError: the file's name is not that of a PNG.
        InputError: its folder does not exist.
    """
    if file.suffix.lower() != ".png":
        raise ImageError("the roofline is drawn as .png", file=file)
    if not file.parent.is_dir():
        raise InputError("the folder to draw to does not exist", file=file)
    if importlib.util.find_spec("matplotlib") is None:
        raise ResourceError("--plot needs matplotlib: python -m pip install 'coresident[plot]'")


def draw(file: Path, layers: Sequence[Layer], peak: Peak, title: str) -> None:
    """Draw the layers that multiply: nonzero multiply-adds a byte across, a second upwards, areas by time.

    Raises:
        ResourceError: the file can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [layer for layer in layers if layer.nonzero_macs and layer.bytes and layer.seconds > 0]
    intensities = [layer.intensity for layer in shown] or [1.0]
    left, right = min(*intensities, 0.1) / 2, max(*intensities, 100.0) * 2
    figure = Figure(figsize=(9, 6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    across = np.geomspace(left, right, 200)
    for number, level in enumerate(peak.levels):
        roof = np.minimum(across * level.bandwidth, peak.total_macs) / 1e9
        shade = str(0.25 + 0.15 * number)
        axes.plot(across, roof, color=shade, linewidth=1.0)
        height = left * 1.1 * level.bandwidth / 1e9
        axes.annotate(
            f"{level.name} {level.bandwidth / 1e9:.0f} GB/s", (left * 1.1, height), fontsize=8, color=shade
        )
    axes.annotate(
        f"{peak.threads} x {peak.macs / 1e9:.1f} GMAC/s",
        (right, peak.total_macs / 1e9),
        ha="right",
        va="bottom",
    )
    kinds = dict.fromkeys(layer.kernel.split(" ")[0] for layer in shown)
    for kind, colour in zip(kinds, _COLOURS * (len(kinds) // len(_COLOURS) + 1)):
        members = [layer for layer in shown if layer.kernel.split(" ")[0] == kind]
        axes.scatter(
            [layer.intensity for layer in members],
            [layer.real_gmacs for layer in members],
            s=[20 + 1500 * layer.share for layer in members],
            color=colour,
            alpha=0.55,
            label=kind,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("nonzero multiply-adds a byte of activations, weights and results")
    axes.set_ylabel("10⁹ nonzero multiply-adds a second")
    axes.set_title(f"{title}, {peak.threads} threads; areas by time")
    axes.grid(visible=True, which="major", alpha=0.3)
    if shown:
        axes.legend(loc="lower right", markerscale=0.7)
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    write_atomically(file, [stream.getbuffer()])
