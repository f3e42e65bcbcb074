"""Where the real networks and data are that some tests use; tests skip where they are absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def folder() -> Path | None:
    """The folder of assets: named by CORESIDENT_ASSETS, or `shared/assets` in a folder above the tests."""
    named = os.environ.get("CORESIDENT_ASSETS")
    if named:
        return Path(named) if Path(named).is_dir() else None
    found = (parent / "shared" / "assets" for parent in Path(__file__).resolve().parents)
    return next((path for path in found if path.is_dir()), None)


def path(*parts: str) -> Path:
    """A file or folder of the assets; the test that asks is skipped where it is absent."""
    root = folder()
    if root is None:
        pytest.skip("no shared/assets above the tests, and CORESIDENT_ASSETS names no folder")
    if not root.joinpath(*parts).exists():
        pytest.skip(f"{'/'.join(parts)} is not among the assets in {root}")
    return root.joinpath(*parts)
