"""Metrics on disk: one JSON line per step in `metrics.jsonl`, the same numbers as TensorBoard scalars.

`losses.json` beside it says of each loss what it is measured in and compared with, and the unit of each probe:
{"loss/PART": {"unit": "nats", "blind": "token frequencies"}, "probe/NAME": {"unit": "share", "blind": ""}}.

Names (the report plots these; other names are kept as they are):

    loss, blind                   total loss and what the best predictor that does not see the input would have
    loss/PART, blind/PART         one part of a joint loss and its blind value
    spread/NAME, spread/PART/NAME   what must not collapse: 1 as different as can be, 0 all samples alike
    probe/NAME                    what the probe of that name found, e.g. the share of right neighbours, 0 to 1
    health/NAME/MEASURE           how healthy the embeddings that a task calls NAME are, and at a probe the features of
                                  the backbone NAME: see bigssl/nets/embeddings/health.py for the measures
    speed/samples_per_s           samples of the global batch per second of wall clock
    speed/tokens_per_s            tokens of text that were shown to networks, padding apart, over all ranks
    speed/mfu                     share (0 to 1) of the cards' 16-bit peak that the network's products take, where a run
                                  has one network, of texts, on cards that engine/stepping/throughput.py knows
    speed/data_wait               share (0 to 1) of the time spent waiting for data
    speed/driver_overhead         share (0 to 1) of the time outside forward, backward, optimizer and data wait
    optim/lr, optim/grad_norm     the recipe's learning rate (groups multiply it), gradient norm before clipping
    data/skipped                  how often a sample was replaced since the last record, over all ranks
    data/errors                   different bad samples so far, over all ranks and resumes: what data.max_errors limits
"""

import json
import logging
import math
from pathlib import Path
from typing import BinaryIO, NamedTuple

from bigssl.files import append_whole, drop_from, write_atomic

FILE, LOSSES = "metrics.jsonl", "losses.json"
log = logging.getLogger("bigssl")


def _encode(step: int, values: dict[str, float]) -> bytes:
    """One strict JSON line; "nan" and "inf" travel as strings, which `float()` reads back."""
    row: dict[str, object] = {"step": step}
    for name, value in values.items():
        number = float(value)
        row[name] = number if math.isfinite(number) else str(number)
    return (json.dumps(row, allow_nan=False) + "\n").encode()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Lines of `folder/metrics.jsonl` in file order, [] when there is no file; every value a float, `step` an int.

    A line cut off by a kill is passed over."""
    path, rows = folder / FILE, []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
            rows.append({name: float(value) for name, value in row.items()} | {"step": int(row["step"])})
        except (ValueError, KeyError, AttributeError, TypeError):
            continue
    return rows


class Measure(NamedTuple):
    """The unit of a loss or a probe, and the name of the blind predictor that a loss is compared with."""

    unit: str
    blind: str


def read_measures(folder: Path) -> dict[str, Measure]:
    """Of each loss and probe by its name in the metrics, in order; {} where no step was recorded."""
    path = folder / LOSSES
    found = json.loads(path.read_text()) if path.exists() else {}
    return {name: Measure(**measure) for name, measure in found.items()}


class MetricsWriter:
    """Writes metrics of one run; a disk that refuses is warned of once and never stops the training.

    folder: the run folder; resume_step: the last step that is part of the run (lines of later steps belong to work
    that is about to be repeated, so they are dropped); enabled: False on every rank but the first.
    """

    def __init__(self, folder: Path, *, resume_step: int, enabled: bool) -> None:
        self.folder = Path(folder)
        self.lost = 0  # lines that could not be written
        self._warned = False
        self._measures: dict[str, Measure] = {}
        self._file: BinaryIO | None = None
        self._events = None
        if enabled:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                if (self.folder / FILE).exists():
                    drop_from(self.folder / FILE, resume_step + 1)
                # Unbuffered: a failed write must not come back later out of Python's buffer as half a line.
                self._file = (self.folder / FILE).open("ab", buffering=0)
                self._events = self._open_events(resume_step)
            except OSError as error:
                self._warn(error)

    def _open_events(self, resume_step: int):
        # Imported late: the other ranks, and tools that only read metrics, never pay for TensorBoard.
        from torch.utils.tensorboard import SummaryWriter

        # Also from step 0: an attempt that died before its first checkpoint left events as well.
        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=resume_step + 1, flush_secs=30)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            log.warning("metrics: cannot write under %s: %s. Training goes on without these lines; free the disk "
                        "and later lines are written again.", self.folder, error)
        self._warned = True

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line, in the file when this returns, and the same values as TensorBoard scalars."""
        if self._file is not None:
            self._append(_encode(step, values))
        if self._events is not None:
            try:
                for name, value in values.items():
                    self._events.add_scalar(name, float(value), step)
            except OSError as error:
                self._drop_events(error)

    def describe(self, measures: dict[str, Measure]) -> None:
        """Keeps what each loss is measured in beside the numbers; written when it changes."""
        if self._file is None or measures == self._measures:
            return
        text = json.dumps({name: each._asdict() for name, each in measures.items()}, indent=1) + "\n"
        try:
            write_atomic(self.folder / LOSSES, text.encode())
            self._measures = measures
        except OSError as error:
            self._warn(error)

    def _append(self, line: bytes) -> None:
        assert self._file is not None
        try:
            append_whole(self._file.fileno(), line, self.folder / FILE)
        except OSError as error:
            self.lost += 1
            self._warn(error)

    def _drop_events(self, error: OSError) -> None:
        # TensorBoard's writer thread has died with the error it raised; a new one would only append to a broken file.
        self._events = None
        self._warn(error)

    def close(self) -> None:
        for each in (self._file, self._events):
            try:
                if each is not None:
                    each.close()
            except OSError as error:
                self._warn(error)
        self._file = self._events = None
        if self.lost:
            log.warning("metrics: %d lines could not be written to %s", self.lost, self.folder / FILE)
