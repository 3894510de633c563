"""What an exported backbone takes: the picture size or the tokenizer and length it was trained with, and the files that
tell transformers and `bigssl evaluate` of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from bigssl.data.errors import DataError
from bigssl.data.kinds.text import load_tokenizer
from bigssl.nets.pool import IMAGE_MEAN, IMAGE_STD

PREPROCESSOR, TOKENIZER = "preprocessor_config.json", "tokenizer_config.json"
BICUBIC = 3  # Pillow's number
UNLIMITED = 10**9  # transformers writes 10^30 where there is no limit
CLASS = "PreTrainedTokenizerFast"  # transformers 5 writes a name of its own, which 4 does not know; both load this one


@dataclass(frozen=True)
class ImageInput:
    """size: image side in pixels."""

    size: int

    def write(self, folder: Path) -> None:
        _write_json(folder / PREPROCESSOR, image_preprocessor(self.size))


@dataclass(frozen=True)
class TextInput:
    """length: tokens of a sequence at most, special ones included."""

    tokenizer: PreTrainedTokenizerFast
    length: int

    def write(self, folder: Path) -> None:
        """The tokenizer files: without the padding and truncation of an earlier call, and with a limit of its own."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(folder)
        settings = json.loads((folder / TOKENIZER).read_text())
        _write_json(folder / TOKENIZER, settings | {"model_max_length": self.length, "tokenizer_class": CLASS})


Input = ImageInput | TextInput


def image_preprocessor(size: int) -> dict[str, Any]:
    """Settings with which `AutoImageProcessor` makes of an RGB picture exactly what evaluation makes of it
    (`bigssl.data.kinds.augment.center`, `bigssl.nets.pool.normalise`): shorter side to `size`, bicubic, middle square.
    To the byte with Pillow; where torchvision resizes in its place, it rounds differently.

    The CLIP processor is the one of transformers that does just this; the networks need not be CLIP's.
    """
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True, "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True,
        "size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size},
        "resample": BICUBIC,
        "rescale_factor": 1 / 255, "image_mean": [IMAGE_MEAN] * 3, "image_std": [IMAGE_STD] * 3,
    }


def image_size(folder: Path) -> int:
    """Image side in pixels of an exported image backbone. Raises DataError."""
    path = folder / PREPROCESSOR
    if not path.is_file():
        raise DataError(f"{path}: no such file; the backbone takes no images, or was exported by an older version: run "
                        "the training command again")
    return int(json.loads(path.read_text())["crop_size"]["height"])


def text_input(folder: Path) -> TextInput:
    """Tokenizer and length of an exported text backbone. Raises DataError."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.model_max_length > UNLIMITED:
        raise DataError(f"{folder / TOKENIZER}: no model_max_length; the export is of an older version: run the "
                        "training command again")
    return TextInput(tokenizer, int(tokenizer.model_max_length))


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
