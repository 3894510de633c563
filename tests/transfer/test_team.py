"""Ranks that evaluate together: what fails on one ends all, and how they meet and wait."""

import os
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from bigssl.config.evaluate import Evaluation
from bigssl.data.shards.index import DatasetIndex
from bigssl.distributed import NoMeeting
from bigssl.transfer import matrix, scorecard, subjects
from bigssl.transfer import team as teams
from bigssl.transfer.discovery import evaluation_union
from bigssl.transfer.inputs import ImageInput, TextInput
from bigssl.transfer.leaving import export
from bigssl.transfer.scorecard import score
from bigssl.transfer.team import AgreedError, Team

Ranks = Callable[..., list[Any]]


def lonely_score(run: Path, asked: dict[str, Evaluation], culprit: int, what: str) -> str:
    """What all ranks are told where one cannot do one thing."""

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(f"no {what} here")

    if int(os.environ["RANK"]) == culprit:
        setattr(*FAULTS[what], fail)
    torch.distributed.init_process_group("gloo")
    try:
        return "; ".join(dict.fromkeys(score(run, asked, seed=3)["failed"].values()))
    except AgreedError as error:
        return str(error)


FAULTS: dict[str, tuple[Any, str]] = {
    "network": (export, "load_backbone"), "head": (export, "load_head"), "tokenizer": (TextInput, "read"),
    "calibration": (subjects, "calibrate_batch_norm"), "size": (ImageInput, "read"),
    "index": (DatasetIndex, "load"), "folder": (shutil, "rmtree"), "features": (matrix.FilePart, "read"),
    "card": (scorecard, "write_atomic"),
}  # fmt: skip


@pytest.mark.distributed
@pytest.mark.parametrize("what", FAULTS)
def test_whatever_fails_on_one_rank_ends_all_with_its_words(what: str, run: Path, shards: Path, ranks: Ranks) -> None:
    train, val, label = str(shards / "train"), str(shards / "val"), "category"
    knn = {"task": "knn", "bank": train, "queries": val, "label": label, "k": 5}
    asked = TypeAdapter(dict[str, evaluation_union()]).validate_python({
        "images": knn, "captions": knn | {"backbone": "text"},
        "names": {"task": "zero_shot", "queries": val, "captions": train, "label": label},
    })  # fmt: skip
    culprit = 0 if what == "card" else 1
    assert ranks(lonely_score, 2, run, asked, culprit, what, timeout=60) == 2 * [f"no {what} here"]


def meet_without_a_way(interface: str) -> str:
    torch.distributed.init_process_group("gloo")
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    with pytest.raises(NoMeeting) as caught:
        Team()
    return str(caught.value)


@pytest.mark.distributed
def test_ranks_that_gloo_cannot_join_are_told_what_to_set(ranks: Ranks) -> None:
    for text in ranks(meet_without_a_way, 2, "nowhere0", timeout=60):
        assert "nowhere0" in text and "set GLOO_SOCKET_IFNAME" in text and "\n" not in text


def meet_and_be_late() -> list[int]:
    torch.distributed.init_process_group("gloo")
    teams.CONNECT = timedelta(seconds=1)
    team = Team()
    time.sleep(2.5 * team.rank)
    return team.gather(lambda: team.rank)


@pytest.mark.distributed
def test_ranks_that_have_met_wait_longer_than_for_a_connection(ranks: Ranks) -> None:
    assert ranks(meet_and_be_late, 2) == 2 * [[0, 1]]
