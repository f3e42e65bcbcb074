"""Print a model's layers against what the core can do, as markdown: `python bench/layers.py MODEL.onnx`."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from support import feeds_of, print_markdown

import coresident
from coresident import compiler
from coresident.cli.command import positive
from coresident.codegen import peak
from coresident.measure.layers import Layer, layers


def cells(layer: Layer) -> list[str]:
    """One layer's line of the table."""
    return [
        layer.nodes[0] if layer.nodes else layer.op,
        f"{layer.op} + {layer.fused}" if layer.fused else layer.op,
        "x".join(map(str, layer.shape)),
        f"{layer.kernel}, {layer.tile}" if layer.tile else layer.kernel,
        "" if layer.sparsity is None else f"{layer.sparsity:.0%}",
        f"{layer.seconds * 1e3:.3f}",
        f"{layer.real_gmacs:.1f}" if layer.macs else "",
        f"{layer.effective_gmacs:.1f}" if layer.macs else "",
        f"{layer.peak_share:.0%}" if layer.macs else "",
        layer.bound,
    ]


def main() -> None:
    """As the module's docstring says."""
    parser = argparse.ArgumentParser(description="Print a model's layers against what the core can do.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--repeats", type=positive, default=20)
    options = parser.parse_args()
    with coresident.Session(options.model, threads=options.threads) as session:
        profile = session.profile(feeds_of(session), options.repeats)
    ceilings = peak.measure(compiler.host_target(), options.threads)
    found = layers(profile, ceilings)
    levels = ", ".join(f"{level.name} {level.bandwidth / 1e9:.0f} GB/s" for level in ceilings.levels)
    print(
        f"{options.model.name}, {options.threads} threads; "
        f"{ceilings.macs / 1e9:.1f} GMAC/s a core; {levels}\n"
    )
    titles = (
        "node",
        "operator",
        "result",
        "kernel",
        "zeros",
        "ms",
        "GMAC/s",
        "effective",
        "of peak",
        "bound by",
    )
    print_markdown(titles, map(cells, found))
    print()
    for kernel in dict.fromkeys(layer.kernel for layer in found if layer.macs):
        shares = [layer.peak_share for layer in found if layer.kernel == kernel and layer.macs]
        print(
            f"{kernel}: {len(shares)} layers, of peak least {min(shares):.0%}, "
            f"median {statistics.median(shares):.0%}, greatest {max(shares):.0%}"
        )
    print(f"all: {sum(layer.seconds for layer in found) * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
