"""What a program holds -> the view that evaluation has of it."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bigssl.data.errors import DataError
from bigssl.data.kinds import augment, decode, pictures
from bigssl.data.sample import Sample
from bigssl.transfer.inputs import AudioInput, ImageInput, Input, TextInput

ALLOWED = {
    "image": "PIL pictures, paths of pictures, arrays uint8 [H, W, 3] or [H, W], deep grey ones [H, W]",
    "text": "strings, Paths of UTF-8 files",
    "series": "arrays [T, C] or [T], paths of .npy",
    "audio": "arrays [T] or [T, C] at the network's rate, paths of flac, wav or ogg",
}


def given_view(takes: Input, item: Any, number: int) -> dict[str, np.ndarray]:
    """The view of `item`, the `number`-th of its list, as `Input.view` has it of the same thing in a shard.

    A string is the text itself where the network takes texts, else a path. Pictures of any mode become RGB or grey,
    whatever the network takes, as `bigssl.data.kinds.pictures.as_shown` says. Of sounds the channels' mean is taken.
    Raises DataError.
    """
    try:
        if isinstance(takes, TextInput) and isinstance(item, str):
            return takes.tokens(item)
        if isinstance(item, str | os.PathLike):
            return _of_file(takes, Path(item))
        if isinstance(takes, ImageInput) and isinstance(item, Image.Image):
            return _of_picture(takes, item)
        if isinstance(item, str | bytes) or isinstance(takes, TextInput) or not hasattr(item, "__array__"):
            raise DataError(f"a {type(item).__name__}")
        return _of_array(takes, np.asarray(item))
    except DataError as error:
        raise DataError(f"item {number}: {error}; this network takes {ALLOWED[takes.modality]}") from error


def load_once(item: Any) -> None:
    """To be called by one thread, before several take views of items: a picture may stand in a list twice, or share its
    open file with another. What is wrong with it, `given_view` says."""
    if isinstance(item, Image.Image):
        with suppress(DataError):
            pictures.read_all(item)


def _of_file(takes: Input, path: Path) -> dict[str, np.ndarray]:
    try:
        data = path.expanduser().read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    # by content: the first field of the modality stands for all of them
    return takes.view(Sample(str(path), {decode.FIELDS[takes.modality][0]: data}, 0, 0, "", ""))


def _of_picture(takes: ImageInput, picture: Image.Image) -> dict[str, np.ndarray]:
    shown = pictures.as_shown(picture, mode=takes.mode, window=takes.window)
    return {"image": augment.center(shown, takes.size)}


def _of_array(takes: Input, values: np.ndarray) -> dict[str, np.ndarray]:
    said = f"an array {values.dtype}{list(values.shape)}"
    if isinstance(takes, ImageInput):
        deep = values.ndim == 2 and values.dtype.kind in "iuf" and values.dtype != np.uint8
        if deep and values.dtype != np.uint16:
            values = values.astype(np.float32)  # of which Pillow makes a picture, as of bytes and of uint16
        shown = values.dtype == np.uint8 and values.ndim > 1 and values.shape[2:] in ((), (3,))
        if not (deep or shown) or not values.size:
            raise DataError(said)
        return _of_picture(takes, Image.fromarray(np.ascontiguousarray(values)))
    if values.dtype.kind not in "iuf" or values.ndim not in (1, 2) or not values.size:
        raise DataError(said)
    if isinstance(takes, AudioInput):
        if not np.isfinite(values).all() or values.dtype.kind != "f":
            raise DataError(f"{said}: a sound is finite float values, -1 to 1")
        return takes.heard((values if values.ndim == 1 else values.mean(1)).astype(np.float32))
    stored = io.BytesIO()
    np.save(stored, values, allow_pickle=False)
    return takes.view(Sample("array", {"npy": stored.getvalue()}, 0, 0, "", ""))
