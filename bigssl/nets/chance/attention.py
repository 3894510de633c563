"""transformers' eager and sdpa attention as ours: what is dropped follows from the samples, and texts that share a row
do not see each other.

With dropout it takes the memory of the attention matrix, as eager does; dropout inside a flash-attention kernel is
refused. Packed texts need no mask: those of about one length are attended to side by side, [texts, heads, L, L], so
that the work is Σ L² and the memory that of their tokens; a network's window (ModernBERT's local layers) is cut out of
a text as chunks that see their neighbours.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from bigssl.config.errors import ConfigError
from bigssl.nets.chance.dropout import count_call, drop, dropout_called, packing_now, part_of_call

_MARK = "_drops_by_sample"  # attribute of modules
NOWHERE = -1


class Packing(NamedTuple):
    """Where the texts of rows [R, T] lie.

    groups: of each int64 [texts, L], the places of the tokens of texts of up to L tokens among all R · T, `NOWHERE`
        behind the last.
    found: int64 [R · T], the place of each token among those of `groups` put end to end; one behind the last where
        there is none.
    """

    groups: list[Tensor]
    found: Tensor


class _Attention(TorchFunctionMode):
    """Within an attention: torch's dropout becomes ours, and fused attention with dropout is written out."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return dropout_called(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _written_out(*args, **kwargs)
        return func(*args, **kwargs)


def _written_out(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """F.scaled_dot_product_attention as its documentation writes it out."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return drop(scores.softmax(-1), dropout_p).to(value.dtype) @ value


_fused = ALL_ATTENTION_FUNCTIONS["sdpa"]


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, dropout: float = 0.0,
    **kwargs: Any,
) -> Any:  # fmt: skip
    """transformers' sdpa attention; what it drops follows from the samples, in a network that was made so. Another one
    of this process (an export that is fine-tuned) drops as torch does."""
    packing = packing_now()
    if packing is not None:
        return _attend_packed(module, packing, query, key, value, dropout, **kwargs)
    return _whole(module, query, key, value, attention_mask, dropout, **kwargs)


def _whole(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float,
           **kwargs: Any) -> Any:
    if not dropout or not getattr(module, _MARK, False):
        return _fused(module, query, key, value, mask, dropout=dropout, **kwargs)
    with _Attention():
        return _fused(module, query, key, value, mask, dropout=dropout, **kwargs)


AttentionInterface.register("sdpa", _attend)


def _attend_packed(
    module: nn.Module, packing: Packing, query: Tensor, key: Tensor, value: Tensor, dropout: float,
    sliding_window: int | None = None, is_causal: bool | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """[R, heads, T, D] each -> [R, T, heads, D]; 0 where there is no text."""
    rows, _, length, _ = query.shape
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    flat = [each.transpose(1, 2).flatten(0, 1) for each in (query, key, value)]  # [R · T, heads, D]
    seen = []
    for group in packing.groups:
        queries, keys, allowed = _part(group, sliding_window, causal)
        here, there = queries.clamp(min=0), keys.clamp(min=0)
        q, k, v = (each[at].transpose(1, 2) for each, at in zip(flat, (here, there, there), strict=True))
        with part_of_call(here, there):
            found, _ = _whole(module, q, k, v, allowed, dropout, is_causal=causal and allowed is None, **kwargs)
        whole = found.flatten(0, 1).unflatten(0, (len(group), -1))  # chunks of a text after each other
        seen.append(whole[:, : group.shape[1]].flatten(0, 1))
    if dropout:
        count_call()
    together = torch.cat([*seen, flat[2].new_zeros(1, flat[0].shape[1], flat[2].shape[2])])
    return together[packing.found].unflatten(0, (rows, length)), None


def _part(group: Tensor, window: int | None, causal: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Places of queries [n, L], of keys [n, K], and bool [n, 1, 1 or L, K], which keys are seen (None: all before)."""
    if window is not None and group.shape[1] > window:
        return _windows(group, window, causal)
    if causal:
        return group, group, None  # what is behind a text is behind its tokens
    return group, group, (group != NOWHERE)[:, None, None]


def _windows(group: Tensor, window: int, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Chunks of `window` tokens, [texts · chunks, window], and what they see of their text: places i − j of less than
    `window` to both sides, or behind."""
    texts, length = group.shape
    chunks = -(-length // window)
    padded = F.pad(group, (window, (chunks + 1) * window - length), value=NOWHERE)
    queries = padded[:, window : (chunks + 1) * window].reshape(texts * chunks, window)
    keys = padded.unfold(1, 3 * window, window)[:, :chunks].reshape(texts * chunks, 3 * window)
    here, there = torch.arange(window, device=group.device), torch.arange(3 * window, device=group.device) - window
    apart = here[:, None] - there
    near = (apart.abs() < window) & ((apart >= 0) | (not causal))
    allowed = near & (keys != NOWHERE)[:, None]
    allowed |= ~allowed.any(-1, keepdim=True)  # a query that is no token: a softmax over nothing is NaN
    return queries, keys, allowed[:, None]


def attention_by_sample(model: PreTrainedModel, field: str) -> None:
    """Have a network drop attention weights by sample, in `_attend`.

    Raises:
        ConfigError: naming the recipe field, where a fused kernel would drop by a generator of its own.
    """
    kind, rates = model.config._attn_implementation, model.config.to_dict().items()
    dropping = {name: rate for name, rate in rates if "att" in name and "drop" in name and rate}
    if kind == "eager" and dropping and model._supports_sdpa:
        model.set_attn_implementation("sdpa")  # written out, it is eager's arithmetic
    elif kind not in (None, "eager", "sdpa") and dropping:
        name, rate = dropping.popitem()
        raise ConfigError(
            f"{field}.attention: value {kind} with {name} {rate}; allowed: {field}.config.{name}=0.0, or attention "
            f"eager or sdpa (the kernel drops by rank, so that the loss would depend on the number of ranks)"
        )
    for module in model.modules():
        setattr(module, _MARK, True)
