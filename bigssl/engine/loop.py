"""The story of a run, from a checked plan to trained weights."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bigssl import distributed
from bigssl.config.recipe import Recipe
from bigssl.data.loading.ledger import Keys, Ledger
from bigssl.data.loading.loader import Batch, make_loader
from bigssl.data.loading.skipped import Skipped
from bigssl.engine.checkpoint import CheckpointStore
from bigssl.engine.clock import Clock, DataWait
from bigssl.engine.guards import Guard, TooManyBadSamples
from bigssl.engine.meeting.alike import check_alike
from bigssl.engine.optim import build_optimizer, schedule, set_learning_rate
from bigssl.engine.plan.facts import facts
from bigssl.engine.plan.memory import checkpoint_bytes
from bigssl.engine.plan.pairing import keep_reports
from bigssl.engine.plan.preflight import Plan
from bigssl.engine.resume import open_folder, settle_folder, settled
from bigssl.engine.stepping.cached import CachedPasses
from bigssl.engine.stepping.passes import CountedPasses, EachPass, Passes
from bigssl.engine.stepping.throughput import Throughput
from bigssl.engine.teaching import teach
from bigssl.engine.zero import Engine
from bigssl.nets.embeddings import health
from bigssl.nets.progress import Progress
from bigssl.objectives.base import Losses
from bigssl.objectives.counting import Counting
from bigssl.report.blind import verdicts
from bigssl.report.collapses import CollapseWatch, collapses
from bigssl.report.metrics import Measure, MetricsWriter, read_measures, read_metrics
from bigssl.report.progress import ProgressBar

SPECTRA = 20
"""Steps after which the eigenvalues of embeddings are recorded again (see `health.of_views` for what they cost)."""


class Probe(Protocol):
    """What is looked at during training, by all ranks. measures: the units of its numbers."""

    measures: dict[str, Measure]

    def prepare(self) -> None:
        """Once, before the first step."""

    def __call__(self, step: int) -> dict[str, float]:
        """Numbers after that many steps, by the names they have in the metrics."""
        ...


@dataclass(frozen=True)
class Outcome:
    """step: optimizer steps done in all; preempted: what ended the run early (a signal's name), or empty."""

    step: int
    preempted: str = ""


def train(recipe: Recipe, plan: Plan, device: torch.device, probe: Probe | None) -> Outcome:
    """Train to `recipe.steps`, from the newest valid checkpoint of the run folder if there is one. Collective.

    Args:
        probe: prepared here, and called on all ranks every `recipe.probe.every` steps; its numbers go to the metrics.
    """
    if distributed.world() != plan.world:
        raise RuntimeError(f"planned for {plan.world} ranks, but the process group has {distributed.world()}")
    resolved = settled(recipe, plan.backbones, accum=plan.accum, bf16=plan.bf16)
    mine = facts(plan.accum, plan.world, plan.streams, plan.backbones, plan.objective)
    check_alike(resolved, mine)
    progress_notes = open_folder(resolved)
    expected = checkpoint_bytes(plan.objective, recipe)
    engine = _engine(recipe, plan, device)
    store = CheckpointStore(recipe.folder / "checkpoints", recipe.checkpoint, mine, progress_notes.append,
                            plan.objective.teachers(), expected)  # fmt: skip
    start = store.resume(engine)
    progress_notes += plan.notes + settle_folder(resolved, start)
    if plan.beginning is not None:  # there is no checkpoint
        plan.beginning.begin(plan.objective, plan.backbones)
    if not start:
        keep_reports(recipe, plan.backbones.values())
    if probe is not None:
        probe.prepare()
    run = _Run(recipe, plan, device, engine, start)
    for text in ([f"resumed after step {start}"] if start else []) + progress_notes:
        run.progress.note(text)
    store.note = run.progress.note
    try:
        return run.steps(store, start, probe)
    finally:
        run.close()


class _Run:
    """What the steps of one run share."""

    def __init__(self, recipe: Recipe, plan: Plan, device: torch.device, engine: Engine, start: int) -> None:
        self.recipe, self.plan, self.device, self.engine = recipe, plan, device, engine
        main = distributed.is_main()
        self.metrics = MetricsWriter(recipe.folder, resume_step=start, enabled=main)
        self.progress = ProgressBar(recipe.steps, start, enabled=main)
        self.ledger = Ledger(recipe.folder, rank=distributed.rank(), world=plan.world, resume_step=start,
                             enabled=recipe.data.ledger)  # fmt: skip
        self.guard = Guard(recipe.folder, device, keep=recipe.log_every * plan.accum)
        self.clock, self.data_wait = Clock(), DataWait(recipe.data.workers)
        self.throughput = Throughput(plan.backbones.values(), device)
        self.skipped = Skipped(recipe.folder, allowed=recipe.data.max_errors, resume_step=start)
        self.passes: Passes = EachPass(engine)
        if recipe.batch.cached and plan.accum > 1:
            self.passes = CachedPasses(engine, plan.objective, device, bf16=plan.bf16)
        elif isinstance(plan.objective, Counting) and plan.objective.counting and plan.accum > 1:
            self.passes = CountedPasses(engine, plan.objective, device)
        self.teachers = plan.objective.teachers()
        self.collapse = CollapseWatch(read_metrics(recipe.folder) if main else [])
        self.logged = start

    def steps(self, store: CheckpointStore, start: int, probe: Probe | None) -> Outcome:
        saved = start
        self._refuse_excess(saved)
        for step, passes in self._batches(start):
            losses = self._update(step, passes)
            done = step + 1
            if done % self.recipe.log_every == 0 or done == self.recipe.steps or self._due(done) or self._probes(done):
                self._record(done, losses, probe)
            if self.guard.stop or self.skipped.excess or self._due(done) or done == self.recipe.steps:
                with self.clock("checkpoint"):
                    self.ledger.flush()
                    store.save(self.engine, done, lambda: self.guard.flag.name)
                saved = done
            self._refuse_excess(saved)
            if self.guard.stop:
                return Outcome(saved, next(filter(None, distributed.gather_objects(self.guard.flag.name))))
        self._say_what_was_learnt()
        return Outcome(self.recipe.steps)

    def _refuse_excess(self, saved: int) -> None:
        if excess := self.skipped.excess:
            raise TooManyBadSamples(
                f"{excess}; all are in {self.recipe.folder}/skipped.jsonl; with a higher data.max_errors the same "
                f"command goes on after step {saved}"
            )

    def _say_what_was_learnt(self) -> None:
        if distributed.is_main():
            rows = read_metrics(self.recipe.folder)
            sentences = [verdict.sentence for verdict in verdicts(rows, read_measures(self.recipe.folder))]
            for sentence in sentences + [each.sentence for each in collapses(rows)]:
                self.progress.note(sentence)

    def _probes(self, done: int) -> bool:
        settings = self.recipe.probe
        return settings is not None and (done % settings.every == 0 or done == self.recipe.steps)

    def _due(self, done: int) -> bool:
        return done % self.recipe.checkpoint.every == 0

    def _batches(self, start: int) -> Iterator[tuple[int, Iterator[Batch]]]:
        plan = self.plan
        loader = make_loader(
            plan.streams, plan.sizes, plan.objective.prepare, plan.objective.assemble, seed=self.recipe.seed,
            rank=distributed.rank(), world=plan.world, accum=plan.accum, workers=self.recipe.data.workers,
            start_step=start, stop_step=self.recipe.steps, device_pin=self.device.type == "cuda",
            warn_after=self.recipe.data.watchdog, abort_after=self.recipe.data.watchdog_abort,
        )  # fmt: skip
        batches = iter(loader)
        for step in range(start, self.recipe.steps):
            yield step, itertools.islice(batches, plan.accum)

    def _update(self, step: int, passes: Iterator[Batch]) -> list[Losses]:
        """One optimizer step over `accum` forward and backward passes."""
        set_learning_rate(self.engine.groups, schedule(self.recipe.optim, step, self.recipe.steps))
        # Nothing should draw from torch's generator. What does (`Guard.noticing` says so) has no state to be saved.
        torch.manual_seed(_step_seed(self.recipe.seed, step, distributed.rank()))
        at, done = Progress(step, self.recipe.steps), list[Losses]()
        keys: list[Keys] = []
        for batch in self._begun(passes, at):
            self.throughput.add(batch.data)
            data = batch.to(self.device)
            with self.clock("forward"), self.guard.noticing(self.progress.note):
                value, losses = self.passes(data.data, at)
            with self.clock("backward"):
                self.engine.backward(value)
            with self.clock("optimizer"):
                self.engine.step()
                if self.engine.applied:
                    teach(self.teachers, at)
            self.guard.watch(step + 1, losses.total, batch.keys)
            self._note_errors(batch)
            done[-1:] = [each.without_views() for each in done[-1:]]  # those of the last pass are looked at
            done.append(losses)
            keys.append(batch.keys)
        self.ledger.write(step, keys)
        return done

    def _begun(self, passes: Iterator[Batch], at: Progress) -> Iterable[Batch]:
        batches: Iterator[Batch] = self._timed(passes, at.step)
        if self.passes.gathers:
            batches = iter(list(batches))  # waiting for data is no forward pass
        with self.clock("forward"):
            return self.passes.begin(batches, at)

    def _timed(self, passes: Iterator[Batch], done: int) -> Iterator[Batch]:
        while True:
            with self.clock("data", done):
                batch = next(passes, None)
            if batch is None:
                return
            yield batch

    def _note_errors(self, batch: Batch) -> None:
        self.skipped.pending += batch.errors
        for bad in batch.errors:
            print(f"rank {distributed.rank()}: skipped: {bad.cause}", file=sys.stderr, flush=True)

    def _record(self, done: int, passes: list[Losses], probe: Probe | None) -> None:
        if self.device.type == "cuda":
            with self.clock("optimizer"):  # kernels run behind the host: without this, they count as overhead
                torch.cuda.synchronize(self.device)
        names, values = _loss_values(passes, self._spectra(done))
        values = torch.cat([values, values.new_tensor([self.throughput.tokens, len(self.skipped.pending)])])
        *means, mean_tokens, mean_skipped = self.guard.observe(done, values, self.engine.skipped).tolist()
        self.skipped.gather(done, skipped := round(mean_skipped * self.plan.world))
        reduced = dict(zip(names, means, strict=True))
        lap = self.clock.lap()
        speed = sum(self.plan.sizes.values()) * (done - self.logged) / lap["wall"]
        self.logged = done
        record = reduced | self.throughput.lap(mean_tokens * self.plan.world, lap["wall"], self.plan.world) | {
            "optim/lr": self.recipe.optim.lr * schedule(self.recipe.optim, done - 1, self.recipe.steps),
            "speed/samples_per_s": speed,
            "speed/data_wait": lap["data_wait"],
            "speed/driver_overhead": lap["driver_overhead"],
            "data/skipped": skipped,
            "data/errors": len(self.skipped),
            "optim/grad_norm": self.engine.grad_norm,
        }  # fmt: skip
        probed: dict[str, float] = {}
        if probe is not None and self._probes(done):
            with self.clock("probe"):
                probed = probe(done)
        measures = {f"loss{path}": Measure(p.unit, p.blind_name) for path, p in passes[0].named()}
        self.metrics.describe(measures | ({} if probe is None else probe.measures))
        self.metrics.write(done, record | probed)
        for text in self.collapse.observe(done, reduced | probed):
            self.progress.note(text)
        extra = {name.removeprefix("probe/"): value for name, value in probed.items() if name.startswith("probe/")}
        self.progress.update(done, reduced["loss"], reduced["blind"], speed, lap["data_wait"], extra)
        if slow := self.data_wait.observe(lap):
            self.progress.note(slow)

    def _spectra(self, done: int) -> bool:
        """Whether eigenvalues are due (a pure function of the step, so that a resumed run records the same)."""
        every, before = SPECTRA, done - self.recipe.log_every
        return before <= 0 or done // every > before // every or done == self.recipe.steps

    def close(self) -> None:
        self.metrics.close()
        self.ledger.close()
        self.progress.close()
        self.guard.flag.restore()


def _engine(recipe: Recipe, plan: Plan, device: torch.device) -> Engine:
    if recipe.zero.stage < 3:
        plan.objective.to(device)  # at stage 3 the engine brings it there in slices
    optimizer = build_optimizer(plan.objective, recipe.optim)
    return Engine(plan.objective, optimizer, recipe, micro=plan.micro, accum=plan.accum, bf16=plan.bf16)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return ((seed * 1_000_003 + step) * 65_537 + rank) % 2**63


def _loss_values(passes: list[Losses], spectra: bool) -> tuple[list[str], Tensor]:
    """Names and means over the passes of one step: each loss and its blind value, total first, and the rest; then the
    health of the views of the last pass. Collective."""
    rows = [dict(_flat(losses)) for losses in passes]
    device = passes[0].total.device
    values = [torch.stack([torch.as_tensor(v, device=device).detach().float() for v in row.values()]) for row in rows]
    views = {f"health{path}/{name}": view for path, part in passes[-1].named() for name, view in part.views.items()}
    found = health.of_views(views, spectra)
    return [*rows[0], *found], torch.cat([torch.stack(values).mean(0), *(value.view(1) for value in found.values())])


def _flat(losses: Losses) -> Iterator[tuple[str, float | Tensor]]:
    for path, part in losses.named():
        yield f"loss{path}", part.total
        yield f"blind{path}", part.blind
        yield from ((f"stats{path}/{name}", value) for name, value in part.stats.items())
        yield from ((f"spread{path}/{name}", value) for name, value in part.spread.items())
