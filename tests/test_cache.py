"""The cache: it keeps, it verifies, it forgets, and it never stands in the way."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from coresident import cache
from coresident.errors import CoresidentWarning
from coresident.runtime.program import Port, Program

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
PROGRAM = Program(
    inputs=(Port("x", "float32", (2,)),),
    outputs=(Port("y", "float32", (2,)),),
    steps=(),
    objects=(b"code",),
    constants=bytes(range(256)) * 40,
    arena_bytes=64,
    scratch_bytes=0,
    target="x86_64-unknown-linux-gnu|test",
    features=(),
)


def opened(folder: Path, **options: int) -> cache.DiskCache:
    found = cache.open_cache(folder, **options)
    assert isinstance(found, cache.DiskCache)
    return found


def same(found: Program | None) -> bool:
    return found is not None and replace(found, constants=bytes(found.constants)) == PROGRAM


def test_keys_depend_on_every_entry() -> None:
    entries = {"model": "a", "threads": 2, "shapes": {"x": [1, 3]}}
    assert cache.key(entries) == cache.key(dict(reversed(entries.items())))
    others = [entries | change for change in ({"model": "b"}, {"threads": 1}, {"shapes": None}, {"more": 0})]
    assert len({cache.key(one) for one in [entries, *others]}) == 5


def test_what_is_put_is_got_by_others(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    assert opened(folder).get("k") is None
    opened(folder).put("k", PROGRAM)
    assert same(opened(folder).get("k"))
    state = opened(folder).state()
    assert (state.path, state.entries, state.writable, state.problem) == (folder, 1, True, "")
    assert state.bytes == (folder / "k.cres").stat().st_size


@POSIX
def test_the_owner_alone_may_read(tmp_path: Path) -> None:
    opened(tmp_path / "cache").put("k", PROGRAM)
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "cache" / "k.cres").stat().st_mode) == 0o600


@pytest.mark.parametrize("at", [0, 9, 60, -1])
def test_a_corrupt_entry_is_told_and_forgotten(tmp_path: Path, at: int) -> None:
    store = opened(tmp_path / "c")
    store.put("k", PROGRAM)
    path = tmp_path / "c" / "k.cres"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))
    with pytest.warns(CoresidentWarning, match=r"made again.*k\.cres"):
        assert store.get("k") is None
    assert store.get("k") is None
    store.put("k", PROGRAM)
    assert same(store.get("k"))


@POSIX
def test_a_foreign_entry_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path / "c")
    store.put("k", PROGRAM)
    (tmp_path / "c" / "k.cres").chmod(0o666)
    with pytest.warns(CoresidentWarning, match="written by other users"):
        assert store.get("k") is None
    store.put("k", PROGRAM)
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with pytest.warns(CoresidentWarning, match="another user"):
        assert store.get("k") is None


@POSIX
def test_a_folder_that_others_own_or_write_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.warns(CoresidentWarning, match="not used.*written by other users"):
        found = cache.open_cache(open_to_all)
    assert isinstance(found, cache.NoCache)
    assert "other users" in found.state().problem
    me = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: me + 1)
    with pytest.warns(CoresidentWarning, match="another user"):
        assert isinstance(cache.open_cache(tmp_path), cache.NoCache)


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(CoresidentWarning, match="can't be made"):
        found = cache.open_cache(tmp_path / "file" / "cache")
    found.put("k", PROGRAM)
    assert found.get("k") is None


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC])
def test_a_read_only_or_full_disk_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    store = opened(tmp_path / "c")
    store.put("kept", PROGRAM)

    def fail(*_: object, **__: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", fail)
    with pytest.warns(CoresidentWarning, match=os.strerror(code)):
        store.put("a", PROGRAM)
    store.put("b", PROGRAM)
    monkeypatch.undo()
    assert same(store.get("kept"))
    assert os.listdir(tmp_path / "c") == ["kept.cres"]


def test_the_longest_unused_go_first(tmp_path: Path) -> None:
    store = opened(tmp_path / "c")
    store.put("a", PROGRAM)
    size = (tmp_path / "c" / "a.cres").stat().st_size
    store = opened(tmp_path / "c", limit_bytes=3 * size)
    for age, name in enumerate("bc"):
        store.put(name, PROGRAM)
        os.utime(tmp_path / "c" / f"{name}.cres", (time.time() - 50 + age,) * 2)
    os.utime(tmp_path / "c" / "a.cres", (time.time() - 100,) * 2)
    assert same(store.get("a"))  # now the youngest
    store.put("d", PROGRAM)
    assert sorted(os.listdir(tmp_path / "c")) == ["a.cres", "c.cres", "d.cres"]
    opened(tmp_path / "c", limit_bytes=1).put("e", PROGRAM)
    assert os.listdir(tmp_path / "c") == ["e.cres"]


def test_what_interrupted_writers_left_goes(tmp_path: Path) -> None:
    store = opened(tmp_path / "c")
    for name, age in ((".old.cres.1.ab", 9999), (".new.cres.2.cd", 1)):
        (tmp_path / "c" / name).touch()
        os.utime(tmp_path / "c" / name, (time.time() - age,) * 2)
    store.put("k", PROGRAM)
    assert sorted(os.listdir(tmp_path / "c")) == [".new.cres.2.cd", "k.cres"]
    assert store.state().entries == 1


def test_switches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORESIDENT_CACHE_DIR", str(tmp_path / "named"))
    assert opened(cache.default_folder()).folder == tmp_path / "named"
    assert isinstance(cache.open_cache(), cache.DiskCache)
    assert isinstance(cache.open_cache(enabled=False), cache.NoCache)
    monkeypatch.setenv("CORESIDENT_CACHE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(cache.open_cache(), cache.NoCache)
    assert cache.open_cache().state().problem == "switched off"
