"""Speaks captions of the emoji table with espeak-ng and writes them, with a picture each, as files of samples.

    python launch/speak_demo.py captions.tsv IMAGES EMOJI OUT      (EMOJI: the packed pictures, whose split counts; a
                                                                    minute)

OUT/train has training emoji in three voices, OUT/val other emoji in a fourth, OUT/words those of the first part that
are also said by the fourth: words that were heard, from a voice that was not. The same espeak-ng, libopus and libwebp
give the same bytes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from bigssl.data.kinds.audio import resample
from bigssl.data.kinds.sound.windows import trimmed
from bigssl.data.shards.index import DatasetIndex

RATE = 16_000
VOICES = {"america": ("en-us", 165), "britain": ("en-gb+f2", 150), "scotland": ("en-gb-scotland+m3", 185)}
UNHEARD = {"caribbean": ("en-029+f4", 155)}
"""By name, espeak-ng's voice and its words per minute."""
EMOJI = {"train": 320, "val": 90, "words": 160}
LONGEST = 13  # characters of a caption
OPUS = 0.984  # of libsndfile, from 256 kbit/s at 0 to 6 at 1: 10
WEBP = 45  # quality
_SPOKEN = re.compile(r"[A-Za-z][A-Za-z -]*")
_POLYNOMIAL = 0x04C11DB7


def spoken(table: Path, training: set[str]) -> dict[str, list[dict[str, str]]]:
    """Rows of the table that are short and said of one emoji only, by the side of the split, in the order of a hash."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    said = [row["caption"].lower() for row in rows]
    fit = [row for row in rows if _SPOKEN.fullmatch(row["caption"]) and len(row["caption"]) <= LONGEST
           and said.count(row["caption"].lower()) == 1]  # fmt: skip
    fit.sort(key=lambda row: hashlib.blake2b(row["code"].encode()).hexdigest())
    sides = {"train": [row for row in fit if row["code"] in training]}
    sides["val"] = [row for row in fit if row["code"] not in training]
    return {side: rows[: EMOJI[side]] for side, rows in sides.items()}


def speak(text: str, voice: str, speed: int) -> np.ndarray:
    """float32 [T] at RATE, without the silence before and behind."""
    wav = subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "--stdout", text], check=True,
                         capture_output=True).stdout  # fmt: skip
    values, stored = soundfile.read(io.BytesIO(as_long_as_it_is(wav)), dtype="float32", always_2d=True)
    return trimmed(resample(values, stored, RATE), RATE)[:, 0]


def as_long_as_it_is(wav: bytes) -> bytes:
    """A wav that was written to a pipe, with the lengths that its header could not know."""
    return wav[:4] + (len(wav) - 8).to_bytes(4, "little") + wav[8:40] + (len(wav) - 44).to_bytes(4, "little") + wav[44:]


def opus(values: np.ndarray) -> bytes:
    """Opus in Ogg. libsndfile numbers each stream at random: here all are 0."""
    file = io.BytesIO()
    soundfile.write(file, values, RATE, format="OGG", subtype="OPUS", compression_level=OPUS)
    return b"".join(unnumbered(page) for page in pages(file.getvalue()))


def pages(ogg: bytes) -> list[bytes]:
    """The pages of an Ogg stream (RFC 3533)."""
    found, place = [], 0
    while place < len(ogg):
        table = ogg[place + 27 : place + 27 + ogg[place + 26]]
        end = place + 27 + len(table) + sum(table)
        found.append(ogg[place:end])
        place = end
    return found


def unnumbered(page: bytes) -> bytes:
    """The page with serial number 0 and the checksum that belongs to it."""
    page = page[:14] + bytes(4) + page[18:22] + bytes(4) + page[26:]
    return page[:22] + checksum(page).to_bytes(4, "little") + page[26:]


def checksum(page: bytes) -> int:
    """CRC-32 of Ogg: polynomial 04c11db7, from 0, no bit turned."""
    register = 0
    for byte in page:
        register ^= byte << 24
        for _ in range(8):
            register = (register << 1) ^ (_POLYNOMIAL if register & 0x80000000 else 0)
        register &= 0xFFFFFFFF
    return register


def picture(path: Path) -> bytes:
    """WebP, half as large as the JPEG."""
    file = io.BytesIO()
    Image.open(path).convert("RGB").save(file, "WEBP", quality=WEBP, method=6)
    return file.getvalue()


def write(folder: Path, row: dict[str, str], name: str, voice: tuple[str, int], shown: bytes) -> None:
    """The files of a sample: ogg, txt, json and webp."""
    facts = {"code": row["code"], "category": row["category"], "subcategory": row["subcategory"], "voice": name}
    fields = {"ogg": opus(speak(row["caption"], *voice)), "txt": row["caption"].encode(),
              "json": json.dumps(facts, separators=(",", ":"), sort_keys=True).encode(), "webp": shown}  # fmt: skip
    for field, data in fields.items():
        (folder / f"{row['code']}-{name}.{field}").write_bytes(data)


def main(table: str, images: str, emoji: str, out: str) -> None:
    """See above."""
    index = DatasetIndex.load(f"{emoji}/train")
    training = {index.entry(number)[1].rpartition("-")[0] for number in range(len(index))}
    sides = spoken(Path(table), training)
    for part, rows, voices in (("train", sides["train"], VOICES), ("val", sides["val"], UNHEARD),
                               ("words", sides["train"][: EMOJI["words"]], UNHEARD)):  # fmt: skip
        folder = Path(out, part)
        folder.mkdir(parents=True, exist_ok=True)
        for row in rows:
            shown = picture(Path(images, f"{row['code']}.google.jpg"))
            for name, voice in voices.items():
                write(folder, row, name, voice, shown)


if __name__ == "__main__":
    main(*sys.argv[1:])
