"""What a network takes where the files beside it, written by another program, do not say it as ours do.

| | is taken from | without it |
|---|---|---|
| side of pictures | `crop_size`, else `size` of preprocessor_config.json | `image_size` of config.json, or an error |
| channels of pictures | `num_channels` of config.json | 3 |
| window of deep ones | `window` of preprocessor_config.json, ours alone | none |
| tokens of a text | `model_max_length` of the tokenizer | the positions of the network, at most 512 |
| steps, channels of a series | preprocessor_config.json | `context_length`, `num_input_channels` of config.json |
| rate of sounds | `sampling_rate` of preprocessor_config.json | an error |
| samples of a sound | `max_length` of preprocessor_config.json | 10 seconds |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from bigssl.data.errors import DataError
from bigssl.nets.folders import foreign_numbers
from bigssl.nets.modality.pixels import COLOURS
from bigssl.nets.pool import IMAGE_MEAN, IMAGE_STD

PREPROCESSOR, CONFIG = "preprocessor_config.json", "config.json"
TOKENS = 512  # of a text, where nothing sets a limit
SECONDS = 10  # of a sound
Settings = Mapping[str, Any]


def config_in(folder: Path) -> dict[str, Any]:
    """config.json with the defaults of its network. Raises DataError."""
    try:
        found: dict[str, Any] = AutoConfig.from_pretrained(folder).to_dict()
    except Exception as error:  # transformers raises whatever it met
        raise DataError(f"{folder / CONFIG}: {' '.join(str(error).split())[:300]}") from None
    return found


def image_side(folder: Path, settings: Settings) -> int:
    """Pixels. Raises DataError where nothing says it, or the pictures are no squares."""
    for name in ("crop_size", "size"):
        if (given := settings.get(name)) is not None:
            return _square(folder / PREPROCESSOR, name, given)
    if (given := config_in(folder).get("image_size")) is not None:
        return _square(folder / CONFIG, "image_size", given)
    raise DataError(f"{folder / PREPROCESSOR}: no crop_size, and no size; add {{\"crop_size\": {{\"height\": N, "
                    '"width": N}}, the side of pictures in pixels')  # fmt: skip


def image_channels(folder: Path) -> int:
    """1 or 3. Raises DataError."""
    found = config_in(folder).get("num_channels", COLOURS)
    if found not in (1, COLOURS):
        raise DataError(f"{folder / CONFIG}: num_channels: value {found}; allowed: 1 or {COLOURS}")
    return int(found)


def image_window(folder: Path, settings: Settings) -> tuple[float, float] | None:
    """(low, high) of deep grey pictures. Raises DataError for what is none."""
    match settings.get("window"):
        case None:
            return None
        case [int() | float() as low, int() | float() as high] if low < high:
            return low, high
        case other:
            raise DataError(f"{folder / PREPROCESSOR}: window: value {json.dumps(other)}; allowed: [low, high]")


def _square(file: Path, name: str, given: Any) -> int:
    """Of a number, [height, width], {height, width} or {shortest_edge}."""
    sides = list(given.values()) if isinstance(given, dict) else given if isinstance(given, list) else [given]
    if isinstance(given, dict) and "shortest_edge" in given:
        sides = [given["shortest_edge"]]
    if not sides or len(set(sides)) > 1 or not isinstance(sides[0], int) or sides[0] < 1:
        raise DataError(f"{file}: {name}: value {json.dumps(given)}; allowed: a square, in pixels")
    return int(sides[0])


def text_length(folder: Path) -> int:
    """Tokens, special ones included, that a network has positions for."""
    config = config_in(folder)
    most = config.get("max_position_embeddings") or TOKENS
    return min(TOKENS, most - _first_position(config))


def _first_position(config: Settings) -> int:
    """RoBERTa and its kin count from the one after the padding's."""
    marks = ("roberta", "camembert", "xlm-roberta", "data2vec-text", "mpnet", "ibert")
    after_padding = any(config["model_type"].startswith(mark) for mark in marks)
    return (config.get("pad_token_id") or 0) + 1 if after_padding else 0


def series_sizes(folder: Path, settings: Settings) -> tuple[int, int]:
    """(steps, channels)."""
    if "length" in settings and "channels" in settings:
        return int(settings["length"]), int(settings["channels"])
    config = config_in(folder)
    return int(config["context_length"]), int(config["num_input_channels"])


def sound_sizes(folder: Path, settings: Settings) -> tuple[int, int]:
    """(samples a second, samples of a sound). Raises DataError where nothing says the rate."""
    if "sampling_rate" not in settings:
        raise DataError(f'{folder / PREPROCESSOR}: no sampling_rate; add {{"sampling_rate": N}}, samples a second')
    rate = int(settings["sampling_rate"])
    return rate, int(settings.get("max_length") or SECONDS * rate)


def prepared_otherwise(folder: Path) -> str:
    """What the files beside a network want done to pictures that evaluation does not do, in a sentence; "" where
    there is nothing."""
    said = foreign_numbers(folder)
    return said and (f"{folder.name}: the files beside it ask for pictures with {said}; here they have mean "
                     f"{IMAGE_MEAN} and std {IMAGE_STD} taken off, so that the network may do worse than it can.")
