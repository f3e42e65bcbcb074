"""The entry point: `coresident VERB ...`.

Exit codes: 0 all well; 1 a `coresident.Error`, told in one line on standard error; 2 wrong usage; 3 some of
several files or engines could not be run, or a target could not be reached; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

import coresident
from coresident.cli import analyze, benchmark, compile, demo, doctor, finetune, run, sparsify
from coresident.cli.command import FAILED, INTERRUPTED, Command
from coresident.cli.report import remark
from coresident.errors import CoresidentWarning, Error

COMMANDS: tuple[Command, ...] = (
    run.COMMAND,
    benchmark.COMMAND,
    compile.COMMAND,
    sparsify.COMMAND,
    finetune.COMMAND,
    analyze.COMMAND,
    doctor.COMMAND,
    demo.COMMAND,
)

_EPILOG = """exit codes:
  0    all well
  1    failed; one line on standard error says why
  2    wrong usage
  3    some of several files or engines could not be run, or a target could not be reached
  130  interrupted
"""


def _parser() -> argparse.ArgumentParser:
    quiet = argparse.ArgumentParser(add_help=False)
    quiet.add_argument(
        "--quiet", action="store_true", default=argparse.SUPPRESS, help="no progress, no remarks"
    )
    parser = argparse.ArgumentParser(
        prog="coresident",
        description="Runs trained vision networks on CPUs: compiles ONNX to code that skips the zeros.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[quiet],
    )
    parser.add_argument("--version", action="version", version=f"coresident {coresident.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for command in COMMANDS:
        sub = verbs.add_parser(
            command.name, help=command.help, description=command.description, parents=[quiet]
        )
        command.configure(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        argv: the words after the program's name; None takes those of the process.

    Returns:
        The exit code.

    Raises:
        SystemExit: for --help and --version (0) and wrong usage (2), as argparse does.
    """
    arguments = _parser().parse_args(argv)
    arguments.quiet = getattr(arguments, "quiet", False)
    with warnings.catch_warnings(record=False):
        warnings.simplefilter("always", CoresidentWarning)
        previous = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: object) -> None:
            if issubclass(category, CoresidentWarning):
                remark(f"warning: {_line(message)}")
            else:
                previous(message, category, *place)  # type: ignore[arg-type]

        warnings.showwarning = show  # type: ignore[assignment]
        try:
            return int(arguments.run(arguments))
        except Error as error:
            remark(f"coresident: error: {_line(error)}")
            return FAILED
        except KeyboardInterrupt:
            remark("coresident: interrupted")
            return INTERRUPTED
        except BrokenPipeError:
            # Whoever read the output has gone; Python would complain when it closes the stream.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED


def _line(message: object) -> str:
    return " ".join(str(message).split())


if __name__ == "__main__":
    sys.exit(main())
