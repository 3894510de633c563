"""What a person sees while a run trains: a bar on a terminal, plain lines elsewhere, nothing on ranks > 0."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`; whole seconds."""
    minutes, s = divmod(max(0, round(seconds)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def notable(loss: float, blind: float | None, samples_per_s: float, data_wait: float, extra: dict[str, float]) -> str:
    """`loss 2.310 (blind 6.236), 812 samples/s, data wait 3 %, knn 0.61`."""
    beside = "" if blind is None else f" (blind {blind:.3f})"
    parts = [f"loss {loss:.3f}{beside}", f"{samples_per_s:.0f} samples/s", f"data wait {100 * data_wait:.0f} %"]
    return ", ".join(parts + [f"{name} {value:.4g}" for name, value in extra.items()])


class ProgressBar:
    """Progress of the steps start+1 ... total.

    total: last step of the run; start: steps done before (a resumed run counts on from there, its ETA does not);
    every: seconds between two plain lines where the stream is no terminal.
    """

    def __init__(self, total: int, start: int, *, enabled: bool, stream: TextIO | None = None, every: float = 10.0,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.enabled, self.every = total, enabled, every
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self._last_line = float("-inf")
        self._bar: tqdm | None = None
        if enabled and self._stream.isatty():
            # tqdm's own rate and ETA, which ours agree with; the rest of the line is ours.
            self._bar = tqdm(total=total, initial=start, file=self._stream, unit="step", dynamic_ncols=True)

    def update(self, step: int, loss: float, blind: float | None, samples_per_s: float, data_wait: float,
               extra: dict[str, float]) -> None:
        """Shows the state after `step`; data_wait is a share from 0 to 1, `blind` in the unit of the loss."""
        if not self.enabled:
            return
        text = notable(loss, blind, samples_per_s, data_wait, extra)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = self._clock()
        remaining = self._eta(step, now)
        if step >= self.total or now - self._last_line >= self.every:
            self._last_line = now
            print(f"step {step}/{self.total}  {text}, ETA {remaining}", file=self._stream, flush=True)

    def _eta(self, step: int, now: float) -> str:
        # Counted from the first update on: the first step compiles, warms up and starts workers.
        if self._first is None:
            self._first = (step, now)
        first_step, first_time = self._first
        if step >= self.total:
            return duration(0)
        if step == first_step:
            return "?"
        return duration((now - first_time) / (step - first_step) * (self.total - step))

    def note(self, text: str) -> None:
        """One line of text that does not break the bar: a checkpoint written, a sample skipped."""
        if not self.enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
