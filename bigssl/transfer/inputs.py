"""What an exported backbone takes, a class per modality: the fixed view that evaluation has of a sample, the baselines
that have learnt nothing, and the files that tell transformers and `bigssl evaluate` of both.

What is written beside the weights is the view: read again, by us or by transformers, it makes of a sample the same.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bigssl.data.errors import DataError
from bigssl.data.kinds import augment, decode
from bigssl.data.kinds.text import encode, load_tokenizer
from bigssl.data.sample import Sample
from bigssl.nets.modality import modality_of_type
from bigssl.nets.pool import IMAGE_MEAN, IMAGE_STD
from bigssl.nets.towers import Tower
from bigssl.transfer import raw
from bigssl.transfer.arriving.sizes import CONFIG, PREPROCESSOR, image_side, series_sizes, sound_sizes, text_length
from bigssl.transfer.bags import Grams, character_grams, token_grams

TOKENIZER = "tokenizer_config.json"
BICUBIC = 3  # Pillow's number
UNLIMITED = 10**9  # transformers writes 10^30 where there is no limit
CLASS = "PreTrainedTokenizerFast"  # transformers 5 writes a name of its own, which 4 does not know; both load this one


@dataclass(frozen=True)
class Input(ABC):
    """What a backbone of one modality takes. The fields of a subclass are attributes of its towers.

    Attributes:
        modality: a name in `bigssl.nets.modality.MODALITIES`.
        plural: what samples of it are called.
        once: equal contents are one observation, known by what they are, whatever the keys of their samples.
        loader: the class of transformers that loads what `write` writes; "" where it has none.
        described: what the model card says of it.
    """

    modality: ClassVar[str]
    plural: ClassVar[str]
    once: ClassVar[bool] = False
    loader: ClassVar[str]
    described: ClassVar[str]

    @classmethod
    @abstractmethod
    def read(cls, folder: Path) -> Input:
        """What the backbone exported to `folder` takes. Raises DataError."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """The files beside the weights."""

    def view(self, sample: Sample) -> dict[str, np.ndarray]:
        """The sample as evaluation sees it, by the names that the modality has for a batch. Raises DataError."""
        data = decode.field(sample, decode.FIELDS[self.modality])
        try:
            return self._view(data)
        except DataError as error:
            raise DataError(f"{sample.where}: {error}") from error

    @abstractmethod
    def _view(self, data: bytes) -> dict[str, np.ndarray]: ...

    @abstractmethod
    def raws(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Baselines that have learnt nothing, by what they are in words: collated views -> [B, N], uint8 or float32.
        Where there are several, the best one counts."""

    def bags(self) -> list[Grams]:
        """Those that a sample alone does not tell: of `once` inputs, n-grams whose weight depends on all texts."""
        return []

    @property
    def reduced(self) -> str:
        """What a reader of the scorecard has to know of the raw baseline; "" where it is the whole view."""
        return ""


@dataclass(frozen=True)
class ImageInput(Input):
    """size: image side in pixels. The view is image uint8 [3, size, size]: the middle square, shorter side resized.

    A JPEG is decoded whole: what a decoder makes of it at a half or a quarter is not what the exported preprocessor
    makes of it.
    """

    size: int
    modality, plural, loader = "image", "images", "AutoImageProcessor"
    described = """\
Pictures: RGB (transparent ones on white), upright, through the `AutoImageProcessor` beside the weights, which prepares
them as they were when the scorecard was made."""

    @classmethod
    def read(cls, folder: Path) -> ImageInput:
        return cls(image_side(folder, _preprocessor(folder, "images")))

    def write(self, folder: Path) -> None:
        """Settings with which `AutoImageProcessor` makes of an RGB picture exactly the view. To the byte with Pillow;
        where torchvision resizes in its place, it rounds differently.

        The CLIP processor is the one of transformers that does just this; the networks need not be CLIP's.
        """
        _write_json(folder / PREPROCESSOR, {
            "image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True,
            "do_resize": True, "size": {"shortest_edge": self.size}, "resample": BICUBIC,
            "do_center_crop": True, "crop_size": {"height": self.size, "width": self.size},
            "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": [IMAGE_MEAN] * 3, "image_std": [IMAGE_STD] * 3,
        })  # fmt: skip

    def _view(self, data: bytes) -> dict[str, np.ndarray]:
        return {"image": augment.center(decode.image(data), self.size)}

    @property
    def reduced(self) -> str:
        return f"Raw pixels are those of pictures at most {raw.SIDE} pixels a side." if self.size > raw.SIDE else ""

    def raws(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return raw.pixels(batch["image"])


@dataclass(frozen=True)
class TextInput(Input):
    """length: tokens of a sequence at most, special ones included. The view is input_ids and attention_mask."""

    tokenizer: PreTrainedTokenizerFast
    length: int
    modality, plural, loader = "text", "texts", "AutoTokenizer"
    once = True
    described = "Texts: through the `AutoTokenizer` beside the weights, with `truncation=True`."

    @classmethod
    def read(cls, folder: Path) -> TextInput:
        tokenizer = load_tokenizer(folder)
        unlimited = tokenizer.model_max_length > UNLIMITED
        return cls(tokenizer, text_length(folder) if unlimited else int(tokenizer.model_max_length))

    def write(self, folder: Path) -> None:
        """The tokenizer files: without the padding and truncation of an earlier call, and with a limit of its own."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.save_pretrained(folder)
        settings = json.loads((folder / TOKENIZER).read_text())
        _write_json(folder / TOKENIZER, settings | {"model_max_length": self.length, "tokenizer_class": CLASS})

    def _view(self, data: bytes) -> dict[str, np.ndarray]:
        return self.tokens(decode.text(data))

    def tokens(self, text: str) -> dict[str, np.ndarray]:
        """The view of a text. Raises DataError."""
        ids, mask = encode(self.tokenizer, text, self.length)
        return {"input_ids": ids, "attention_mask": mask}

    def raws(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def bags(self) -> list[Grams]:
        return [token_grams(self.tokenizer), character_grams()]


@dataclass(frozen=True)
class SeriesInput(Input):
    """length: steps. channels: values per step. The view is series float32 [length, channels], the first steps, and
    series_mask bool, False at NaN and behind the end of a shorter one, where the series is 0."""

    length: int
    channels: int
    modality, plural, loader = "series", "series", ""
    described = """\
Series: float32 [B, length, channels], with length and channels as in `preprocessor_config.json`: the first steps of a
longer one; 0 behind the end of a shorter one and in place of NaN, and the mask of observed values false there."""

    @classmethod
    def read(cls, folder: Path) -> SeriesInput:
        return cls(*series_sizes(folder, _preprocessor(folder, "series")))

    def write(self, folder: Path) -> None:
        _write_json(folder / PREPROCESSOR, {"length": self.length, "channels": self.channels, "padding_value": 0.0})

    def _view(self, data: bytes) -> dict[str, np.ndarray]:
        values = decode.series(data, non_finite="keep")[: self.length]
        if values.shape[1] != self.channels:
            raise DataError(f"series of {values.shape[1]} channels; this backbone takes {self.channels}")
        observed = np.isfinite(values)
        if not observed.any():
            raise DataError(f"series without a finite value in its first {self.length} steps")
        behind = ((0, self.length - len(values)), (0, 0))
        return {"series": np.pad(np.where(observed, values, np.float32(0)), behind),
                "series_mask": np.pad(observed, behind)}

    @property
    def _parts(self) -> int:
        return max(1, min(self.length, raw.WIDTH // self.channels))

    @property
    def reduced(self) -> str:
        return f"Raw series are the means of {self._parts} parts of each." if self._parts < self.length else ""

    def raws(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return raw.values(batch["series"], batch["series_mask"], self._parts)


@dataclass(frozen=True)
class AudioInput(Input):
    """rate: samples per second. length: samples. The view is audio float32 [length], one channel, the beginning of a
    longer one, and audio_mask int64, 0 in the silence behind a shorter one."""

    rate: int
    length: int
    modality, plural, loader = "audio", "sounds", "AutoFeatureExtractor"
    described = """\
Sounds: the mean of the channels at the extractor's `sampling_rate`, through the `AutoFeatureExtractor` beside the
weights with `max_length=extractor.max_length, truncation=True, padding="max_length"`."""

    @classmethod
    def read(cls, folder: Path) -> AudioInput:
        return cls(*sound_sizes(folder, _preprocessor(folder, "sounds")))

    def write(self, folder: Path) -> None:
        """Settings with which `AutoFeatureExtractor` makes of a sound what the modality makes of the view."""
        _write_json(folder / PREPROCESSOR, {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1, "sampling_rate": self.rate,
            "padding_side": "right", "padding_value": 0.0, "do_normalize": True, "return_attention_mask": True,
            "max_length": self.length,
        })  # fmt: skip

    def _view(self, data: bytes) -> dict[str, np.ndarray]:
        return self.heard(decode.audio(data, rate=self.rate, mono=True)[0][:, 0])

    def heard(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """The view of a sound, float32 [T] at `rate`."""
        values = values[: self.length]
        mask = (np.arange(self.length) < len(values)).astype(np.int64)
        return {"audio": np.pad(values, (0, self.length - len(values))), "audio_mask": mask}

    def raws(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return raw.spectra(batch["audio"], batch["audio_mask"])


INPUTS: dict[str, type[Input]] = {kind.modality: kind for kind in (ImageInput, TextInput, SeriesInput, AudioInput)}


def input_of(tower: Tower) -> Input:
    """What a tower takes."""
    kind = INPUTS[tower.modality]
    return kind(**{field.name: getattr(tower, field.name) for field in fields(kind)})


def exported_input(folder: Path) -> Input:
    """What the backbone exported to `folder` takes. Raises DataError."""
    try:
        kind = json.loads((folder / CONFIG).read_text())["model_type"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder / CONFIG}: no backbone ({error}); run the training command again") from None
    if (row := modality_of_type(kind)) is None:
        raise DataError(f"{folder / CONFIG}: model_type {kind!r} is of no modality that this version knows")
    return INPUTS[row.name].read(folder)


def _preprocessor(folder: Path, what: str) -> dict[str, Any]:
    path = folder / PREPROCESSOR
    if not path.is_file():
        raise DataError(f"{path}: no such file; the backbone takes no {what}, or was exported by an older version: run "
                        "the training command again")
    settings: dict[str, Any] = json.loads(path.read_text())
    return settings


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
