"""What verbs print: tables and JSON on standard output; progress and remarks on standard error."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from coresident.sparsification.progress import NO_PROGRESS
from coresident.sparsification.progress import Progress as Stages

_WIDE = 400
"""Columns at most of a table that does not go to a terminal."""


def print_json(record: dict[str, Any]) -> None:
    """One JSON object; numbers that JSON does not have become null."""
    print(json.dumps(_plain(record), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def say(text: str) -> None:
    """A line of the result."""
    print(text)


def remark(text: str) -> None:
    """A line beside the result."""
    print(text, file=sys.stderr)


@dataclass(frozen=True)
class Column:
    """Of a table.

    Args:
        title: its heading.
        number: whether it is set to the right and never shortened.
    """

    title: str
    number: bool = False


def print_table(title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """A table, as wide as it needs to be where no terminal limits it."""
    table = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    cells = [list(row) for row in rows]
    for index, column in enumerate(columns):
        table.add_column(
            column.title,
            justify="right" if column.number else "left",
            no_wrap=True,
            # Of texts a part may do, of numbers not.
            min_width=max((len(row[index]) for row in cells), default=1) if column.number else None,
        )
    for row in cells:
        table.add_row(*map(Text, row))
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=_WIDE)
    console.print(table)


def print_facts(title: str, facts: Iterable[tuple[str, str]]) -> None:
    """Names and values, one pair a line."""
    pairs = list(facts)
    width = max((len(name) for name, _ in pairs), default=0)
    say(title)
    for name, value in pairs:
        say(f"  {name:{width}}  {value}")


@dataclass
class Steps:
    """Progress that a verb reports."""

    progress: Progress | None = None
    task: Any = None
    last: str = field(default="")

    def now(self, text: str) -> None:
        """What is being done."""
        self.last = text
        if self.progress is not None:
            self.progress.update(self.task, description=text)

    def done(self) -> None:
        """One of the things to do is done."""
        if self.progress is not None:
            self.progress.advance(self.task)


@contextmanager
def steps(total: int | None, quiet: bool) -> Iterator[Steps]:
    """A progress bar on standard error if that is a terminal; a spinner where the total is not known."""
    if quiet or not sys.stderr.isatty():
        yield Steps()
        return
    shown = [SpinnerColumn()] if total is None else [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    console = Console(file=sys.stderr)
    with Progress(*shown, TextColumn("{task.description}"), console=console, transient=True) as progress:
        yield Steps(progress, progress.add_task("", total=total))


class _Told:
    """Stages as lines, where no terminal shows a bar."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def stage(self, name: str, total: int) -> None:
        remark(f"{time.monotonic() - self._start:6.0f} s  {name}")

    def advance(self, n: int = 1, note: str = "") -> None:
        pass


class _Bars:
    """A bar for the present stage; what is over leaves a line."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._name, self._start = "", 0.0

    def stage(self, name: str, total: int) -> None:
        self.finish()
        self._name, self._start = name, time.monotonic()
        self._task = self._progress.add_task(name, total=total or None, note="")

    def advance(self, n: int = 1, note: str = "") -> None:
        if self._task is None:
            return
        self._progress.advance(self._task, n)
        if note:
            self._progress.update(self._task, note=note)

    def finish(self) -> None:
        if self._task is None:
            return
        self._progress.remove_task(self._task)
        self._task = None
        self._progress.console.print(
            f"{time.monotonic() - self._start:6.1f} s  {self._name}", highlight=False, markup=False
        )


@contextmanager
def stages(quiet: bool) -> Iterator[Stages]:
    """Progress through several stages on standard error: bars with the remaining time, or lines."""
    if quiet:
        yield NO_PROGRESS
        return
    if not sys.stderr.isatty():
        yield _Told()
        return
    shown = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    ]
    with Progress(*shown, console=Console(file=sys.stderr), transient=True) as progress:
        bars = _Bars(progress)
        yield bars
        bars.finish()


def milliseconds(seconds: float) -> str:
    """With three significant digits or more."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 1000 else f"{value:.{2 if value >= 10 else 3}f}"


def sizes(shape: Iterable[object]) -> str:
    """1x3x224x224."""
    return "x".join("?" if size is None else str(size) for size in shape) or "scalar"


def bytes_text(size: float) -> str:
    """In binary units."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
