"""`coresident analyze`: where the time of a network goes, and what binds each layer."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coresident.cli import report
from coresident.cli.command import OK, Command, add_json, add_shapes, add_threads, positive
from coresident.measure.feeds import fixed_shapes, random_feeds
from coresident.ports import FreeDimension
from coresident.session import Session

if TYPE_CHECKING:
    from coresident.codegen.peak import Peak
    from coresident.measure.layers import Layer


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an ONNX model or a compiled one")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the layers under their roofline")
    parser.add_argument("--repeats", type=positive, default=10, help="runs to measure (default: 10)")
    add_threads(parser)
    add_shapes(parser)
    add_json(parser)


def _run(arguments: argparse.Namespace) -> int:
    from coresident import compiler
    from coresident.cli import roofline
    from coresident.codegen import peak
    from coresident.measure.layers import layers

    if arguments.plot is not None:
        roofline.check(arguments.plot)
    with report.steps(None, arguments.quiet) as progress:
        progress.now("compiling")
        with Session(arguments.model, threads=arguments.threads) as session:
            inputs = session.get_inputs()
            shapes = fixed_shapes(
                {one.name: one.shape for one in inputs}, dict(arguments.shape), arguments.batch
            )
            feeds = random_feeds(shapes, {one.name: np.dtype(one.dtype) for one in inputs})
            session.run(None, feeds)
            progress.now("measuring the network")
            profile = session.profile(feeds, arguments.repeats)
            free = session.free_dimensions(feeds)
            costs = {
                "compile_seconds": session.program(feeds).info.get("compile_seconds"),
                "resident_bytes": session.resident_bytes(feeds),
            }
            progress.now("measuring the machine")
            ceilings = peak.measure(compiler.host_target(), session.threads)
    found = layers(profile, ceilings)
    if arguments.plot is not None:
        roofline.draw(arguments.plot, found, ceilings, Path(arguments.model).name)
    if arguments.json:
        report.print_json(
            {
                "model": str(arguments.model),
                "threads": ceilings.threads,
                "shapes": {name: list(shape) for name, shape in shapes.items()},
                "machine": machine_record(ceilings),
                "layers": [layer.record() for layer in found],
                "total": totals(found, ceilings),
                "free": [asdict(one) | costs for one in free],
            }
        )
        return OK
    _tell(Path(arguments.model).name, found, ceilings)
    _tell_free(free, costs)
    if arguments.plot is not None:
        report.say(f"roofline drawn to {arguments.plot}")
    return OK


def machine_record(ceilings: Peak) -> dict[str, Any]:
    """The ceilings as JSON values."""
    return {
        "gmacs_per_core": ceilings.macs / 1e9,
        "levels": [
            {"name": level.name, "bytes": level.capacity, "gigabytes_per_second": level.bandwidth / 1e9}
            for level in ceilings.levels
        ],
    }


def totals(found: list[Layer], ceilings: Peak) -> dict[str, Any]:
    """Sums over the layers as JSON values."""
    seconds = sum(layer.seconds for layer in found)
    macs, nonzero = sum(layer.macs for layer in found), sum(layer.nonzero_macs for layer in found)
    return {
        "seconds": seconds,
        "macs": macs,
        "nonzero_macs": nonzero,
        "peak_share": nonzero / seconds / ceilings.total_macs if seconds else None,
    }


def _tell(name: str, found: list[Layer], ceilings: Peak) -> None:
    text = [report.Column(title) for title in ("node", "op", "shape", "kernel", "tile", "zeros")]
    numbers = [
        report.Column(title, number=True) for title in ("ms", "share", "real GMAC/s", "effective", "of peak")
    ]
    columns = [report.Column("", number=True), *text, *numbers, report.Column("bound by")]
    rows = [_row(layer) for layer in found]
    whole = totals(found, ceilings)
    seconds = whole["seconds"]
    rates = [f"{whole[key] / seconds / 1e9:.1f}" if seconds else "" for key in ("nonzero_macs", "macs")]
    share = "" if whole["peak_share"] is None else f"{whole['peak_share']:.0%}"
    rows.append(["", "all", "", "", "", "", "", report.milliseconds(seconds), "100.0%", *rates, share, ""])
    report.print_table(f"{name}, {ceilings.threads} threads", columns, rows)
    reasons = [(layer, reason) for layer in found for reason in layer.why]
    for layer, reason in reasons:
        report.say(f"  {layer.index} {_node(layer)}: {reason}")
    levels = ", ".join(f"{level.name} {level.bandwidth / 1e9:.0f} GB/s" for level in ceilings.levels)
    report.say(
        f"this machine: {ceilings.macs / 1e9:.1f} GMAC/s a core; {levels} with {ceilings.threads} threads"
    )


def _tell_free(free: list[FreeDimension], costs: dict[str, Any]) -> None:
    seconds, size = costs["compile_seconds"], costs["resident_bytes"] / 1e6
    for one in free:
        dimension = f"{one.input} dimension {one.axis}" + (f" ({one.name})" if one.name else "")
        waits = (
            "programs for other sizes serve a new one in pieces while its own is compiled"
            if one.in_pieces
            else f"a new size waits for the compiler: {one.why}"
        )
        report.say(f"{dimension} is free: {waits}; this size took {seconds:.2f} s to compile, {size:.1f} MB")


def _row(layer: Layer) -> list[str]:
    works = layer.macs > 0
    zeros = "" if layer.sparsity is None else f"{layer.sparsity:.0%} {layer.pattern}".strip()
    return [
        str(layer.index),
        _node(layer),
        layer.op + (f" + {layer.fused}" if layer.fused else ""),
        report.sizes(layer.shape) if layer.shape else "",
        layer.kernel,
        layer.tile,
        zeros,
        report.milliseconds(layer.seconds),
        f"{layer.share:.1%}",
        f"{layer.real_gmacs:.1f}" if works else "",
        f"{layer.effective_gmacs:.1f}" if works else "",
        f"{layer.peak_share:.0%}" if works else "",
        layer.bound if layer.bound_seconds > 0 else "",
    ]


def _node(layer: Layer) -> str:
    first = layer.nodes[0] if layer.nodes else ""
    short = first if len(first) <= 32 else f"…{first[-31:]}"
    return short if len(layer.nodes) < 2 else f"{short} and {len(layer.nodes) - 1} more"


COMMAND = Command(
    "analyze",
    "show where the time goes, layer by layer",
    "Measures every layer of a model and says which kernel runs it, how far it is from what this machine can "
    "do, and why it is not sparse, not fused or slow.",
    _configure,
    _run,
)
