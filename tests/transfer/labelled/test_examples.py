"""Labelled samples by number."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigssl.data.errors import DataError
from bigssl.data.order.stream import read_in_order
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex
from bigssl.transfer.bench import Bench
from bigssl.transfer.inputs import ImageInput
from bigssl.transfer.labelled import examples as module
from bigssl.transfer.labelled.classes import label_target
from bigssl.transfer.labelled.examples import Examples, examples
from bigssl.transfer.labelled.fit import announced
from bigssl.transfer.matrix import Scratch
from bigssl.transfer.subjects import Exported
from bigssl.transfer.team import Team


def found(bench: Bench, shards: Path, **rest: Any) -> Examples:
    subject = bench.subject("image")
    return examples(bench, subject.takes, str(shards / "train"), field="train", target=label_target("category"),
                    **{"limit": None, **rest})  # fmt: skip


def test_samples_are_read_again_by_number_whatever_is_kept_of_them(
    bench: Bench, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = list(read_in_order(DatasetIndex.load(str(shards / "train"))))
    view = ImageInput(32).view
    one = view(every[0])["image"].nbytes
    for room in (0, 5 * one, 1 << 28):
        monkeypatch.setattr(module, "KEPT", room)
        kept = found(bench, shards, columns=["code"])
        assert kept.keys == [sample.key for sample in every] and len(kept) == 120
        for rows in ([7, 3, 3, 119], [3, 0, 7], list(range(20))):
            batch = kept.batch(rows)["image"]
            assert all(torch.equal(batch[n], torch.from_numpy(view(every[row])["image"])) for n, row in enumerate(rows))
            assert [s.key for s in kept.samples(rows)] == [every[row].key for row in rows]
        assert len(kept.views._kept) == {0: 0, 5 * one: 5}.get(room, 21)
        assert kept.groups("code") == kept.column("code") and kept.groups(None) == kept.keys


def test_the_next_batch_is_made_while_a_network_works(
    bench: Bench, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing kept. Of two samples the views are made at once, where they are no texts."""
    monkeypatch.setattr(module, "KEPT", 0)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    together, made = threading.Barrier(2), queue.SimpleQueue[str]()

    def view(sample: Sample) -> dict[str, np.ndarray]:
        together.wait(10)
        made.put(sample.key)
        return {"image": np.zeros(3, np.uint8)}

    bench.subject("image")  # whose random twin wants real views
    monkeypatch.setattr(ImageInput, "view", lambda takes, sample: view(sample))
    some = found(bench, shards)
    for rows in announced([[0, 1], [2, 3]], some.soon):
        if rows == [0, 1]:
            assert {made.get(timeout=10) for _ in range(4)} == set(some.keys[:4]), "before anything was asked for"
        assert some.batch(rows)["image"].shape == (2, 3) and made.empty()
    monkeypatch.setattr(ImageInput, "view", broken)
    bad = found(bench, shards)
    bad.soon([0])
    with pytest.raises(DataError, match="broken"):
        bad.batch([0])


def broken(takes: ImageInput, sample: Sample) -> dict[str, np.ndarray]:
    raise DataError("broken")


def test_dealt_labels_are_the_same_labels_of_other_samples(bench: Bench, shards: Path) -> None:
    plain = found(bench, shards)
    dealt, again, other = plain.permuted(0), plain.permuted(0), plain.permuted(1)
    assert Counter(dealt.targets) == Counter(plain.targets) and dealt.keys == plain.keys
    assert dealt.targets == again.targets != other.targets and dealt.targets != plain.targets
    same = sum(one == two for one, two in zip(dealt.targets, plain.targets, strict=True))
    assert 20 < same < 60, "a third by chance"


def share_of_a_rank(run: Path, shards: Path, limit: int | None) -> list[Any]:
    team = Team()
    with Scratch(run, team) as scratch:
        bench = Bench(team, scratch, Exported(run / "export", 0, {}), "cpu", where="evaluate.mine")
        made = found(bench, shards, limit=limit, columns=["code"])
        return [made.keys, made.targets, made.column("code"), list(made.numbers), bench.notes]


def test_every_rank_has_every_sample_though_each_has_read_its_share(
    run: Path, shards: Path, ranks: Callable[..., list[Any]], bench: Bench
) -> None:
    made = found(bench, shards, limit=50, columns=["code"])
    alone = [made.keys, made.targets, made.column("code"), list(made.numbers), bench.notes]
    assert ranks(share_of_a_rank, 2, run, shards, 50) == [alone, alone] and len(made) == 50
    assert "evaluate.mine.train: 50 of 120 samples, drawn by a fixed seed." in bench.notes


def test_equal_texts_are_one_observation(bench: Bench, shards: Path) -> None:
    """(Both designs of a code have the same caption.)"""
    texts = examples(bench, bench.subject("text").takes, str(shards / "val"), limit=None, field="queries",
                     target=label_target("category"), columns=["code"])  # fmt: skip
    assert len(set(texts.groups(None))) == 21 < len(texts) == 42
    assert len(set(zip(texts.groups(None), texts.groups("code"), strict=True))) == 21
