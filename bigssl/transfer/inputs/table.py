"""A class per modality: texts, series and sounds as a backbone takes them, and which class is whose."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.kinds.captions import all_captions, is_captioned
from bigssl.data.kinds.text import encode, load_tokenizer
from bigssl.data.sample import Sample
from bigssl.nets.modality import modality_of_type
from bigssl.nets.towers import Tower
from bigssl.transfer import raw
from bigssl.transfer.arriving.sizes import CONFIG, PREPROCESSOR, series_sizes, sound_sizes, text_length
from bigssl.transfer.bags import Grams, character_grams, token_grams
from bigssl.transfer.inputs.base import Input, preprocessor_settings, write_settings
from bigssl.transfer.inputs.pictures import ImageInput

TOKENIZER = "tokenizer_config.json"
UNLIMITED = 10**9  # transformers writes 10^30 where there is no limit
CLASS = "PreTrainedTokenizerFast"  # transformers 5 writes a name of its own, which 4 does not know; both load this one


@dataclass(frozen=True)
class TextInput(Input):
    """length: tokens of a sequence at most, special ones included. The view is input_ids and attention_mask."""

    tokenizer: PreTrainedTokenizerFast
    length: int
    modality, plural, loader = "text", "texts", "AutoTokenizer"
    once = True

    @property
    def described(self) -> str:
        return "Texts: through the `AutoTokenizer` beside the weights, with `truncation=True`."

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
        write_settings(folder / TOKENIZER, settings | {"model_max_length": self.length, "tokenizer_class": CLASS})

    def view(self, sample: Sample) -> dict[str, np.ndarray]:
        """Of its `txt`, or without one of its first caption."""
        if "txt" not in sample.fields and is_captioned(sample):
            return self.tokens(all_captions(sample)[0])
        return super().view(sample)

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

    @property
    def described(self) -> str:
        return """\
Series: float32 [B, length, channels], with length and channels as in `preprocessor_config.json`: the first steps of a
longer one; behind the end of a shorter one and in place of NaN the mean of what was observed of the channel, and the
mask of observed values false there."""

    @classmethod
    def read(cls, folder: Path) -> SeriesInput:
        return cls(*series_sizes(folder, preprocessor_settings(folder, "series")))

    def write(self, folder: Path) -> None:
        sizes = {"length": self.length, "channels": self.channels}
        write_settings(folder / PREPROCESSOR, sizes | {"padding_value": "mean"})

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

    @property
    def described(self) -> str:
        return """\
Sounds: the mean of the channels at the extractor's `sampling_rate`, through the `AutoFeatureExtractor` beside the
weights with `max_length=extractor.max_length, truncation=True, padding="max_length"`."""

    @classmethod
    def read(cls, folder: Path) -> AudioInput:
        return cls(*sound_sizes(folder, preprocessor_settings(folder, "sounds")))

    def write(self, folder: Path) -> None:
        """Settings with which `AutoFeatureExtractor` makes of a sound what the modality makes of the view."""
        write_settings(folder / PREPROCESSOR, {
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
        sounds, heard = batch["audio"], batch["audio_mask"]
        return raw.spectra(sounds, heard) | raw.cepstra_in_parts(sounds, heard, self.rate)


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
