"""What a rank sends in a step is what the step needs, to the byte (benchmarks/traffic.py prints it for every task)."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from contract_runs import Cell

from bigssl import distributed
from bigssl.engine import settings, zero
from bigssl.objectives.simclr import Simclr

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import traffic  # noqa: E402
from conftest import section_of  # noqa: E402
from wire import counted  # noqa: E402

CELLS = [("simclr", 0, None, 1), ("byol", 1, None, 2), ("clip", 2, None, 2), ("mlm", 3, 0, 2), ("byol", 3, None, 1),
         ("byol", 3, 0, 2), ("series_contrast", 1, None, 1), ("mae", 2, None, 1)]  # fmt: skip


def counts(crew: Any, out: Path, name: str, stage: int, persistence: int | None, accum: int, plant: Any = None) -> Any:
    values = traffic.recipe_values(name, Cell(stage, persistence, 2, "fp32"), accum, section_of, str(out / "run"))
    return crew(planted, 2, values, plant)


def planted(values: Any, plant: Any) -> Any:
    if plant is None:
        return traffic.count(values)
    with plant():
        return traffic.count(values)


@pytest.mark.distributed
@pytest.mark.parametrize(("name", "stage", "persistence", "accum"), CELLS)
def test_a_step_sends_what_it_needs(
    name: str, stage: int, persistence: int | None, accum: int, crew: Any, tmp_path: Path
) -> None:
    for rank in counts(crew, tmp_path, name, stage, persistence, accum):
        assert rank.sent == rank.least and name in traffic.LOSSES
        assert rank.sent["weights"] > 0 and rank.sent["numbers"] < 100


def gathers_once_more() -> Any:
    compare = Simclr.compare

    def more(self: Any, embeddings: Any, at: Any) -> Any:
        distributed.gather_rows(embeddings["view1"])
        return compare(self, embeddings, at)

    return mock.patch.object(Simclr, "compare", more)


def keeps_a_slice_of_an_all_reduce() -> Any:
    return mock.patch.object(settings, "_slices_pay", lambda trained, world: False)


@pytest.mark.distributed
@pytest.mark.parametrize("plant, part", [(gathers_once_more, "losses"), (keeps_a_slice_of_an_all_reduce, "weights")])
def test_what_is_sent_for_nothing_is_seen(plant: Any, part: str, crew: Any, tmp_path: Path) -> None:
    for rank in counts(crew, tmp_path, "simclr", 1, None, 1, plant):
        assert {name for name, sent in rank.sent.items() if sent != rank.least[name]} == {part}


def volumes() -> dict[str, Fraction]:
    """Of 12 bytes a rank, by collective."""
    zero.start()
    x, parts = torch.ones(3), [torch.ones(3), torch.ones(3)]
    calls = {
        "all_reduce": lambda: dist.all_reduce(x), "all_gather": lambda: dist.all_gather(parts, x),
        "reduce_scatter": lambda: dist.reduce_scatter(x, parts), "broadcast": lambda: dist.broadcast(x, 0),
        "reduce": lambda: dist.reduce(x, 1), "all_to_all": lambda: dist.all_to_all_single(torch.ones(4), torch.ones(4)),
        "functional": lambda: torch.ops._c10d_functional.all_gather_into_tensor(x, 2, dist.group.WORLD.group_name),
        "barrier": dist.barrier,
    }  # fmt: skip
    found = {}
    for name, call in calls.items():
        with counted() as wire:
            call()
        found[name] = wire.total()
    return found


@pytest.mark.distributed
def test_volumes_are_those_of_a_ring(crew: Any) -> None:
    want = {"all_reduce": 12, "all_gather": 12, "reduce_scatter": 12, "broadcast": 6, "reduce": 6, "all_to_all": 8,
            "functional": 12, "barrier": 0}  # fmt: skip
    assert crew(volumes, 2) == [want, want]


def test_slices_are_reduced_one_by_one_where_their_way_is_short() -> None:
    """A ResNet-50 on 64 ranks: 100 MB less to send, which take 5 ms, for messages that take 20 ms."""
    pay = settings._slices_pay
    assert pay(1_000, 8) and pay(25_000_000, 8) and not pay(25_000_000, 64)
    assert pay(1_000_000_000, 64) and not pay(1_000_000_000, 1024)
