"""The state of an engine on disk: written so that every rank comes to the end of it, also one whose disk refuses; read
by parameter name, whatever ZeRO stage and number of ranks wrote it.

DeepSpeed's files are mapped into memory, so that a rank reads from them only what it needs, and no rank ever holds
more than its own state; `layout.json` beside them says where a parameter's elements stand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigssl import distributed
from bigssl.engine.layout import Flat, Layout, Piece, keeps_whole, layout_of
from bigssl.files import write_atomic

TAG, LAYOUT = "state", "layout.json"
MASTER = "fp32"  # name of the weights themselves among an optimizer's state


class SavedState:
    """The state in `folder` (DeepSpeed's files are in `folder / tag`). Only for checkpoints of our own run folders:
    DeepSpeed pickles its files."""

    def __init__(self, folder: Path, tag: str) -> None:
        self.layout = Layout.loads((folder / LAYOUT).read_text())
        self._folder = folder / tag
        self._open: dict[str, dict[str, Any]] = {}
        self._whole: dict[tuple[int, int], dict[str, Piece]] = {}
        self._places = {
            name: (number, index)
            for number, flat in enumerate(self.layout.flats)
            for index, name in enumerate(flat.names)
        }

    @property
    def module(self) -> dict[str, Any]:
        """The module's state dict; at stage 3 its parameters are empty, its buffers are not."""
        entries: dict[str, Any] = self._model(0)["module"]
        return entries

    @property
    def counters(self) -> dict[str, int]:
        return {name: int(self._model(0)[name]) for name in ("global_steps", "global_samples")}

    @cached_property
    def groups(self) -> list[dict[str, Any]]:
        """The settings of each parameter group."""
        return [{k: v for k, v in g.items() if k != "params"} for g in self._optimizer(0)["param_groups"]]

    def group_of(self, name: str) -> int:
        """Group of a trainable parameter. Raises KeyError for another one."""
        return self.layout.flats[self._places[name][0]].group

    def scalars(self, name: str) -> dict[str, Any]:
        """What the optimizer's state holds for a parameter besides tensors of its size: the step count."""
        return {key: value for key, value in self._state(0, self._places[name][0]).items() if not _is_flat(value)}

    def keys(self, name: str) -> list[str]:
        """Names of the tensors that the optimizer's state holds for a parameter."""
        number, index = self._places[name]
        owner = self.layout.owners(self.layout.flats[number], index, 0, 1)[0]
        return [key for key, value in self._state(owner, number).items() if _is_flat(value)]

    def whole(self, name: str) -> Tensor:
        """The weights of any parameter, frozen or not, in its shape."""
        shape, numel = self.layout.shapes[name], self.layout.numel(name)
        if self.layout.stage < 3:
            weights: Tensor = self.module[name]
        elif name in self._places:
            weights = self.read(name, MASTER, 0, numel)
        else:
            slices = (self._model(rank)["frozen_param_fragments"][name] for rank in range(self.layout.world))
            weights = torch.cat([part.flatten() for part in slices])[:numel]
        return weights.view(shape)

    def read(self, name: str, key: str, start: int, stop: int) -> Tensor:
        """[stop - start] elements of a trainable parameter's weights (key MASTER) or of the optimizer's state `key`."""
        number, index = self._places[name]
        flat, layout = self.layout.flats[number], self.layout
        whole = keeps_whole(layout.stage, self.groups[flat.group], key)
        owners = layout.owners(flat, index, start, stop)
        parts = []
        for rank in owners[:1] if whole else owners:
            piece = layout.piece(flat, index, rank)
            if whole:
                piece = self._whole_pieces(number, rank)[name]
            low, high = max(start, piece.start), min(stop, piece.stop)
            tensor = self._tensor(rank, number, key, flat).flatten()
            parts.append(tensor[piece.at + low - piece.start : piece.at + high - piece.start])
        return torch.cat(parts) if len(parts) != 1 else parts[0]

    def _whole_pieces(self, number: int, rank: int) -> dict[str, Piece]:
        """By name; found once, since each depends on those before it."""
        if (number, rank) not in self._whole:
            flat = self.layout.flats[number]
            self._whole[number, rank] = {piece.name: piece for piece in self.layout.whole_pieces(flat, rank)}
        return self._whole[number, rank]

    def _tensor(self, rank: int, number: int, key: str, flat: Flat) -> Tensor:
        if key != MASTER:
            tensor: Tensor = self._state(rank, number)[key]
        elif self.layout.stage == 0:
            tensor = self.module[flat.names[0]]
        else:
            field = "fp32_flat_groups" if self.layout.stage == 3 else "single_partition_of_fp32_groups"
            tensor = self._zero(rank)[field][number]
        return tensor.detach()

    def _state(self, rank: int, number: int) -> dict[str, Any]:
        state: dict[str, Any] = self._optimizer(rank)["state"].get(number, {})
        return state

    def _optimizer(self, rank: int) -> dict[str, Any]:
        if self.layout.stage == 0:
            inner: dict[str, Any] = self._model(0)["optimizer"]
        else:
            inner = self._zero(rank)["optimizer_state_dict" if self.layout.stage == 3 else "base_optimizer_state"]
        return inner

    def _zero(self, rank: int) -> dict[str, Any]:
        entries: dict[str, Any] = self._file(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")["optimizer_state_dict"]
        return entries

    def _model(self, rank: int) -> dict[str, Any]:
        prefix = f"zero_pp_rank_{rank}_" if self.layout.stage == 3 else ""
        return self._file(f"{prefix}mp_rank_00_model_states.pt")

    def _file(self, name: str) -> dict[str, Any]:
        if name not in self._open:
            self._open[name] = torch.load(self._folder / name, map_location="cpu", mmap=True, weights_only=False)
        return self._open[name]


def _is_flat(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


class Saver:
    """Of one DeepSpeed engine, whose writes it takes over."""

    def __init__(self, engine: Any, stage: int) -> None:
        self._engine, self._stage = engine, stage
        self._writes = engine.checkpoint_engine = _Deferred(engine.checkpoint_engine)
        script = engine._copy_recovery_script
        engine._copy_recovery_script = lambda path: self._writes.attempt(lambda: script(path))

    def save(self, folder: Path) -> None:
        """DeepSpeed's files in `folder / TAG`, and beside them where in these each parameter stands. Collective.

        Raises what a write of this rank raised, when all ranks are through."""
        engine = self._engine
        frozen = {}
        if self._stage == 1:  # left out by DeepSpeed at this stage only; zero_to_fp32.py needs them
            frozen = {
                "frozen_param_shapes": engine._get_zero_frozen_param_attributes(engine._get_param_shape_func),
                "frozen_param_fragments": engine._get_zero_frozen_param_attributes(engine._get_param_fragment_func),
            }
        engine.save_checkpoint(str(folder), tag=TAG, client_state=frozen, save_latest=False)
        self._writes.settle()
        if distributed.is_main():
            (folder / "latest").write_text(TAG)  # for zero_to_fp32.py
            layout = layout_of(engine.module, engine.optimizer, self._stage, distributed.world())
            write_atomic(folder / LAYOUT, layout.dumps().encode())


class _Deferred:
    """In place of DeepSpeed's checkpoint engine: keeps what the first failing write of this rank raises, for later.

    Between the writes and at its end, DeepSpeed's save waits for all ranks, which would wait forever for one that has
    left it by an exception. (At stage 3 they gather parameters after it, too.)
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._problem: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def save(self, state_dict: Any, path: str) -> None:
        self.attempt(lambda: self._write(state_dict, path))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self.attempt(lambda: self._inner.makedirs(path, exist_ok=exist_ok))

    def attempt(self, write: Callable[[], None]) -> None:
        """Do one of the writes of a save, unless one before it has failed."""
        if self._problem is None:
            try:
                write()
            except Exception as error:
                self._problem = error

    def settle(self) -> None:
        """Raise what was kept; the next save begins anew."""
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def _write(self, state: Any, path: str) -> None:
        with open(path, "wb") as file:  # for a path, torch would not tell the system's error
            self._inner.save(state, file)
