"""Pictures and arrays on disk."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coresident.errors import ImageError, ResourceError
from coresident.vision import images


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((7, 13), np.uint8), ((7, 13, 3), np.uint8), ((7, 13), np.uint16)]
)
def test_written_pictures_are_read_back(tmp_path: Path, shape: tuple[int, ...], dtype: type) -> None:
    picture = _rng().integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)
    images.write_picture(tmp_path / "a.png", picture)
    found = images.read_picture(tmp_path / "a.png")
    assert found.dtype == dtype
    assert np.array_equal(found, picture)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("suffix", [".bmp", ".tif", ".jpg", ".png"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (5, 4), (200, 100, 50)).save(tmp_path / f"a{suffix}")
    found = images.read_picture(tmp_path / f"a{suffix}")
    assert found.shape == (4, 5, 3)
    assert np.abs(found.astype(int) - (200, 100, 50)).max() < 6


@pytest.mark.parametrize(
    ("mode", "shape"), [("1", (4, 5)), ("LA", (4, 5)), ("P", (4, 5, 3)), ("RGBA", (4, 5, 3))]
)
def test_modes(tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    Image.new("RGB", (5, 4), "white").convert(mode).save(tmp_path / "a.png")
    found = images.read_picture(tmp_path / "a.png")
    assert found.dtype == np.uint8
    assert found.shape == shape
    assert found.min() == 255


def test_float_and_wide_integers(tmp_path: Path) -> None:
    values = _rng().standard_normal((4, 5), dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "f.tif")
    assert np.array_equal(images.read_picture(tmp_path / "f.tif"), values)
    Image.fromarray(np.full((4, 5), 65535, np.int32)).save(tmp_path / "i.tif")
    assert images.read_picture(tmp_path / "i.tif").dtype == np.uint16
    Image.fromarray(np.full((4, 5), 65536, np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(ImageError, match="beyond 16 bits"):
        images.read_picture(tmp_path / "wide.tif")


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned a quarter to the left
    picture.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(images.read_picture(tmp_path / "a.png"), np.rot90(np.asarray(picture), -1))


def test_stacks_are_refused(tmp_path: Path) -> None:
    page = Image.new("L", (5, 4))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page, page])
    with pytest.raises(ImageError, match="stack of 3"):
        images.read_picture(tmp_path / "a.tif")


def _png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(20_000, 10_000), (100_000, 100_000)])
def test_decompression_bombs_are_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "a.png").write_bytes(_png(*size))
    with pytest.raises(ImageError, match="pixels"):
        images.read_picture(tmp_path / "a.png")


def test_broken_pictures_are_image_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(ImageError, match="no such file"):
        images.read_picture(path)
    stream = io.BytesIO()
    Image.fromarray(_rng().integers(0, 255, (40, 50, 3)).astype(np.uint8)).save(stream, "PNG")
    content = stream.getvalue()
    for length in (0, 1, 20, 60, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(ImageError) as caught:
            images.read_picture(path)
        assert caught.value.file == path


def test_damaged_pictures_never_raise_anything_else(tmp_path: Path) -> None:
    picture = Image.fromarray(_rng().integers(0, 255, (16, 17, 3)).astype(np.uint8))
    for kind in ("png", "jpg", "tif", "bmp"):
        stream = io.BytesIO()
        picture.save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()))
        content = stream.getvalue()
        for seed in range(60):
            rng = np.random.default_rng(seed)
            damaged = np.frombuffer(content, np.uint8).copy()
            damaged[rng.integers(0, min(len(damaged), 200), 3)] = rng.integers(0, 256, 3)
            path = tmp_path / f"a.{kind}"
            path.write_bytes(damaged.tobytes())
            try:
                images.read_picture(path)
            except ImageError:
                pass
            except Exception as error:
                pytest.fail(f"{kind}, seed {seed}: {error!r}")


def test_what_is_no_picture_is_not_written(tmp_path: Path) -> None:
    for array in (np.zeros((4, 5), np.float32), np.zeros((4, 5, 2), np.uint8), np.zeros((0, 5), np.uint8)):
        with pytest.raises(ImageError):
            images.write_picture(tmp_path / "a.png", array)
    with pytest.raises(ResourceError):
        images.write_picture(tmp_path / "missing" / "a.png", np.zeros((4, 5), np.uint8))
    assert not list(tmp_path.iterdir())


def test_arrays_are_read_back(tmp_path: Path) -> None:
    arrays = {
        "file": _rng().standard_normal((3, 4), dtype=np.float32),
        "a/b": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "scalar": np.array(True),
        "empty": np.zeros((0, 3), np.float16),
    }
    images.write_arrays(tmp_path / "a.npz", arrays)
    found = images.read_arrays(tmp_path / "a.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
        images.write_arrays(tmp_path / "a.npy", {name: array})
        assert np.array_equal(images.read_arrays(tmp_path / "a.npy")[""], array)
    with pytest.raises(ImageError, match="one array"):
        images.write_arrays(tmp_path / "a.npy", arrays)


def test_arrays_that_lie_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((10, 10), np.float32))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"(10, 10), }" + b" " * 8, b"(10000000000, 10), }"[:19]))
    with pytest.raises(ImageError):
        images.read_arrays(path)
    for cut in (content[:-1], content[:20], b""):
        path.write_bytes(cut)
        with pytest.raises(ImageError):
            images.read_arrays(path)
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(ImageError, match="objects"):
        images.read_arrays(path)
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ImageError):
        images.read_arrays(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(ImageError, match="no arrays"):
        images.read_arrays(path)
