"""What long work tells of itself while it runs."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Whoever shows progress."""

    def stage(self, name: str, total: int) -> None:
        """A new stage begins, and the one before is over.

        Args:
            name: of the stage, for people.
            total: how many times the stage will advance; 0 where that is not known.
        """

    def advance(self, n: int = 1, note: str = "") -> None:
        """Part of the stage is done.

        Args:
            n: how much of its total.
            note: what was done, or what comes next; "" leaves the note before.
        """


class _Silence:
    def stage(self, name: str, total: int) -> None:
        pass

    def advance(self, n: int = 1, note: str = "") -> None:
        pass


NO_PROGRESS: Progress = _Silence()
"""Shows nothing."""
