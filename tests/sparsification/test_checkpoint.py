"""What an interrupted run leaves: read again if it holds, worked out again if not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coresident.errors import CoresidentWarning, ResourceError
from coresident.sparsification.checkpoint import Checkpoint

ARRAYS = {
    "file": np.arange(5, dtype=np.float32),
    "mask 0.5": np.ones((2, 3), bool),
    "empty": np.zeros((0, 3)),
}


def test_what_is_stored_is_loaded(tmp_path: Path) -> None:
    one = Checkpoint(tmp_path / "a" / "work", {"model": "x"})
    assert one.load("layer") is None
    one.store("layer", ARRAYS)
    found = Checkpoint(tmp_path / "a" / "work", {"model": "x"}).load("layer")
    assert found is not None
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert one.load("other layer") is None
    assert Checkpoint(tmp_path / "a" / "work", {"model": "y"}).load("layer") is None
    one.clear()
    assert one.load("layer") is None
    assert not (tmp_path / "a" / "work").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_what_is_damaged_is_told(tmp_path: Path, damage: str) -> None:
    checkpoint = Checkpoint(tmp_path, {})
    checkpoint.store("layer", ARRAYS)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flip": bytes(content), "cut": file.read_bytes()[:-10], "empty": b""}[damage])
    with pytest.warns(CoresidentWarning, match="worked out again"):
        assert checkpoint.load("layer") is None
    checkpoint.store("layer", ARRAYS)
    assert checkpoint.load("layer") is not None


def test_without_a_folder_nothing_is_kept() -> None:
    checkpoint = Checkpoint(None, {})
    checkpoint.store("layer", ARRAYS)
    assert checkpoint.load("layer") is None
    checkpoint.clear()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="can't be made"):
        Checkpoint(tmp_path / "file" / "work", {}).store("layer", ARRAYS)
