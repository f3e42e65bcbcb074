"""How fast networks become that are asked to be so many times as fast, and how long that takes.

    python bench/asked_speed.py ASSETS MODELS [nuclei] [rn50] [--speedup 3] [--effort E] [--threads N]

ASSETS holds `models/` and `data/`, MODELS what `models.py` writes. ResNet-50 has random weights: of it, only
times mean anything. Both dense and sparse networks are this engine's, in turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import real
from sparsify import Stages
from support import print_markdown

import coresident

SIZE = 224
"""Rows and columns of ResNet-50's pictures."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assets", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("cases", nargs="*", choices=[[], "nuclei", "rn50"], default=[])
    parser.add_argument("--speedup", type=float, default=3.0)
    parser.add_argument("--effort", choices=["fast", "default", "max"], default="default")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    cases: dict[str, Callable[[], tuple[Path, list[real.Feeds]]]] = {
        "nuclei": lambda: _nuclei(options.assets),
        "rn50": lambda: (options.models / "rn50.onnx", _photos(options.assets)),
    }
    rows = []
    for name in options.cases or cases:
        model, feeds = cases[name]()
        start = time.monotonic()
        report = coresident.sparsify(
            model,
            feeds,
            target_speedup=options.speedup,
            effort=options.effort,
            threads=options.threads,
            progress=Stages(),
        ).report
        minutes = (time.monotonic() - start) / 60
        times = report.latency
        figures = [f"{options.speedup:.2f}x", f"{times.speedup:.2f}x"]
        figures += [f"{1e3 * times.dense_float:.1f}", f"{1e3 * times.result:.1f}"]
        rows.append([name, *figures, f"{100 * report.agreement['share']:.1f}", f"{minutes:.1f}"])
    print_markdown(["network", "asked", "measured", "dense ms", "result ms", "agreement", "min"], rows)


def _nuclei(assets: Path) -> tuple[Path, list[real.Feeds]]:
    case = real.nuclei(assets)
    return case.model, list(case.calibration)


def _photos(assets: Path) -> list[real.Feeds]:
    """COCO128's photos, scaled to what ResNet-50 takes."""
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    photos = sorted((assets / "data" / "coco128").glob("*.jpg"))
    levels = [(real.sized(path, SIZE) / np.float32(255) - mean) / deviation for path in photos]
    return [{"x": np.ascontiguousarray(one.transpose(2, 0, 1))[None]} for one in levels]


if __name__ == "__main__":
    main()
