"""Pictures and arrays on disk: read within bounds, written whole or not at all."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from coresident.errors import Error, ImageError
from coresident.runtime.files import write_atomically

Array = np.ndarray[Any, Any]

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
"""Extensions of the pictures that are read."""
ARRAYS = (".npy", ".npz")
"""Extensions of the array files that are read and written."""
MOST_PIXELS = 178_956_970
"""A picture of more pixels is refused as a decompression bomb (Pillow's own limit)."""
MOST_BYTES = 1 << 34
"""An array file that unpacks to more is refused."""

_KEPT = {"L": np.uint8, "RGB": np.uint8, "F": np.float32}
_SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")


def read_picture(path: str | os.PathLike[str]) -> Array:
    """Read a picture, turned upright as its EXIF orientation says.

    Returns:
        uint8 [H, W] or [H, W, 3] (red, green, blue; alpha is dropped, palettes are resolved);
        uint16 [H, W] for grey of 16 bits; float32 [H, W] for grey of floats.

    Raises:
        ImageError: it is missing, damaged, larger than `MOST_PIXELS`, a stack of several, or of integers
            beyond 16 bits.
    """
    return _read(path, _decoded)


def read_mask(path: str | os.PathLike[str]) -> Array:
    """Read a picture of labels, turned upright: grey levels, or the indices of a palette.

    Returns:
        uint8 or uint16 [H, W].

    Raises:
        ImageError: as `read_picture`, and for colours and floats.
    """
    return _read(path, _decoded_mask)


def _read(path: str | os.PathLike[str], decoded: Callable[[Image.Image, object], Array]) -> Array:
    with _decoding("picture", path):
        try:
            with Image.open(path) as picture:
                return decoded(picture, path)
        except Image.DecompressionBombError:
            raise ImageError(f"the picture has more than {MOST_PIXELS} pixels", file=path) from None
        except UnidentifiedImageError:
            raise ImageError(f"not a picture; {', '.join(PICTURES)} can be read", file=path) from None


@contextmanager
def _decoding(what: str, path: object) -> Iterator[None]:
    """Tell whatever a decoder makes of a damaged file as an ImageError.

    Decoders raise all kinds of exceptions then (tokenizer errors of numpy's header parser among them), and
    warn.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Error:
        raise
    except FileNotFoundError:
        raise ImageError("there is no such file", file=path) from None
    except MemoryError:
        raise ImageError(f"there is no memory for the {what}", file=path) from None
    except Exception as error:
        line = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"the {what} can't be read: {line}", file=path) from error


def _decoded_mask(picture: Image.Image, path: object) -> Array:
    if picture.mode != "P":
        levels = _decoded(picture, path)
        if levels.ndim != 2 or levels.dtype.kind != "u":
            raise ImageError("labels are grey levels or the indices of a palette, not colours", file=path)
        return levels
    _check_size(picture, path)
    return np.array(ImageOps.exif_transpose(picture), np.uint8)


def _check_size(picture: Image.Image, path: object) -> None:
    width, height = picture.size
    if width * height > MOST_PIXELS:
        raise ImageError(f"the picture has more than {MOST_PIXELS} pixels", file=path, shape=[height, width])
    if (pages := getattr(picture, "n_frames", 1)) > 1:
        raise ImageError(f"a stack of {pages} pictures; one is wanted (or an array, as .npy)", file=path)


def _decoded(picture: Image.Image, path: object) -> Array:
    _check_size(picture, path)
    upright = ImageOps.exif_transpose(picture)
    if upright.mode in _SIXTEEN:
        return np.asarray(upright).astype(np.uint16)
    if upright.mode == "I":
        values = np.asarray(upright)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError("grey values beyond 16 bits; give the picture as .npy", file=path)
        return values.astype(np.uint16)
    if upright.mode not in _KEPT:
        upright = upright.convert("L" if upright.mode in ("1", "LA", "La") else "RGB")
    return np.array(upright, _KEPT[upright.mode])


def write_picture(path: str | os.PathLike[str], picture: Array) -> None:
    """Write a PNG: uint8 [H, W] or [H, W, 3], or uint16 [H, W].

    Raises:
        ImageError: the array is none of these.
        ResourceError: the disk does not take it.
    """
    grey = picture.ndim == 2 and picture.dtype in (np.uint8, np.uint16)
    colour = picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8
    if not (grey or colour) or picture.size == 0:
        raise ImageError(
            f"{picture.dtype} can't be written as a picture; uint8 [H, W] or [H, W, 3] and uint16 [H, W] can",
            file=path,
            shape=list(picture.shape),
        )
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, format="PNG")
    write_atomically(Path(path), [stream.getbuffer()])


def read_arrays(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Read an array file: all arrays of an .npz by name, the one of an .npy under the name "".

    Raises:
        ImageError: it is missing, damaged, larger than `MOST_BYTES`, or holds Python objects.
    """
    with _decoding("array file", path):
        if Path(path).suffix.lower() == ".npz":
            return _read_archive(path)
        with open(path, "rb") as stream:
            return {"": _read_array(stream, os.fstat(stream.fileno()).st_size, path)}


def _read_archive(path: str | os.PathLike[str]) -> dict[str, Array]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        if sum(member.file_size for member in members) > MOST_BYTES:
            raise ImageError(f"the arrays are larger than {MOST_BYTES >> 30} GiB", file=path)
        for member in members:
            with archive.open(member) as stream:
                name = member.filename.removesuffix(".npy")
                arrays[name] = _read_array(stream, member.file_size, path)
    if not arrays:
        raise ImageError("there are no arrays in the file", file=path)
    return arrays


def _read_array(stream: IO[bytes], size: int, path: object) -> Array:
    """One array from a stream of `size` bytes; its header is not believed before it agrees with them."""
    version = np.lib.format.read_magic(stream)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ImageError(f"version {version[0]}.{version[1]} of the .npy format", file=path)
    shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        raise ImageError("the array holds Python objects, which are not read", file=path)
    elements = 1
    for length in shape:
        elements *= length
    if elements < 0 or elements * dtype.itemsize > min(size - stream.tell(), MOST_BYTES):
        raise ImageError("the array is truncated", file=path, shape=list(shape))
    stream.seek(0)
    return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Array]) -> None:
    """Write arrays: all of them by name to an .npz, exactly one to an .npy.

    Raises:
        ImageError: several arrays for an .npy, or another extension.
        ResourceError: the disk does not take them.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in ARRAYS:
        raise ImageError(f"arrays are written as {' or '.join(ARRAYS)}", file=path)
    if suffix == ".npy" and len(arrays) != 1:
        raise ImageError(f"an .npy holds one array, not {len(arrays)}; .npz holds several", file=path)
    stream = io.BytesIO()
    if suffix == ".npy":
        np.save(stream, next(iter(arrays.values())), allow_pickle=False)
    else:
        # np.savez would take an output called "file" for a parameter of its own.
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    write_atomically(Path(path), [stream.getbuffer()])
