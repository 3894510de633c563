"""Bytes of a flac, wav or ogg field -> float32 [T, C]. Needs soundfile (the extra `audio`)."""

from __future__ import annotations

import io
import math
from types import ModuleType

import numpy as np

from bigssl.config import limits
from bigssl.data.errors import DataError

_OF_WAV = {1: "PCM", 2: "Microsoft ADPCM", 3: "float", 6: "A-law", 7: "μ-law", 0x50: "MPEG", 0x55: "MP3", 0x161: "WMA",
           0xFF: "AAC", 0x2000: "AC-3"}  # fmt: skip
_OF_OGG = {b"\x01vorbis": "Vorbis", b"OpusHead": "Opus", b"\x7fFLAC": "FLAC", b"Speex": "Speex",
           b"\x80theora": "Theora"}  # fmt: skip
_UNKNOWN = 0xFFFFFFFF  # length in a wav that was written to a pipe


def audio(data: bytes, *, rate: int | None = None, mono: bool = False) -> tuple[np.ndarray, int]:
    """(float32 [T, C] in -1..1, samples per second).

    Args:
        rate: resample to this rate: `scipy.signal.resample_poly` (polyphase, Kaiser window of beta 5), ratio of the
            rates in lowest terms, ceil(T · rate / stored rate) samples.
        mono: replace the channels by their mean, before resampling.

    Raises:
        DataError: what is no audio, is cut off, holds NaN, or claims more than the limit `audio_values`; soundfile is
            missing.
    """
    values, stored = _read(data)
    if not np.isfinite(values).all():
        raise DataError(f"audio holds {int((~np.isfinite(values)).sum())} values that are not finite")
    if mono:
        values = values.mean(1, keepdims=True)
    return (values, stored) if rate in (None, stored) else (resample(values, stored, int(rate or 0)), int(rate or 0))


def resample(values: np.ndarray, stored: int, rate: int) -> np.ndarray:
    """float32 [T, C] at `stored` samples per second -> the same at `rate`; see `audio`."""
    from scipy.signal import resample_poly  # takes a second to import

    common = math.gcd(stored, rate)
    changed: np.ndarray = resample_poly(values, rate // common, stored // common, axis=0)
    return changed.astype(np.float32, copy=False)


def _read(data: bytes) -> tuple[np.ndarray, int]:
    soundfile = _library()
    _refuse_cut_off(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            frames, channels, rate = file.frames, file.channels, file.samplerate
            if refused := limits.over("audio_values", frames * channels):
                raise DataError(f"audio of {frames} frames of {channels} channels refused: {refused}")
            values = file.read(dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        why, codec = str(error).rpartition(">: ")[2], codec_of(data)
        missing = f": {codec}, of which libsndfile {soundfile.__libsndfile_version__} has no decoder" * bool(codec)
        raise DataError(f"undecodable audio of {len(data)} bytes ({why.rstrip('.')}{missing})") from error
    if len(values) != frames or frames == 0:
        raise DataError(f"undecodable audio of {len(data)} bytes ({len(values)} of {frames} frames)")
    return values, rate


def codec_of(data: bytes) -> str:
    """What the header of a wav or an ogg names as its codec; "" where it says nothing that is known."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        place = data.find(b"fmt ", 12, 4096)
        number = int.from_bytes(data[place + 8 : place + 10], "little")
        return _OF_WAV.get(number, f"codec 0x{number:04x}") if place > 0 else ""
    if data[:4] == b"OggS" and len(data) > 26:
        begin = data[27 + data[26] :][:8]
        return next((name for mark, name in _OF_OGG.items() if begin.startswith(mark)), "")
    return "MP3" if data[:3] == b"ID3" else "MP4" if data[4:8] == b"ftyp" else ""


def _library() -> ModuleType:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: the package without libsndfile
        raise DataError(f"audio needs soundfile ({error}); run `pip install 'bigssl[audio]'`") from error
    return soundfile


def _refuse_cut_off(data: bytes) -> None:
    """libsndfile reads what is left of a wav or ogg as if it had ended there; only flac knows its length."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        missing = _missing_of_wav(data)
        if missing > 0:
            raise DataError(f"undecodable audio of {len(data)} bytes (cut off: {missing} bytes of wav are missing)")
    elif data[:4] == b"OggS" and not _ogg_ends(data):
        raise DataError(f"undecodable audio of {len(data)} bytes (cut off: no last page of the ogg stream)")


def _missing_of_wav(data: bytes) -> int:
    place = 12
    while place + 8 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if name == b"data":
            return 0 if size == _UNKNOWN else place + 8 + size - len(data)
        place += 8 + size + size % 2
    return place + 8 - len(data)


def _ogg_ends(data: bytes) -> bool:
    """Whether the last page is whole and says that it is the last (RFC 3533: flag 4 of byte 5, table of sizes at
    27)."""
    page = data[data.rfind(b"OggS") :]
    segments = page[26] if len(page) > 26 else 0
    whole = len(page) >= 27 + segments and len(page) >= 27 + segments + sum(page[27 : 27 + segments])
    return whole and bool(page[5] & 4)
