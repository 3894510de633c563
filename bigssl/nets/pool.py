"""One vector per sample from any backbone, and the pixel normalisation that all image backbones share."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

IMAGE_MEAN, IMAGE_STD = 0.5, 0.5


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] in 0..255 -> float32 [B, 3, H, W] in -1..1 (mean .5, std .5)."""
    return images.float().div_(255 * IMAGE_STD).sub_(IMAGE_MEAN / IMAGE_STD)


def pooled(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """Features [B, dim] of a transformers backbone: what probes, losses and exports all mean by "the embedding".

    Convolutional networks give their average pool, vision transformers the mean of the patch tokens, text networks the
    mean of the tokens under `attention_mask`.

    Args:
        inputs: {"pixel_values": float [B, 3, H, W]} or {"input_ids", "attention_mask": int64 [B, T]}.
    """
    output: Any = model(**inputs)
    hidden: Tensor = output.last_hidden_state
    if hidden.dim() == 4:  # [B, C, h, w]
        return hidden.mean((2, 3))
    if "pixel_values" in inputs:  # [B, class and register tokens + patches, dim]
        return hidden[:, _leading_tokens(model, inputs["pixel_values"], hidden) :].mean(1)
    mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # [B, T, 1]
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def _leading_tokens(model: PreTrainedModel, pixels: Tensor, hidden: Tensor) -> int:
    """Class and register tokens before the patches; none in hierarchical networks, which have fewer tokens."""
    patch = getattr(model.config, "patch_size", None)
    if patch is None:
        return 0
    height, width = (patch, patch) if isinstance(patch, int) else patch
    patches = (pixels.shape[-2] // height) * (pixels.shape[-1] // width)
    return max(0, hidden.shape[1] - patches)
