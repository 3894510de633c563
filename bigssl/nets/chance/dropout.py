"""Dropout by sample, not by rank: what is dropped is a function of (seed of the sample, call, element).

    key  = hash(seed of the row, number of the call in this pass)         one row a sample (or a view, or a token)
    drop   where half of hash(key, number of a pair of elements) < p      (the hash of seeds.py)

torch draws masks from a generator of the process, so that a loss depends on how many ranks share a batch and on which
rows are whose neighbours. Here nothing is drawn: no state is saved, and recomputing (activation checkpointing) gives
the same mask because it is told where the calls began.

The rows of a call are the samples of the batch in order, or several views of all of them one after the other ([2B]:
first views, second views); with seeds [R, T] (packed texts), the tokens. A network may fold more into its rows, such
as windows, as long as those of a sample lie together.

Reached are nn.Dropout and transformers' DropPath (`by_sample`), the dropout of eager and sdpa attention (see
attention.py), and of encoder-decoder networks (BART) the calls of torch's function. Not reached: other networks that
call it themselves (OPT, XLM), which the loop names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from bigssl.nets.chance.seeds import mixed, row_keys, views

_STEPS = 1 << 16  # of p
_PATHS = "DropPath"  # end of the class names of stochastic depth in transformers


@dataclass
class _Pass:
    """seeds: int64 [B] or [R, T] of the samples, None outside a pass. rows: those of the network that runs. columns: of
    attention whose keys are others than its queries. calls: of dropout so far in this pass. packing: how texts lie in
    rows (attention.py), None where each row is one. reached: whether torch's function is ours for now."""

    seeds: Tensor | None = None
    rows: Tensor | None = None
    columns: Tensor | None = None
    calls: int = 0
    packing: Any = None
    reached: bool = False


_now = _Pass()


class _From:
    """Within it, the pass goes on from `state`. Can be entered again: a graph may be gone through twice."""

    def __init__(self, state: _Pass) -> None:
        self._state, self._before = state, list[tuple[_Pass, AbstractContextManager[Any]]]()

    def __enter__(self) -> None:
        global _now
        mode = _Calls() if self._state.reached else nullcontext()
        self._before.append((_now, mode))
        _now = replace(self._state)
        mode.__enter__()

    def __exit__(self, *_: object) -> None:
        global _now
        _now, mode = self._before.pop()
        mode.__exit__(None, None, None)


def seeded(seeds: Tensor | None) -> AbstractContextManager[None]:
    """Dropout within takes its masks from `seeds`, int64 [B] (a row a sample) or [R, T] (a row a text, packed)."""
    return _From(_Pass(seeds))


def recomputing() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """`context_fn` of torch.utils.checkpoint: the calls made again in the backward pass get the numbers they had."""
    return nullcontext(), _From(replace(_now))


def drop(values: Tensor, p: float) -> Tensor:
    """`values` [R·m, ...] with a share p of the elements, to 2^-16, zero and the others scaled to the same mean."""
    below = round(p * _STEPS)
    if below == 0:
        return values
    if below == _STEPS:
        return values * 0
    kept: Tensor = _Kept.apply(values, _next_hash(values) >= below - _STEPS // 2, _STEPS / (_STEPS - below))
    return kept


class _Kept(torch.autograd.Function):
    """values · where · scale, which keeps a byte an element for the backward pass. Multiplied, not filled: that takes a
    CPU twice as long."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, where: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(where)
        ctx.scale = scale
        return values.mul(where.to(values.dtype)).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (where,) = ctx.saved_tensors
        return grads[0].mul(where.to(grads[0].dtype)).mul(ctx.scale), None, None


def _next_hash(values: Tensor) -> Tensor:
    """int16 of the shape of `values`, 16 random bits each: a hash serves two elements, as it is what takes the time."""
    if _now.seeds is None:
        raise RuntimeError("dropout in training without the seeds of samples: call the objective with a loader's batch")
    rows = views(_now.seeds, len(values)) if _now.rows is None else _now.rows
    _now.calls += 1
    with torch.no_grad():
        keys = row_keys(rows.to(values.device), _now.calls)
        if rows.dim() == 1:
            return _halves(keys, values)
        if values.dim() == 4:  # attention [R, heads, T, K]: a pair of tokens, whatever the number of heads
            return _of_pairs(keys, rows, values)
        if values.shape[:2] != rows.shape:
            raise RuntimeError(f"dropout: values {tuple(values.shape)} have no rows and tokens as {tuple(rows.shape)}")
        return _halves(keys.flatten(), values)


def _halves(keys: Tensor, values: Tensor) -> Tensor:
    """Of the elements of `values`, which are as many for each of the keys."""
    count = values.numel() // len(keys)
    pairs = mixed(torch.arange((count + 1) // 2, dtype=torch.int32, device=keys.device))
    return mixed(keys[:, None] ^ pairs).view(torch.int16)[:, :count].reshape(values.shape)


def _of_pairs(keys: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Of attention: for each pair of tokens, and two heads by one hash."""
    columns = rows if _now.columns is None else _now.columns
    if (*values.shape[:1], *values.shape[2:]) != (*rows.shape, columns.shape[1]):
        raise RuntimeError(f"dropout: attention {tuple(values.shape)}, but rows and tokens {tuple(rows.shape)}")
    heads = values.shape[1]
    pairs = torch.arange((heads + 1) // 2, dtype=torch.int32, device=values.device).view(-1, 1, 1)
    others = row_keys(columns.to(values.device), _now.calls)
    bits = mixed(mixed(keys[:, None, :, None] + pairs) ^ others[:, None, None, :])
    return torch.stack([bits.to(torch.int16), (bits >> 16).to(torch.int16)], dim=2).flatten(1, 2)[:, :heads]


class SampleDropout(nn.Dropout):
    """nn.Dropout whose masks follow from the samples."""

    def forward(self, input: Tensor) -> Tensor:
        return drop(input, self.p) if self.training else input


class SampleDropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): with probability `drop_prob`, a sample goes without this branch."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not self.training or not self.drop_prob:
            return hidden_states
        ones = hidden_states.new_ones(len(hidden_states), *[1] * (hidden_states.dim() - 1))
        return hidden_states * drop(ones, self.drop_prob)


def by_sample(module: nn.Module) -> nn.Module:
    """Replace every dropout below `module` (in place; it has no weights and no name in a state dict)."""
    for name, child in module.named_children():
        if type(child) is nn.Dropout:
            setattr(module, name, SampleDropout(child.p).train(child.training))
        elif type(child).__name__.endswith(_PATHS) and not isinstance(child, SampleDropPath):
            setattr(module, name, SampleDropPath(float(child.drop_prob or 0)).train(child.training))  # type: ignore[arg-type]
        else:
            by_sample(child)
    if isinstance(module, PreTrainedModel) and _begin not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_begin, with_kwargs=True)
        module.register_forward_hook(_end)
        if getattr(module.config, "is_encoder_decoder", False):
            module.register_forward_pre_hook(_reach)
            module.register_forward_hook(_let_go, always_call=True)
    return module


class _Calls(TorchFunctionMode):
    """Within it, torch's dropout is ours."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (dropout_called if func is F.dropout else func)(*args, **(kwargs or {}))


def dropout_called(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """F.dropout with our masks."""
    return drop(input, p) if training else input


def _reach(model: nn.Module, args: tuple[Any, ...]) -> None:
    if model.training and not _now.reached:
        _now.reached = True
        model.__dict__["_reaching"] = mode = _Calls()
        mode.__enter__()


def _let_go(model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if (mode := model.__dict__.pop("_reaching", None)) is not None:
        _now.reached = False
        mode.__exit__(None, None, None)


def _begin(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The rows of a network are those of its input, whatever it folds into them later."""
    if model.training and _now.seeds is not None and _now.rows is None:
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        _now.rows = views(_now.seeds, len(first)) if _now.seeds.dim() == 1 else _now.seeds
        model.__dict__["_began"] = True


def _end(model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if model.__dict__.pop("_began", False):
        _now.rows = None


@contextlib.contextmanager
def within_packing(packing: Any) -> Iterator[None]:
    """Within it, rows hold texts as `packing` says, also where the pass is recomputed."""
    before, _now.packing = _now.packing, packing
    try:
        yield
    finally:
        _now.packing = before


def packing_now() -> Any:
    return _now.packing


@contextlib.contextmanager
def part_of_call(queries: Tensor, keys: Tensor) -> Iterator[None]:
    """Within it, attention is of some of the tokens: int64 [n, T] and [n, K], their places among those of all rows. The
    parts have the number of one call; `count_call` ends it."""
    rows, calls = _now.rows, _now.calls
    if rows is not None:
        _now.rows, _now.columns = rows.flatten()[queries], rows.flatten()[keys]
    try:
        yield
    finally:
        _now.rows, _now.columns, _now.calls = rows, None, calls


def count_call() -> None:
    _now.calls += 1
