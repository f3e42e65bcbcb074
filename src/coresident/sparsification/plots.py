"""A report's layers as pictures, with matplotlib where it is installed."""

from __future__ import annotations

import importlib.util
import io
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coresident.sparsification.report import LayerReport, Report

MISSING = "There are no plots: they need matplotlib (python -m pip install 'coresident[plot]')."
_LONGEST_NAME = 28
_MOST_NAMES = 80
"""Layers beyond which names would be too small to read."""
_BEFORE, _AFTER, _ZEROS = "#b0b7c3", "#1f6feb", "#d1495b"


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(report: Report) -> dict[str, bytes]:
    """PNGs by the names of their files: what the layers take and how sparse they are, and their errors."""
    pictures = {"layers.png": _times(report.layers)}
    if any(layer.error > 0 for layer in report.layers):
        pictures["errors.png"] = _errors(report.layers)
    return pictures


def _figure(layers: tuple[LayerReport, ...], rows: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    width = min(40.0, max(6.0, 2.0 + 0.28 * len(layers)))
    figure = Figure(figsize=(width, 2.6 * rows + 1.4), dpi=100, layout="constrained")
    return figure, figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]


def _times(layers: tuple[LayerReport, ...]) -> bytes:
    figure, (above, below) = _figure(layers, 2)
    places = range(len(layers))
    before, after = ([_ms(one) for one in times] for times in zip(*map(_pair, layers)))
    above.bar([place - 0.2 for place in places], before, 0.4, color=_BEFORE, label="dense float32")
    above.bar([place + 0.2 for place in places], after, 0.4, color=_AFTER, label="result")
    above.set_ylabel("ms")
    above.legend(frameon=False)
    below.bar(places, [100 * layer.sparsity for layer in layers], 0.7, color=_ZEROS)
    below.set_ylabel("zeros, %")
    below.set_ylim(0, 100)
    _name(below, layers)
    return _png(figure)


def _errors(layers: tuple[LayerReport, ...]) -> bytes:
    figure, (axes,) = _figure(layers, 1)
    known = [(place, layer.error) for place, layer in enumerate(layers) if layer.error > 0]
    axes.bar([place for place, _ in known], [error for _, error in known], 0.7, color=_AFTER)
    axes.set_yscale("log")
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.set_ylabel("error of the output, relative")
    _name(axes, layers)
    return _png(figure)


def _pair(layer: LayerReport) -> tuple[float, float]:
    return layer.seconds_before, layer.seconds_after


def _ms(seconds: float) -> float:
    return 0.0 if math.isnan(seconds) else seconds * 1e3


def _name(axes: Any, layers: tuple[LayerReport, ...]) -> None:
    """Layers' names below the axes; they come from the model, so nothing in them is a formula."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(layers) > _MOST_NAMES:
        axes.set_xlabel("layer, in the network's order")
        return
    names = [_short(layer.name) for layer in layers]
    axes.set_xticks(range(len(layers)), names, rotation=90, fontsize=7, parse_math=False)


def _short(name: str) -> str:
    line = "".join(sign if sign.isascii() and sign.isprintable() else "?" for sign in name)
    return line if len(line) <= _LONGEST_NAME else f"...{line[3 - _LONGEST_NAME :]}"


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
