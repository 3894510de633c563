"""Writes the state of an engine, so that every rank comes to the end of it, also one whose disk refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigssl import distributed
from bigssl.engine.layout import layout_of
from bigssl.engine.saved import LAYOUT
from bigssl.files import write_atomic

TAG = "state"


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
