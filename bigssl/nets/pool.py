"""One vector per sample from any backbone, and the normalisation that all backbones of a modality share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

IMAGE_MEAN, IMAGE_STD = 0.5, 0.5
SILENCE = 1e-7  # added to the variance of a sound, as transformers does


def normalise(images: Tensor) -> Tensor:
    """uint8 [B, C, H, W] in 0..255 -> float32 [B, C, H, W] in -1..1 (mean .5, std .5)."""
    return images.float().div_(255 * IMAGE_STD).sub_(IMAGE_MEAN / IMAGE_STD)


def normalise_sound(sounds: Tensor, mask: Tensor | None) -> Tensor:
    """float32 [B, T] -> each sound with mean 0 and variance 1; where `mask` [B, T] is 0, 0 and not counted."""
    heard = sounds.new_ones(sounds.shape) if mask is None else mask.to(sounds.dtype)
    count = heard.sum(1, keepdim=True).clamp(min=1)
    centred = (sounds - (sounds * heard).sum(1, keepdim=True) / count) * heard
    return centred * (centred.square().sum(1, keepdim=True) / count + SILENCE).rsqrt()


def mean_of(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """[B, T, D] -> [B, D]: the mean of the tokens whose `mask` [B, T] is not 0 (None: all); 0 where there is none."""
    if mask is None:
        return tokens.mean(1)
    counting = mask.unsqueeze(-1).to(tokens.dtype)  # [B, T, 1]
    return (tokens * counting).sum(1) / counting.sum(1).clamp(min=1)


def means_of_parts(tokens: Tensor, counts: Tensor, parts: int, mask: Tensor | None = None) -> Tensor:
    """[B, parts, D]: means over equal parts of the first `counts` [B] of tokens [B, T, D], of those whose `mask` [B, T]
    is not 0 (None: all; 0 where a part has none). Parts overlap by a token where they do not come out even (as
    `adaptive_avg_pool1d` has it)."""
    each = torch.arange(parts, device=tokens.device)
    counts = counts.clamp(min=1)[:, None]
    begin, end = each * counts // parts, -(-(each + 1) * counts // parts)  # [B, parts]
    weights = tokens.new_ones(tokens.shape[:2]) if mask is None else mask.to(tokens.dtype)
    both = torch.cat([tokens * weights[..., None], weights[..., None]], dim=2)
    sums = F.pad(both.cumsum(1), (0, 0, 1, 0))
    upto, before = (sums.gather(1, at[..., None].expand(-1, -1, sums.shape[-1])) for at in (end, begin))
    totals, found = (upto - before).split([tokens.shape[2], 1], dim=2)
    return totals / found.clamp(min=1)


def leading_tokens(model: PreTrainedModel, pixels: Tensor, hidden: Tensor) -> int:
    """Class and register tokens before the patches; none in hierarchical networks, which have fewer tokens."""
    patch = getattr(model.config, "patch_size", None)
    if patch is None:
        return 0
    height, width = (patch, patch) if isinstance(patch, int) else patch
    patches = (pixels.shape[-2] // height) * (pixels.shape[-1] // width)
    return max(0, hidden.shape[1] - patches)
