"""The table of modalities: a row says how batches become inputs, and outputs hidden states and features.

    batch ── inputs ── network ── tokens [B, T, D] ── mean over those that count ── features [B, D]

What needs decoding (the view of evaluation, the exported preprocessor) stands by the same names in transfer/inputs/.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig
from bigssl.nets import pool
from bigssl.nets.modality import pixels, vocabulary
from bigssl.nets.modality.kinds import AUDIO, CAUSAL, ENCODER_DECODER, IMAGE, OBSERVED, SEGMENTS, SERIES, TEXT
from bigssl.nets.norm import has_batch_norm

Batch = Mapping[str, Tensor]
Inputs = dict[str, Any]
Tokens = tuple[Tensor, Tensor | None]


class Modality(ABC):
    """A row of the table.

    Attributes:
        name: as in MODALITIES.
        takes: what a network of it sees, in words.
        fields: recipe fields that a backbone of it needs, with what each is; the first tells it from the others.
        optional: those that it may have beside them.
        kinds: transformers model types that serve.
        batch: name of the collated samples in a batch.
        mask: name of what tells real from filled up in a batch; it may be left out (all is real).
        main: transformers' name of the main input.
    """

    name: ClassVar[str]
    takes: ClassVar[str]
    fields: ClassVar[dict[str, str]]
    optional: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[tuple[str, ...]]
    batch: ClassVar[str]
    mask: ClassVar[str | None] = None
    main: ClassVar[str]

    @property
    def described(self) -> str:
        """ "an image backbone (with size)" """
        article = "an" if self.name[0] in "aeiou" else "a"
        return f"{article} {self.name} backbone (with {' and '.join(self.fields)})"

    @abstractmethod
    def settings(self, where: str, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast | None,
                 defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the transformers configuration that follow from the recipe's, in place of `defaults`, those of its
        class. Raises ConfigError where `config.config` says something else."""

    @abstractmethod
    def trial(self, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast | None) -> Inputs:
        """A network's inputs for two samples of the greatest size."""

    def check(self, where: str, model: PreTrainedModel, config: BackboneConfig,  # noqa: B027 - most allow all
              tokenizer: PreTrainedTokenizerFast | None) -> None:
        """Refuse a network that would take the sizes, and not mean what it should. Raises ConfigError."""

    @abstractmethod
    def inputs(self, model: PreTrainedModel, batch: Batch) -> Inputs:
        """Collated samples on the model's device -> what the model is called with, in its dtype."""

    @abstractmethod
    def tokens(self, model: PreTrainedModel, inputs: Inputs, hidden: Tensor) -> Tokens:
        """`last_hidden_state` -> tokens [B, T, D], and which count, [B, T] (None: all)."""

    def run(self, model: PreTrainedModel, inputs: Inputs) -> Tokens:
        """Tokens [B, T, D] of a pass, and which count."""
        return self.tokens(model, inputs, model(**inputs).last_hidden_state)

    def hidden(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Hidden states [B, T, D]: patches of a picture without class and register tokens (positions of a map, row by
        row), tokens of a text, patches of a series channel by channel, frames of a sound."""
        return self.run(model, self.inputs(model, batch))[0]

    def features(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Features [B, D], what probes, losses and exports all mean by "the embedding": the mean of the hidden states
        that do not stand for padding."""
        return pool.mean_of(*self.run(model, self.inputs(model, batch)))

    def _values(self, batch: Batch) -> Tensor:
        if self.batch not in batch:
            there = ", ".join(sorted(batch)) or "nothing"
            raise RuntimeError(f"{self.described} takes {self.batch!r} from a batch; it holds {there}")
        return batch[self.batch]


class _Image(Modality):
    """Batches: image uint8 [B, C, H, W], C = 3, or 1 where the network takes one channel; of another side than the
    network's (small crops) where its kind takes any."""

    name, takes, kinds, batch, main = "image", "pictures", IMAGE, "image", "pixel_values"
    fields: ClassVar = {"size": "its image side in pixels, e.g. 224"}
    optional = ("channels", "window")

    def settings(self, where: str, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast | None,
                 defaults: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if config.channels is not None and "num_channels" in defaults:
            found["num_channels"] = config.channels
        if not config.size or "image_size" not in defaults or "image_size" in config.config:
            return found  # another size of the network's own may work; the trial tells
        sides = isinstance(defaults["image_size"], list | tuple)
        return found | {"image_size": [config.size, config.size] if sides else config.size}

    def trial(self, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast | None) -> Inputs:
        assert config.size is not None
        return {self.main: torch.zeros(2, config.channels or pixels.COLOURS, config.size, config.size)}

    def check(self, where: str, model: PreTrainedModel, config: BackboneConfig,
              tokenizer: PreTrainedTokenizerFast | None) -> None:
        pixels.check_channels(where, model, config)
        pixels.check_patches(where, model, config)

    def inputs(self, model: PreTrainedModel, batch: Batch) -> Inputs:
        values = pool.normalise(self._values(batch)).to(model.dtype)
        if has_batch_norm(model):
            values = values.contiguous(memory_format=torch.channels_last)
        return {self.main: values} | ({INTERPOLATED: True} if _of_another_side(model, values) else {})

    def tokens(self, model: PreTrainedModel, inputs: Inputs, hidden: Tensor) -> Tokens:
        if hidden.dim() == 4:  # [B, D, h, w]
            return hidden.flatten(2).transpose(1, 2), None
        return hidden[:, pool.leading_tokens(model, inputs[self.main], hidden) :], None


INTERPOLATED = "interpolate_pos_encoding"  # how transformers is told to stretch a network's positions over a picture


def _of_another_side(model: PreTrainedModel, pixels: Tensor) -> bool:
    """Whether `pixels` [B, C, H, W] need positions that a network has for another side, and stretches when told to."""
    own = getattr(model.config, "image_size", None)
    sides = list(own) if isinstance(own, list | tuple) else [own, own]
    return sides != list(pixels.shape[-2:]) and INTERPOLATED in inspect.signature(model.forward).parameters


class _Text(Modality):
    """Batches: input_ids, attention_mask and, of pairs of texts, token_type_ids, int64 [B, T]."""

    name, takes, kinds, batch, main = "text", "tokens", (*TEXT, *CAUSAL, *ENCODER_DECODER), "input_ids", "input_ids"
    fields: ClassVar = {"tokenizer": "its tokenizer.json", "length": "its tokens per sequence, e.g. 128"}
    mask = "attention_mask"

    def settings(self, where: str, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast | None,
                 defaults: Mapping[str, Any]) -> dict[str, Any]:
        assert tokenizer is not None
        size = {} if "vocab_size" in config.config else {"vocab_size": vocabulary.rows_for(tokenizer)}
        return size | vocabulary.special_ids(where, config.config, tokenizer, defaults)

    def trial(self, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast | None) -> Inputs:
        assert config.length is not None and tokenizer is not None
        ids = torch.full((2, config.length), vocabulary.no_padding(tokenizer))
        # of another mask than one that is ready, transformers looks at the numbers
        ready = ids.device.type == "meta"
        mask = torch.zeros(2, 1, config.length, config.length) if ready else torch.ones_like(ids)
        return {self.main: ids, "attention_mask": mask} | self._no_cache(config.type)

    def check(self, where: str, model: PreTrainedModel, config: BackboneConfig,
              tokenizer: PreTrainedTokenizerFast | None) -> None:
        assert tokenizer is not None
        vocabulary.check_vocabulary(where, model, config, tokenizer)

    def inputs(self, model: PreTrainedModel, batch: Batch) -> Inputs:
        ids = self._values(batch)
        mask = batch.get("attention_mask")
        found = {self.main: ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}
        found |= {SEGMENTS: batch[SEGMENTS]} if SEGMENTS in batch else {}
        return found | self._no_cache(model.config.model_type)

    def _no_cache(self, kind: str) -> Inputs:
        """Decoders keep all keys and values for a next token that does not come."""
        return {"use_cache": False} if kind in CAUSAL else {}

    def run(self, model: PreTrainedModel, inputs: Inputs) -> Tokens:
        """Of a network that reads and writes, what it reads."""
        reads = model.get_encoder() if model.config.model_type in ENCODER_DECODER else model
        return self.tokens(model, inputs, reads(**inputs).last_hidden_state)

    def tokens(self, model: PreTrainedModel, inputs: Inputs, hidden: Tensor) -> Tokens:
        mask = inputs["attention_mask"]
        return hidden, mask if mask.dim() == 2 else None


class _Series(Modality):
    """Batches: series float32 [B, T, C]; series_mask bool [B, T, C], False where no value was observed: what stands
    there is not read, the network sees the channel's mean (PatchTST would make an outlier of 0 on a level of 300)."""

    name, takes, kinds, batch, main = "series", "series", SERIES, "series", "past_values"
    fields: ClassVar = {"channels": "its values per step, e.g. 1", "length": "its steps per series, e.g. 96"}
    mask = "series_mask"

    def settings(self, where: str, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast | None,
                 defaults: Mapping[str, Any]) -> dict[str, Any]:
        found = {"context_length": ("length", config.length), "num_input_channels": ("channels", config.channels)}
        for name, (field, value) in found.items():
            if config.config.get(name, value) != value:
                raise ConfigError(
                    f"{where}.config.{name}: value {config.config[name]!r}; allowed: {value}, which is {where}.{field} "
                    f"(taken from it where the field is left out)"
                )
        return {name: value for name, (_, value) in found.items()}

    def trial(self, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast | None) -> Inputs:
        assert config.length is not None and config.channels is not None
        return {self.main: torch.zeros(2, config.length, config.channels)}

    def check(self, where: str, model: PreTrainedModel, config: BackboneConfig,
              tokenizer: PreTrainedTokenizerFast | None) -> None:
        own = model.config.context_length, model.config.num_input_channels
        if own != (config.length, config.channels):  # of one that is loaded
            raise ConfigError(
                f"{where}: length {config.length} and channels {config.channels}; allowed: length {own[0]} and "
                f"channels {own[1]}, for which this {type(model).__name__} was made"
            )

    def inputs(self, model: PreTrainedModel, batch: Batch) -> Inputs:
        values, observed = self._values(batch), batch.get("series_mask")
        own = [model.config.context_length, model.config.num_input_channels]
        if list(values.shape[1:]) != own:  # channels are independent of each other: a network would take any number
            raise RuntimeError(f"series of [steps, channels] {list(values.shape[1:])}; this network takes {own}")
        if observed is None:
            return {self.main: values.to(model.dtype)}
        known = values.masked_fill(~observed.bool(), 0)
        mean = known.sum(1, keepdim=True) / observed.sum(1, keepdim=True).clamp(min=1)
        values = torch.where(observed.bool(), values, mean)
        return {self.main: values.to(model.dtype), OBSERVED[model.config.model_type]: observed.to(model.dtype)}

    def tokens(self, model: PreTrainedModel, inputs: Inputs, hidden: Tensor) -> Tokens:
        """Of [B, C, patches, D], or [B, steps, D] of all channels. One counts where a value of it was observed."""
        size, step, length = (getattr(model.config, f) for f in ("patch_length", "patch_stride", "context_length"))
        count = (length - size) // step + 1
        together = hidden.dim() == 3
        hidden = hidden[:, None] if together else hidden
        tokens = hidden[:, :, hidden.shape[2] - count :].flatten(1, 2)  # a class token stands before the patches
        observed = inputs.get(OBSERVED[model.config.model_type])
        if observed is None:
            return tokens, None
        begin = length - (size + step * (count - 1))  # what does not fill a patch is left out in front
        seen = observed[:, begin:].unfold(1, size, step).amax(-1)  # [B, patches, C]
        seen = seen.amax(-1, keepdim=True) if together else seen
        return tokens, seen.transpose(1, 2).flatten(1, 2)


class _Audio(Modality):
    """Batches: audio float32 [B, T], one channel; audio_mask int64 [B, T], 0 in the silence that fills a sound up."""

    name, takes, kinds, batch, main = "audio", "sounds", AUDIO, "audio", "input_values"
    fields: ClassVar = {"rate": "its samples per second, e.g. 16000", "length": "its samples per sound, e.g. 16000"}
    mask = "audio_mask"

    def settings(self, where: str, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast | None,
                 defaults: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def trial(self, config: BackboneConfig, tokenizer: PreTrainedTokenizerFast | None) -> Inputs:
        assert config.length is not None
        return {self.main: torch.zeros(2, config.length)}

    def check(self, where: str, model: PreTrainedModel, config: BackboneConfig,
              tokenizer: PreTrainedTokenizerFast | None) -> None:
        least = 1
        for kernel, stride in zip(reversed(model.config.conv_kernel), reversed(model.config.conv_stride), strict=True):
            least = (least - 1) * stride + kernel
        assert config.length is not None
        if config.length < least:
            raise ConfigError(f"{where}.length: value {config.length}; allowed: >= {least}, samples of one frame")

    def inputs(self, model: PreTrainedModel, batch: Batch) -> Inputs:
        values, mask = self._values(batch), batch.get("audio_mask")
        found: Inputs = {self.main: pool.normalise_sound(values, mask).to(model.dtype)}
        return found if mask is None else found | {"attention_mask": mask}

    def tokens(self, model: PreTrainedModel, inputs: Inputs, hidden: Tensor) -> Tokens:
        mask = inputs.get("attention_mask")
        frames: Any = model._get_feature_vector_attention_mask
        return hidden, None if mask is None else frames(hidden.shape[1], mask)


MODALITIES: dict[str, Modality] = {row.name: row for row in (_Image(), _Text(), _Series(), _Audio())}


def modality_of_type(kind: str) -> Modality | None:
    """The row that has this transformers model type."""
    return next((row for row in MODALITIES.values() if kind in row.kinds), None)
