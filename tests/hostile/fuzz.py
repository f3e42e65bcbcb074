"""The fuzzer: mutated models, artifacts and pictures, each case in a child process with limits.

    python tests/hostile/fuzz.py --cases 100000            # all kinds in turn, from seed 0 on
    python tests/hostile/fuzz.py --kind model --seed 17 --cases 1    # one case again

A finding is whatever is neither success nor a `coresident.Error`: another exception, a crash, more than
`SECONDS` of a core, or more memory than `BYTES`. The seed tells which case it was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
SECONDS = 30
"""Of a core, for one case."""
BYTES = 4 << 30
"""Of addresses, for a process: what LLVM, numpy and a few cases that may have 64 MiB each need."""
BATCH = 500
"""Cases that share a process."""


@dataclass
class Findings:
    """What came of some cases.

    Args:
        outcomes: how often each typed outcome was seen.
        problems: (kind, seed, what happened).
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, int, str]] = field(default_factory=list)

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self.outcomes.most_common())
        listed = "".join(f"\n--kind {kind} --seed {seed}: {what}" for kind, seed, what in self.problems[:50])
        return f"{counts or 'no cases'}; {len(self.problems)} findings{listed}"


def fuzz(kind: str, first: int, count: int) -> Findings:
    """Run cases in child processes; one that dies is started again after the case that it died of."""
    findings, end = Findings(), first + count
    while first < end:
        many = min(BATCH, end - first)
        with tempfile.TemporaryDirectory() as folder:
            words = ["--child", folder, "--kind", kind, "--seed", str(first), "--cases", str(many)]
            done = subprocess.run(
                [sys.executable, str(HERE / "fuzz.py"), *words],
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])},
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
            )
        lines = done.stdout.splitlines()
        started = first - 1
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "case":
                started = int(rest)
            elif word == "outcome":
                findings.outcomes[f"{kind}: {rest}"] += 1
            elif word == "problem":
                findings.problems.append((kind, started, rest))
        if done.returncode == 0:
            first += many
            continue
        how = f"ended by signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
        tail = " | ".join(done.stderr.splitlines()[-3:])
        findings.problems.append((kind, max(started, first), f"{how}: {tail}"))
        first = max(started, first) + 1
    return findings


def _child(kind: str, first: int, count: int, folder: Path) -> None:
    import faulthandler
    import signal

    faulthandler.enable()
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
    import cases

    for seed in range(first, first + count):
        print(f"case {seed}", flush=True)
        if sys.platform != "win32":
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            print(f"outcome {cases.run(kind, seed, folder)}")
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            print("problem", type(error).__name__, where, " ".join(str(error).split())[:300])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kind", choices=("model", "artifact", "image"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        _child(arguments.kind, arguments.seed, arguments.cases, arguments.child)
        return 0
    kinds = [arguments.kind] if arguments.kind else ["model", "artifact", "image"]
    failed = False
    for kind in kinds:
        end = arguments.seed + -(-arguments.cases // len(kinds))
        for first in range(arguments.seed, end, BATCH):
            findings = fuzz(kind, first, min(BATCH, end - first))
            print(f"from seed {first}: {findings}", flush=True)
            failed |= bool(findings.problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
