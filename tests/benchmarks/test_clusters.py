"""The simulator of our own cost: its laws against simulations step by step, its counts against counting."""

from __future__ import annotations

import heapq
import json
import random
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bigssl.config.recipe import load_recipe, recipe_model
from bigssl.engine.plan.activations import OnPaper
from bigssl.nets.norm import GlobalBatchNorm
from bigssl.objectives.base import config_union
from bigssl.transfer.discovery import evaluation_union

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
from clusters import law, measured, paper, predict, profiles, step  # noqa: E402
from clusters.law import Collective  # noqa: E402

H100 = profiles.H100
NEVER_BUSY = {"reading": 1e30, "writing": 1e30, "store_read": 1e30, "store_write": 1e30, "opens": 1e30, "stream": 1e30}
NO_NETWORK = {"inner": 1e30, "outer": 1e30, "inner_latency": 0.0, "outer_latency": 0.0}
WORK = step.Work(
    passes=0.1, update=0.01, backward=0.06, accum=1, collectives=(Collective("all_reduce", 2048, 100),
    Collective("all_gather", 1e7)), stage=1, trained=1e8, weights=1.2e8, bucket=1e7, overlap=False, slices=False,
    layers=12, samples=64, sample_bytes=1e5, samples_per_open=2000, readers=5000, whole=1e8, sliced=3e8,
    every=1000, spread=0.02,
)  # fmt: skip


def events(ready: list[float], pieces: list[float]) -> float:
    """When the last piece is through: a queue of arrivals, and one server that is busy or is not."""
    arrivals = [(when, n) for n, when in enumerate(ready)]
    heapq.heapify(arrivals)
    free, waiting, now = True, list[int](), 0.0
    done: list[tuple[float, int]] = []
    while arrivals or done:
        if done and (not arrivals or done[0][0] <= arrivals[0][0]):
            now, _ = heapq.heappop(done)
            free = True
        else:
            now, n = heapq.heappop(arrivals)
            waiting.append(n)
        if free and waiting:
            heapq.heappush(done, (now + pieces[waiting.pop(0)], 0))
            free = False
    return now


def test_what_backward_does_not_hide_is_that_of_a_queue() -> None:
    draw = random.Random(0)
    for _ in range(300):
        count = draw.randint(1, 12)
        ready = sorted(draw.random() for _ in range(count))
        pieces = [draw.choice([0.01, 0.1, 0.5]) * draw.random() for _ in range(count)]
        end = ready[-1] + draw.random() / 10
        assert law.exposed(ready, pieces, end) == pytest.approx(max(events(ready, pieces), end) - end, abs=1e-12)


def test_buckets_by_overlap() -> None:
    whole = law.seconds_of(Collective("all_reduce", 1e8), H100, 64)
    once = law.bucketed(1e8, 1e8, 1.0, "all_reduce", H100, 64, overlap=True)
    assert once == pytest.approx(whole)  # nothing is left to hide it
    serial = law.bucketed(1e8, 1e7, 1.0, "all_reduce", H100, 64, overlap=False)
    last = law.seconds_of(Collective("all_reduce", 1e7), H100, 64)
    assert serial == pytest.approx(10 * last)
    assert law.bucketed(1e8, 1e7, 1.0, "all_reduce", H100, 64, overlap=True) == pytest.approx(last)  # a long backward
    assert law.bucketed(1e8, 1e7, 0.0, "all_reduce", H100, 64, overlap=True) == pytest.approx(serial)  # none
    assert law.bucketed(1.05e8, 1e7, 1.0, "all_reduce", H100, 64, overlap=False) > serial
    owners = law.bucketed(1e9, 1e9, 0.0, "reduce", H100, 8, overlap=False)
    assert owners == pytest.approx(law.seconds_of(Collective("reduce_scatter", 1e9), H100, 8), rel=0.05)


def ticks(compute: float, gather: float, layers: int, ahead: int, tick: float = 1e-4) -> float:
    """The same as `law.prefetched`, a tick after the other: two machines, of which each does a little in each tick."""
    left_gather, left_compute = [gather / layers] * layers, [compute / layers] * layers
    fetching = computing = 0
    time = 0.0
    while computing < layers:
        time += tick
        if fetching < layers and fetching < computing + ahead + (left_compute[computing] < compute / layers):
            left_gather[fetching] -= tick
            fetching += left_gather[fetching] <= 1e-9
        if computing < fetching:
            left_compute[computing] -= tick
            computing += left_compute[computing] <= 1e-9
    return time - compute


@pytest.mark.parametrize(("gather", "ahead"), [(0.1, 1), (0.4, 1), (0.4, 3), (1.0, 2), (2.0, 3)])
def test_weights_that_are_fetched_ahead(gather: float, ahead: int) -> None:
    found = law.prefetched(1.0, gather, 8)
    assert found == pytest.approx(ticks(1.0, gather, 8, ahead), abs=0.02)
    assert gather / 8 <= found + 1e-12  # the first layer's cannot hide
    assert law.prefetched(1.0, 0.0, 8) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("world", [2, 8, 64])
def test_the_slowest_of_many(world: int) -> None:
    draw = random.Random(world)
    drawn = [[draw.lognormvariate(0, 0.05) for _ in range(world)] for _ in range(4000)]
    mean = statistics.fmean(map(max, drawn)) / statistics.fmean(x for row in drawn for x in row) - 1
    assert law.slowest(0.05, world) == pytest.approx(mean, abs=0.003)
    assert law.slowest(0.05, 1) == 0


def ring(size: float, world: int, speed: float, hop: float) -> float:
    """Seconds of an all-reduce by a ring, hop by hop: each rank sends a piece on as soon as it has it."""
    piece = [size / world] * world
    now = [0.0] * world
    for _ in range(2 * (world - 1)):
        arrived = [now[rank] + piece[rank] / speed + hop for rank in range(world)]
        now = [max(arrived[rank - 1], arrived[rank]) for rank in range(world)]
    return max(now)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_collectives_are_those_of_a_ring_simulated(world: int) -> None:
    node = replace(H100, inner=1e9, inner_latency=1e-5)
    assert law.seconds_of(Collective("all_reduce", 1e8), node, world) <= ring(1e8, world, 1e9, 1e-5) * (1 + 1e-9)
    large = law.seconds_of(Collective("all_reduce", 1e9), node, world)
    assert large == pytest.approx(ring(1e9, world, 1e9, 1e-5), rel=1e-3)
    both = [law.seconds_of(Collective(kind, 1e9), node, world) for kind in ("reduce_scatter", "all_gather")]
    assert sum(both) == pytest.approx(ring(1e9, world, 1e9, 1e-5), rel=1e-9)
    with pytest.raises(ValueError, match="all_gather"):
        law.seconds_of(Collective("gossip", 1), node, world)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_limits_of_the_law(stage: int) -> None:
    work = replace(WORK, stage=stage, overlap=stage == 3, spread=0.0)
    alone = step.parts_of(work, replace(H100, **NEVER_BUSY), 1)
    assert alone.total == pytest.approx(work.passes + work.update)
    assert alone.traffic == {"zero": 0, "objective": 0}
    ideal = step.parts_of(work, replace(H100, **NEVER_BUSY, **NO_NETWORK), 4096)
    assert ideal.total == pytest.approx(work.passes + work.update)
    assert step.parts_of(work, H100, 4096).total > alone.total


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_more_ranks_never_make_a_step_shorter(stage: int) -> None:
    work = replace(WORK, stage=stage, slices=stage == 2)
    for cluster in profiles.PROFILES.values():
        worlds = [8, 64, 512, 4096]
        totals = [step.parts_of(work, cluster, world).total for world in worlds]
        assert totals == sorted(totals)
        faster = replace(cluster, inner=2 * cluster.inner, outer=2 * cluster.outer)
        assert all(step.parts_of(work, faster, w).total <= t for w, t in zip(worlds, totals, strict=True))
        for fields in ({"passes": 0.2}, {"trained": 1e9}, {"spread": 0.1}, {"sample_bytes": 1e8}, {"every": 10}):
            assert step.parts_of(replace(work, **fields), cluster, 512).total >= totals[2]


def test_data_and_checkpoints_wait_for_what_is_slowest() -> None:
    held = {
        "workers": replace(WORK, readers=10.0), "node": replace(WORK, sample_bytes=1e9),
        "opens": replace(WORK, samples_per_open=1e-3),
    }  # fmt: skip
    for name, work in held.items():
        parts = step.parts_of(work, H100, 8)
        assert (parts.held_by, parts.first_limit()) == (name, "data")
        assert parts.total - parts.checkpoint == pytest.approx(work.samples / step.supply(work, H100, 8)[name])
    store = replace(H100, store_read=1e6)
    parts = step.parts_of(WORK, store, 4096)
    assert parts.held_by == "store"
    read = 4096 * WORK.samples * WORK.sample_bytes / (parts.total - parts.checkpoint)
    assert read == pytest.approx(store.store_read)
    one = step.save_seconds(WORK, H100, 8)
    assert one == pytest.approx((1e8 + 3e8 / 8) / H100.stream, rel=0.01)
    slow = replace(H100, store_write=1e6)
    assert step.save_seconds(WORK, slow, 8) == pytest.approx(4e8 / 1e6, rel=1e-6)


def recipe(name: str, *overrides: str) -> object:
    model = recipe_model(config_union(), evaluation_union())
    return load_recipe(ROOT / "launch/recipes" / name, list(overrides), model)


def test_counts_at_other_places() -> None:
    """What is said of 512 ranks is what counting there says; VICReg changes its ways, and that is noticed."""
    simclr = recipe("gpu/simclr-cifar10.yaml")
    shapes = paper.on_paper(simclr)
    said, true = shapes.by_terms(512, 20), shapes.count(512, 20)
    assert said.collectives.keys() == true.collectives.keys()
    assert all(size == pytest.approx(true.collectives[key], rel=1e-6) for key, size in said.collectives.items())
    assert sum(said.flops.values()) == pytest.approx(sum(true.flops.values()), rel=1e-6)
    gathers = [size for (phase, kind, _), size in true.collectives.items() if f"{phase} {kind}" == "forward all_gather"]
    (gathered,) = [size for size in gathers if size > 512 * 20 * 2 * 8]  # beside two numbers of each row
    assert gathered == 512 * 20 * 2 * 256 * 2  # two views of 256 numbers in bf16 from each sample of each rank
    norms = [part for part in OnPaper(simclr).objective.modules() if isinstance(part, GlobalBatchNorm)]
    moments = sum(size for (phase, *_), size in true.collectives.items() if phase == "norms")
    assert norms and moments == 512 * 4 * sum(2 * each.num_features + 1 for each in norms)  # SyncBatchNorm's way
    shapes.examine(512, 20)
    assert shapes.follows
    changing = paper.on_paper(recipe("gpu/vicreg-cifar10.yaml"))
    changing.examine(512, 20)
    assert not changing.follows
    assert max(changing.at(512, 20).collectives.values()) == 2048 * 2048 * 4


def test_a_row_for_each_number_of_gpus() -> None:
    demo = recipe("cpu/simclr.yaml")
    shapes = paper.on_paper(demo)
    settings = predict.Settings(workers=8)
    rows = predict.rows_of(demo, shapes, H100, [1, 8, 64], settings)
    assert [row.gpus for row in rows] == [1, 8, 64]
    assert {row.micro * row.accum for row in rows} == {256 // 8}
    assert [row.efficiency for row in rows] == sorted((row.efficiency for row in rows), reverse=True)
    parts = rows[0].parts
    assert rows[0].efficiency == pytest.approx(1 - parts.checkpoint / parts.total, abs=0.01) and parts.checkpoint
    assert all(row.limit == "host" for row in rows)  # small networks
    strong = predict.rows_of(demo, shapes, H100, [8, 256, 512], replace(settings, strong=True))
    assert [(row.gpus, row.micro) for row in strong] == [(8, 32), (256, 1)]  # 512 GPUs have no sample each
    fit = measured.Fitted("simclr", 0.1, 0.01, 0.3, 0.02, 0.0, 1e9, 1, 1e9, 1.0, 1e9, (4, 8))
    (alone,) = predict.rows_of(demo, shapes, H100, [1], settings, fit)
    assert alone.parts.compute == pytest.approx(0.1 + 0.32 + 0.02)


def test_fits_find_what_made_the_times() -> None:
    points = [(size, 2 * 30e-6 + size / 2e8) for size in (4096, 1 << 20, 8 << 20)]
    run = {"found": {"world": 2, "collectives": {"all_reduce": points}}}
    latency, speed = measured.fit_link([run])
    assert (latency, speed) == (pytest.approx(30e-6, rel=1e-6), pytest.approx(2e8, rel=1e-6))
    assert measured.nonnegative([[1, 1], [1, 2]], [2.0, 1.0])[1] == 0  # more work in less time is noise


def test_measured_as_it_is_used(tmp_path: Path) -> None:
    """Two ranks of SimCLR; what they send is what is counted on paper, to the byte of every large collective."""
    out = tmp_path / "found.json"
    command = [sys.executable, "benchmarks/scaling.py", "launch/recipes/cpu/simclr.yaml", "--measure", str(out)]
    command += ["--ranks", "2", "--micro", "4", "--steps", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(out.read_text())["runs"]
    true = {(kind, size): count for kind, size, count in run["found"]["sent"]["4"] if size > 64}
    shapes = paper.on_paper(recipe("cpu/simclr.yaml", *run["overrides"]), gpus=False)
    small: dict[tuple[str, float], int] = {}
    for (_, kind, _), size in shapes.count(2, 4).collectives.items():
        small[kind, size] = small.get((kind, size), 0) + 1
    sums = {key: count for key, count in small.items() if key[0] == "all_reduce" and key[1] > 64}
    assert sums and all(true[key] == count for key, count in sums.items())
    assert true["reduce", shapes.trained / 2] == 2  # each slice of the gradients to the rank that owns it
    gathered = sum(size * count for (kind, size), count in true.items() if kind == "all_gather" and size > 16_384)
    assert gathered == pytest.approx(shapes.trained, rel=0.01)
