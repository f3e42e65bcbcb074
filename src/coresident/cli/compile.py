"""`coresident compile`: a model ahead of time, to a file that runs without compiling."""

from __future__ import annotations

import argparse
from pathlib import Path

from coresident.cli.command import OK, Command, positive, shape
from coresident.cli.report import remark


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="an ONNX model, or an artifact that holds its model")
    parser.add_argument("output", type=Path, help="the file to write, usually *.cres")
    parser.add_argument(
        "--target",
        action="append",
        metavar="NAME",
        help="CPU to compile for, host if none is named; may be repeated: the file then serves each",
    )
    parser.add_argument(
        "--shape",
        type=shape,
        action="append",
        default=[],
        metavar="NAME=1x3x224x224",
        help="sizes of an input that the model leaves open; may be repeated",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="threads that the work is cut for (default: the cores)"
    )
    parser.add_argument(
        "--without-model",
        action="store_true",
        help="leave the model out: a smaller file, which can't be compiled again for other CPUs",
    )


def _run(arguments: argparse.Namespace) -> int:
    from coresident.compiler import compile_file

    compile_file(
        arguments.model,
        arguments.output,
        shapes=dict(arguments.shape),
        targets=arguments.target or "host",
        threads=arguments.threads,
        keep_model=not arguments.without_model,
    )
    if not arguments.quiet:
        remark(f"wrote {arguments.output}, {arguments.output.stat().st_size / 1e6:.1f} MB")
    return OK


COMMAND = Command(
    name="compile",
    help="compile a model to a file that starts at once",
    description="Compile a model ahead of time, for one or more CPUs. The file runs as the model does, "
    "without onnx and LLVM; it holds the packed weights, the code for each target and, unless told "
    "otherwise, the model itself, so that it can be compiled again for another CPU. The same input "
    "gives the same bytes.",
    configure=_configure,
    run=_run,
)
