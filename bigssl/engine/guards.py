"""What stops a run before its last step: a wish that it stop, losses that are no longer numbers, and a disk that takes
or gives no more."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.engine.stopping import StopFlag

T = TypeVar("T")


class Agreed(RuntimeError):
    """Raised by every rank at the same step: rank 0 speaks for all, and nobody waits for one that is gone."""


class TooManyBadSamples(Agreed):
    """More bad samples than the recipe allows, over all ranks, workers and resumes."""


class NonFiniteLoss(Agreed):
    """Loss or gradient became NaN or infinite; nothing was saved since."""


class NotSaved(Agreed):
    """A checkpoint that is due, or the run folder, cannot be written: what has been trained since the last one would
    be lost unseen."""


class Guard:
    """Adds the stop flag and a non-finite counter to the one reduction that a logged step makes anyway."""

    def __init__(self, folder: Path, device: torch.device, keep: int) -> None:
        self.flag = StopFlag()
        self.stop = self._noticed = False
        self._folder, self._bad = folder, torch.zeros((), device=device)
        self._recent: deque[tuple[int, dict[str, list[str]]]] = deque(maxlen=keep)

    def watch(self, step: int, loss: Tensor, keys: dict[str, list[str]]) -> None:
        """Count a non-finite `loss` on the device (no sync) and remember which samples made it."""
        self._bad += (~torch.isfinite(loss.detach())).to(self._bad.dtype)
        self._recent.append((step, keys))

    @contextlib.contextmanager
    def noticing(self, note: Callable[[str], None]) -> Iterator[None]:
        """Notes, once, whether what is in the `with` block draws from torch's generators: a sync, so only the first."""
        if self._noticed:
            yield
            return
        self._noticed, before = True, generators(self._bad.device)
        yield
        if any(not torch.equal(*pair) for pair in zip(before, generators(self._bad.device), strict=True)):
            note(
                "the networks draw from torch's generator (a dropout that nets/chance/dropout.py does not reach): "
                "the loss depends on the number of ranks; without: set its rate to 0 in the backbone's config"
            )

    def observe(self, step: int, values: Tensor, skipped: int) -> Tensor:
        """Mean over ranks of `values` [n]; sets `stop` on all ranks alike.

        Args:
            skipped: steps of this run that changed nothing, since a gradient was not finite (see `Engine.skipped`).

        Raises:
            NonFiniteLoss: on every rank, if any rank saw a non-finite loss since the last call or a skipped step.
        """
        stop = float(bool(self.flag.name))
        flags = torch.stack([torch.tensor(stop, device=self._bad.device), self._bad + float(skipped)])
        reduced = distributed.all_reduce_sum(torch.cat([flags, values.to(flags.dtype)])).cpu()
        self.stop = self.flag.heeded = bool(reduced[0] > 0)
        if reduced[1] > 0:
            raise NonFiniteLoss(self._describe(step))
        return reduced[2:] / distributed.world()

    def _describe(self, step: int) -> str:
        note = self._folder / f"nonfinite-rank{distributed.rank()}.txt"
        lines = [f"step {s} {source}: {' '.join(keys)}" for s, by in self._recent for source, keys in by.items()]
        with contextlib.suppress(OSError):  # a full disk must not hide why the run ends
            note.write_text("\n".join(lines) + "\n")
        earlier = len({number for number, _ in self._recent}) - 1
        return (
            f"loss or gradient is NaN or infinite at step {step} (or in the {earlier} before, see log_every); "
            f"their samples: {self._folder}/nonfinite-rank*.txt. The last checkpoint is from before it; with a lower "
            f"optim.lr, optim.clip=1.0 or precision=fp32 (and `--change` with that field) the run may get past"
        )


def generators(device: torch.device) -> list[Tensor]:
    """States of the generators that a network on `device` would draw from."""
    states = [torch.get_rng_state()]
    return states + [torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_generators(device: torch.device, states: list[Tensor]) -> None:
    """Have networks on `device` draw again what they drew from `generators` of then."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)


def on_main(folder: Path, work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on every rank. Collective.

    Raises:
        NotSaved: on every rank, where rank 0 cannot write to `folder`, or read what it needs: others would wait for it.
    """
    problem, found = "", None
    if distributed.is_main():
        try:
            found = work()
        except OSError as error:
            problem = f"out: {folder} cannot be written to ({error.strerror or error}); allowed: a folder with room"
        except (ConfigError, ValueError, SafetensorError) as error:
            problem = str(error)
    problem, value = distributed.from_main((problem, found))
    if problem:
        raise NotSaved(problem)
    return cast(T, value)
