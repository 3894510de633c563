"""Puts a saved state into a live engine, parameter by parameter: weights, the optimizer's state, buffers.

Each rank reads the elements that it owns, so it makes no difference how many ranks or which ZeRO stage saved them, nor
in which groups the parameters were. Settings (rates, decay, clipping) are those of the recipe, which is that of the
checkpoint, or one that differs from it on purpose.
(DeepSpeed's universal checkpoints leave out buffers and frozen parameters, give every group of stage 3 the settings
and the step count of group 0, and do not know LARS and Muon.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bigssl import distributed
from bigssl.engine.layout import Layout, Piece, flat_tensors, inner_optimizer, keeps_whole, layout_of
from bigssl.engine.saved import MASTER, SavedState


class StateError(RuntimeError):
    """A checkpoint holds the state of other networks or groups than this run has; the message is one line."""


@torch.no_grad()
def restore(module: nn.Module, optimizer: Any, stage: int, saved: SavedState) -> None:
    """Make a fresh engine over `module` what it was when `saved` was written. Collective at stage 3.

    Args:
        optimizer: DeepSpeed's around the recipe's; at stage 0 the recipe's own.

    Raises:
        StateError: names or shapes differ, or which parameters Muon updates.
    """
    mine = layout_of(module, optimizer, stage, distributed.world())
    _refuse_other_state(mine, optimizer.param_groups, saved)
    if stage == 3:
        optimizer.checkpoint_event_prologue()
    _restore_optimizer(optimizer, mine, saved)
    _restore_weights(module, optimizer, mine, saved)
    _restore_rest(module, saved)
    if stage == 3:
        optimizer.checkpoint_event_epilogue()


def _refuse_other_state(mine: Layout, groups: list[dict[str, Any]], saved: SavedState) -> None:
    refuse_differing("parameters", mine.shapes, saved.layout.shapes)
    trainable = {name: "trained" for flat in mine.flats for name in flat.names}
    refuse_differing("trained parameters", trainable, {n: "trained" for flat in saved.layout.flats for n in flat.names})
    halves = {name: _half(groups[flat.group]) for flat in mine.flats for name in flat.names}
    before = {name: _half(saved.groups[saved.group_of(name)]) for name in trainable}
    refuse_differing("optimizers of parameters", halves, before)


def _half(settings: dict[str, Any]) -> str:
    """What updates a group: the two halves of Muon's optimizer keep other things of a parameter."""
    return "muon" if settings.get("use_muon") else "the optimizer of the rest"


def refuse_differing(what: str, mine: dict[str, Any], saved: dict[str, Any]) -> None:
    """Raises StateError where two descriptions by name (shapes) are not equal, with the first difference."""
    differing = sorted(name for name in mine.keys() | saved.keys() if mine.get(name) != saved.get(name))
    if differing:
        first = differing[0]
        raise StateError(
            f"{len(differing)} {what} differ, the first {first}: {saved.get(first)} in the checkpoint, "
            f"{mine.get(first)} in this run"
        )


def _restore_optimizer(optimizer: Any, mine: Layout, saved: SavedState) -> None:
    state, rank = inner_optimizer(optimizer).state, distributed.rank()
    for flat, tensor in zip(mine.flats, flat_tensors(optimizer, mine.stage), strict=True):
        _fill(tensor, mine.pieces(flat, rank), saved, MASTER)
        with_state = [name for name in flat.names if saved.keys(name)]
        if not with_state:
            continue  # no step yet
        settings = optimizer.param_groups[flat.group]
        scalars = _agreed_scalars(with_state, saved)
        state[tensor].update({key: where_counted(value, tensor, settings) for key, value in scalars.items()})
        for key in dict.fromkeys(key for name in with_state for key in saved.keys(name)):
            whole = keeps_whole(mine.stage, settings, key)
            pieces = list(mine.whole_pieces(flat, rank) if whole else mine.pieces(flat, rank))
            size = sum(piece.stop for piece in pieces) if whole else tensor.numel()
            if whole and not size:
                continue  # this rank orthogonalises nothing of the group
            if key not in state[tensor]:
                state[tensor][key] = torch.zeros_like(tensor) if size == tensor.numel() else tensor.new_zeros(size)
            _fill(state[tensor][key], [piece for piece in pieces if key in saved.keys(piece.name)], saved, key)


def _agreed_scalars(names: list[str], saved: SavedState) -> dict[str, Any]:
    """The step count of the parameters that share a flat tensor, in a tensor of its own."""
    first = saved.scalars(names[0])
    for name in names[1:]:
        if saved.scalars(name) != first:
            raise StateError(f"{names[0]} and {name} share an optimizer state here, but were updated a different "
                             f"number of times ({first} and {saved.scalars(name)})")  # fmt: skip
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in first.items()}


def where_counted(value: Any, tensor: Tensor, settings: dict[str, Any]) -> Any:
    """A step count, read on the CPU, where torch's optimizers look for it: beside the weights if their step is one
    kernel, which refuses another place (`fused`, and `capturable`, that of a CUDA graph), else on the CPU."""
    beside = settings.get("fused") or settings.get("capturable")
    return value.to(tensor.device) if beside and isinstance(value, Tensor) else value


def _fill(target: Tensor, pieces: Iterable[Piece], saved: SavedState, key: str) -> None:
    row = target.detach().view(-1)
    for piece in pieces:
        row[piece.at : piece.at + piece.stop - piece.start].copy_(saved.read(piece.name, key, piece.start, piece.stop))


def _restore_weights(module: nn.Module, optimizer: Any, mine: Layout, saved: SavedState) -> None:
    """The weights that forward uses; at stage 3 the trained ones are what the flat tensors say."""
    trained = {name for flat in mine.flats for name in flat.names}
    for name, parameter in module.named_parameters():
        if mine.stage < 3:
            parameter.copy_(saved.whole(name))
        elif name not in trained:
            start, stop = mine.slice_of(name, distributed.rank())
            parameter.ds_tensor[: stop - start].copy_(saved.whole(name).flatten()[start:stop])  # type: ignore[attr-defined]
    if mine.stage == 3:
        for weights, masters in zip(optimizer.fp16_partitioned_groups_flat, flat_tensors(optimizer, 3), strict=True):
            weights.copy_(masters)


def _restore_rest(module: nn.Module, saved: SavedState) -> None:
    """Buffers and what modules return from `get_extra_state`."""
    entries = module.state_dict(keep_vars=True)
    rest = {name for name, value in entries.items() if not isinstance(value, nn.Parameter)}
    known = dict.fromkeys(saved.module.keys() & (rest | (saved.module.keys() - entries.keys())), "saved")
    refuse_differing("buffers", dict.fromkeys(rest, "saved"), known)
    module.load_state_dict({name: saved.module[name] for name in rest}, strict=False)
