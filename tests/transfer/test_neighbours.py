"""The passage that follows: what loops find, whom nobody may ask for, and which ask."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig
from bigssl.data.sample import Sample
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.engine.plan.evaluation import Checked
from bigssl.nets.towers import Tower
from bigssl.transfer.baselines import random_network
from bigssl.transfer.cosines import Centred
from bigssl.transfer.features import encoder, text_batches
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.matrix import Matrix
from bigssl.transfer.recall import ranks_among_others
from bigssl.transfer.scorecard import score
from bigssl.transfer.tasks.neighbours import NextPassage
from bigssl.transfer.texts.passages import Cut, Followed, cut_document, some_passages

KINDS = ["thing", "number", "warm", "cool", "red-ish", "green-ish", "blue-ish", "fresh", "new"]
GREETING = "Warm thing, cool thing. Number one."


def story(seed: int, sentences: int) -> str:
    draw = np.random.default_rng(seed)
    own = [" ".join(draw.choice(KINDS, size=4)) + f" {seed} {n}." for n in range(sentences)]
    return " ".join([GREETING, *own])


def packed(folder: Path, documents: list[str]) -> str:
    def item(number: int, text: str) -> Item:
        return Item(f"doc{number}", f"doc{number}", lambda: {"txt": text.encode()})

    pack([item(number, text) for number, text in enumerate(documents)], folder, name="x")
    return str(folder)


def test_the_scorecard_has_what_loops_find(
    tmp_path: Path, make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Passages of two sentences of four documents that begin alike; and of one that has nothing to ask for."""
    held = [story(100 + n, 7 + n) for n in range(4)] + ["Warm."]
    known, model, takes = [story(n, 5) for n in range(3)], make_model("bert"), TextInput(tokenizer, 32)
    export_run(tmp_path, {"text": model}, {"text": takes}, {}, {})
    settings = NextPassage(bank=packed(tmp_path / "bank", known), queries=packed(tmp_path / "held", held), k=[1, 3],
                          seeds=2, batch=5)  # fmt: skip
    card = score(tmp_path, {"next": settings}, seed=3)

    def passages(text: str) -> list[str]:
        sentences = [each if each.endswith(".") else each + "." for each in text.split(". ")]
        return [" ".join(sentences[n : n + 2]) for n in range(0, len(sentences), 2)]

    cut = [passages(text) for text in held]
    texts = list(dict.fromkeys(each for own in cut for each in own))
    asking = [(one, other) for own in cut for one, other in zip(own, own[1:], strict=False) if one != GREETING]
    assert [own[0] for own in cut[:4]] == [GREETING] * 4 and len(asking) == sum(len(own) - 2 for own in cut[:4]) == 14
    bank = list(dict.fromkeys(each for text in known for each in passages(text)))

    def features(network: PreTrainedModel, of: list[str]) -> torch.Tensor:
        return encoder(network, "cpu")(next(iter(text_batches(of, takes, batch=99))).arrays)

    def recall(network: PreTrainedModel, k: int) -> float:
        mean = features(network, bank).mean(0)
        rows = dict(zip(texts, features(network, texts) - mean, strict=True))
        found = 0
        for one, other in asking:
            near = sorted((text for text in texts if text != one),
                          key=lambda text: -torch.cosine_similarity(rows[one], rows[text], dim=0).item())  # fmt: skip
            found += other in near[:k]
        return found / len(asking)

    for k in (1, 3):
        row = card["tasks"]["next" if k == 1 else "next/recall@3"]
        assert row["trained"] == pytest.approx(recall(model, k)) and row["queries"] == len(asking)
        fresh = [recall(random_network(model.config, 3 + seed), k) for seed in range(2)]
        assert row["seeds"]["random_net"] == pytest.approx(fresh) and row["random_net"] == pytest.approx(np.mean(fresh))
        assert row["chance"] == k / (len(texts) - 1) and row["gallery"] == len(texts) - 1 and row["documents"] == 4
        assert set(row["raws"]) == {"TF-IDF of tokens", "TF-IDF of characters"}
    said = " ".join(card["notes"])
    assert f"1 of {len(texts)} passages stand there more than once" in said and "1 of 5 documents have one" in said
    assert card["health"]["text"]["trained"]["samples"] == len(texts)


def test_the_one_that_asks_is_no_candidate(stored: Callable[[torch.Tensor], Matrix]) -> None:
    """Ranks of loops; where all are alike, not more are found than by chance, and never the one that asks."""
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    rows[1] = rows[0]  # nearer than all others, and another one
    meant = {0: 1, 3: 2, 4: 30, 9: 8, 20: 21, 39: 12}
    among = Centred(stored(rows), torch.zeros(5))
    slow = []
    for row, other in meant.items():
        cosines = torch.cosine_similarity(rows[row][None], rows)
        slow.append(1 + sum(bool(cosines[at] > cosines[other]) for at in range(40) if at not in (row, other)))
    for deepest in (1, 10, 39, 99):
        found = ranks_among_others(among, meant, range(40), deepest=deepest).tolist()
        assert found == [min(rank, deepest + 1) for rank in slow], deepest
    halves = [ranks_among_others(among, meant, part, deepest=39).tolist() for part in (range(9), range(9, 40))]
    assert halves[0] + halves[1] == slow and slow[0] == 1 and max(slow) > 10
    alike = Centred(stored(torch.ones(40, 5)), torch.zeros(5))
    everyone = {row: row + 1 for row in range(39)}
    assert sum(ranks_among_others(alike, everyone, range(40), deepest=1) == 1) <= 1


def test_who_asks_follows_from_documents_and_places_alone() -> None:
    """Not from the order of the documents; and what stands twice, in whatever spaces, asks for nobody."""
    documents = [Cut(f"d{n}", [f"{n} {m}" for m in range(20)], True) for n in range(30)]
    documents[7] = Cut("d7", ["7 0", "twice  there", "7 2", "7 3"], True)
    documents[8] = Cut("d8", ["8 0", "8 1", "twice\nthere"], True)

    def chosen(most: int) -> list[tuple[str, str]]:
        found = Followed.of(documents, most)
        assert list(found.meant) == sorted(found.meant) and len(found.documents) == len(found.meant) <= most
        for (one, other), key in zip(found.meant.items(), found.documents, strict=True):
            own = next(document.passages for document in documents if document.key == key)
            assert own.index(found.texts[other]) == own.index(found.texts[one]) + 1
        return sorted((found.texts[one], found.texts[other]) for one, other in found.meant.items())

    few, everyone, some = chosen(100), chosen(10_000), some_passages(documents, 50)
    assert len(few) == 100 and set(few) < set(everyone) and len({one.split()[0] for one, _ in few}) > 20
    assert len(everyone) == 28 * 19 + 1 + 1 and not any("twice" in one + other for one, other in everyone)
    assert Followed.of(documents, 9).common == 1
    random.Random(0).shuffle(documents)
    assert chosen(100) == few and some_passages(documents, 50) == some and len(some) == 50


def test_passages_are_all_of_a_document_in_order_and_none_overlaps() -> None:
    text = "One. Two two.\nThree? --- Four! Five"
    cut = cut_document(Sample("a", {"txt": text.encode()}, 0, 0, "x.tar", "s"), 2)
    assert cut == Cut("a", ["One. Two two.", "Three? --- Four!", "Five"], True)
    assert cut_document(Sample("a", {"txt": b" \n-"}, 0, 0, "x.tar", "s"), 2).passages == []
    long = cut_document(Sample("a", {"txt": b"A word. " * 10_000}, 0, 0, "x.tar", "s"), 2)
    assert not long.whole and sum(map(len, long.passages)) < 1 << 16


def test_documents_of_one_passage_are_refused_before_anything_is_trained(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    folder = packed(tmp_path / "held", ["Warm thing.", "Cool thing. Warm thing."])
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tower = Tower("text", BackboneConfig(type="bert", tokenizer="t", length=16, config=config), tokenizer)
    settings = NextPassage(bank=folder, queries=folder)
    with pytest.raises(ConfigError, match=r"^evaluate.next.queries: .*none of 2 documents that were looked at has two "
                                          r"passages of 2 sentences; allowed: longer documents, or a smaller"):
        settings.check(Checked("evaluate.next", settings, {"text": tower}, {}))
    one = settings.model_copy(update={"sentences": 1})
    one.check(Checked("evaluate.next", one, {"text": tower}, {}))
