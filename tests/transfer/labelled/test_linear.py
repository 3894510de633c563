"""Linear models of frozen features and of raw input, beside scikit-learn's on the same vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import label_ranking_average_precision_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.order.stream import read_numbers
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.transfer.bags import Bags
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import encoder
from bigssl.transfer.labelled import logistic, vectors
from bigssl.transfer.labelled.classes import LabelSet, ranking_precision
from bigssl.transfer.labelled.classify import Classification
from bigssl.transfer.labelled.logistic import fit_logistic
from bigssl.transfer.labelled.probing import linear_learners
from bigssl.transfer.labelled.trials import Trial
from bigssl.transfer.labelled.vectors import Spanned, Standardised, bag_vectors
from bigssl.transfer.matrix import Matrix
from bigssl.transfer.scorecard import score
from bigssl.transfer.scores import row_of
from bigssl.transfer.tasks.finetune import Finetune
from bigssl.transfer.tasks.linear import LinearProbe

DEMO = Path(__file__).parents[3] / "bigssl" / "demo" / "emoji"


def probe(**fields: Any) -> Any:
    places = {"train": str(DEMO / "train"), "queries": str(DEMO / "val")}
    return LinearProbe(**{**places, "label": "category", "train_limit": 200, "query_limit": 150, **fields})


def centred(logits: torch.Tensor) -> torch.Tensor:
    """A softmax does not see what is added to all of them."""
    return logits - logits.mean(1, keepdim=True)


def test_a_probe_is_scikit_learns_on_the_same_features(bench: Bench) -> None:
    """Of the demo's pictures: both networks, and raw pixels; and of a part of the samples, standardised by these."""
    section = probe()
    job = Classification.of(bench, section)
    bank, queries = (bench.encode(job.subject, url, limit=most, field="", columns=[])
                     for url, most in ((section.train, 200), (section.queries, 150)))  # fmt: skip
    known, asked = job.known.numpy(), job.asked.numpy()
    for name, learn in linear_learners(bench, section, job, [30.0]).items():
        x, z = bank.matrices[name].read(0, 200).numpy(), queries.matrices[name].read(0, 150).numpy()
        for rows in (torch.arange(200), torch.arange(0, 200, 2))[name.startswith("raw") :]:
            scaler = StandardScaler().fit(x[rows])
            with threadpool_limits(1):
                theirs = LogisticRegression(C=1 / 30, max_iter=5000, tol=1e-6)
                theirs.fit(scaler.transform(x[rows]), known[rows])
            wanted = torch.from_numpy(theirs.decision_function(scaler.transform(z)))
            found = learn(Trial(name, 0.5, 0, rows))
            off = (centred(found) - centred(wanted)).abs().max() / centred(wanted).abs().max()
            assert off < 0.02, (name, len(rows), off)
            ours = (found.argmax(1).numpy() == asked).mean()
            assert abs(ours - theirs.score(scaler.transform(z), asked)) < 0.004, name


def test_features_are_read_when_a_trial_needs_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of all contenders before the first of them learns; and of the samples of the trial alone."""
    section, read = probe(seeds=2, train_limit=60, query_limit=20), []
    job = Classification.of(bench, section)
    for url, most in ((section.train, 60), (section.queries, 20)):
        bench.encode(job.subject, url, limit=most, field="", columns=[])
    whole = Matrix.read
    learners = linear_learners(bench, section, job, [30.0])
    monkeypatch.setattr(Matrix, "read", lambda matrix, *rows: (read.append(matrix), whole(matrix, *rows))[1])
    again = linear_learners(bench, section, job, [30.0])
    looked = {id(matrix) for matrix in read}  # for the means of the bank
    assert len(looked) <= len(again)
    read.clear()
    learners["trained"](Trial("trained", 1.0, 0, torch.arange(0, 60, 2)))
    assert len({id(matrix) for matrix in read}) == 2, "what is learnt from and what is judged, of one contender"


def test_wide_vectors_are_learnt_from_by_their_products_as_by_themselves(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TF-IDF of the demo's captions, a million columns: as scikit-learn on the sparse rows at the same scale. With
    fewer landmarks than samples it is an approximation, which still classifies nearly as well."""
    section = probe(backbone="text")
    job = Classification.of(bench, section)
    bank, queries = (bench.encode(job.subject, url, limit=most, field="", columns=[])
                     for url, most in ((section.train, 200), (section.queries, 150)))  # fmt: skip
    of = bench.contenders(bank)["raw/TF-IDF of characters"]
    known, judged = of(bank), of(queries)
    assert isinstance(known, Bags) and isinstance(judged, Bags)
    x, z = (next(bags.pieces())[1].values for bags in (known, judged))
    places = [torch.tensor([encoded.keys.index(text) for text in part.contents])
              for encoded, part in ((bank, job.train), (queries, job.queries))]  # fmt: skip
    assert len(bank.keys) < 200 and len(set(places[0].tolist())) == len(bank.keys), "designs share a caption"
    rows = torch.arange(0, 200, 2)
    learnt, others = bag_vectors(known, judged, *places).of(Trial("raw/x", 0.5, 0, rows))
    scale = learnt[0].norm().item() / np.sqrt(x[places[0][rows[0]]].power(2).sum())
    x, z = x[places[0][rows].numpy()] * scale, z[places[1].numpy()] * scale
    there = np.unique(x.indices)
    x, z = x[:, there], z[:, there]
    assert torch.allclose(learnt @ others.T, torch.from_numpy((x @ z.T).toarray()), atol=1e-3 * scale**2)
    centre = learnt - learnt.mean(0)
    assert centre.square().sum(1).mean().item() == pytest.approx(vectors.ENERGY, rel=0.05)
    learner = linear_learners(bench, section, job, [30.0])["raw/TF-IDF of characters"]
    theirs = LogisticRegression(C=1 / 30, max_iter=5000, tol=1e-6).fit(x, job.known[rows].numpy())
    found, wanted = learner(Trial("raw/x", 0.5, 0, rows)), torch.from_numpy(theirs.decision_function(z))
    assert (centred(found) - centred(wanted)).abs().max() < 0.02 * centred(wanted).abs().max()
    monkeypatch.setattr(vectors, "LANDMARKS", 70)
    fewer = linear_learners(bench, section, job, [30.0])["raw/TF-IDF of characters"](Trial("raw/x", 0.5, 0, rows))
    accuracy = [(each.argmax(1) == job.asked).double().mean().item() for each in (found, fewer)]
    assert not torch.equal(found, fewer) and accuracy[1] > accuracy[0] - 0.1 and accuracy[0] > 0.3


def test_rows_of_wide_pictures_are_found_piece_by_piece() -> None:
    x, z = (torch.randn(n, 50, generator=torch.Generator().manual_seed(n)) for n in (30, 20))
    pieces = lambda of, size: lambda: iter([(range(a, min(a + size, len(of))), of[a : a + size])  # noqa: E731
                                            for a in range(0, len(of), size)])  # fmt: skip
    at, asked = torch.randperm(30), torch.tensor([3, 3, 19, 0])
    rows = torch.tensor([1, 4, 17, 29])
    for size in (1, 7, 30):
        learnt, judged = Spanned(pieces(x, size), pieces(z, size), at, asked).of(Trial("raw/x", 0.5, 0, rows))
        products, wanted = learnt @ judged.T, x[at[rows]] @ z[asked].T
        assert torch.allclose(products / products[0, 0], wanted / wanted[0, 0], atol=1e-4)


def test_each_seed_has_a_random_network_of_its_own(bench: Bench) -> None:
    """The one that would be trained with that seed; no health is noted of it."""
    section = probe(train_limit=60, query_limit=40, seeds=2)
    job = Classification.of(bench, section)
    learn, rows = linear_learners(bench, section, job, [30.0])["random_net"], torch.arange(60)
    found = [learn(Trial("random_net", 1.0, seed, rows)) for seed in (0, 1)]
    for seed in (0, 1):
        encode = encoder(bench.network(job.subject, "random_net", seed), "cpu")
        vectors = Standardised(encode(job.train.batch(range(60))), encode(job.queries.batch(range(40))))
        learnt, judged = vectors.of(Trial("random_net", 1.0, seed, rows))
        wanted = fit_logistic(learnt, job.known, l2=[30.0], classes=len(job.classes))(judged)
        assert torch.allclose(found[seed], wanted, atol=1e-3), seed
    assert not torch.allclose(found[0], found[1], atol=0.1)
    assert set(bench.checkup.health) == {"image"}


def test_a_regression_that_did_not_come_to_its_optimum_is_noted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "PASSES", 1)
    monkeypatch.setattr(logistic, "ROUNDS", 1)
    job = Classification.of(bench, section := probe(train_limit=60, query_limit=40, seeds=1))
    linear_learners(bench, section, job, [1e-6])["trained"](Trial("trained", 1.0, 0, torch.arange(60)))
    assert [note for note in bench.notes if "logistic" in note] == [
        "evaluate.mine: of trained, a logistic regression stopped before its optimum, so its number may be too low; "
        "leave out the least values of l2."]  # fmt: skip


@pytest.mark.parametrize("several", [False, True])
def test_scores_that_are_no_numbers_are_no_answers(several: bool) -> None:
    """The greatest of NaNs is the first class."""
    classes = LabelSet(["a", "b"], several)
    scores, wanted = torch.tensor([[torch.nan, 0.0], [-torch.inf, 0.0]]), classes.numbers([("a",), ("b",)] if several
                                                                                          else ["a", "b"])  # fmt: skip
    with pytest.raises(DataError, match="^1 of 4 scores of queries are not finite; look at the network's weights"):
        classes.right(scores, wanted)
    assert classes.right(scores.nan_to_num(1, neginf=-torch.inf), wanted).all(), "what is never chosen may be -inf"


def labelled(folder: Path, metas: list[dict[str, Any]]) -> str:
    """Shards of pictures of the demo with this metadata."""
    pictures = list(read_numbers(DatasetIndex.load(str(DEMO / "val")), range(len(metas))))
    items = [Item(f"{n:03d}", f"{n:03d}", lambda n=n: {"jpg": pictures[n].fields["jpg"],
                                                       "json": json.dumps(metas[n]).encode()})
             for n in range(len(metas))]  # fmt: skip
    pack(items, folder, name="x")
    return str(folder)


BAD: dict[str, tuple[list[Any], list[Any], str]] = {
    "one class": (["a"] * 4, ["a"] * 3, "label: value 'kind': of the samples that are learnt from all 4 are of class "
                                        "'a'; allowed: two classes or more"),
    "a class that is not learnt": (["a", "b"] * 2, ["a", "c", "c"], "value 'kind': 2 queries are of 'c', but no sample "
                                                                    "that is learnt from; allowed: the 2 classes of"),
    "a sample without": (["a", "b", None, "a"], ["a", "b"], r"sample '002': no metadata field 'kind' in its json; it "
                                                            "has other"),
    "a query without": (["a", "b"], ["a", None], "sample '001': no metadata field 'kind'"),
    "lists in some": (["a", ["a", "b"]], ["a"], "a list in some samples and one value in others; allowed: one of both"),
    "an object": (["a", {"x": 1}], ["a"], "sample '001': metadata field 'kind' holds {'x': 1}; allowed: a text, a"),
    "no label at all": ([[], []], [[]], "none of 2 has a label; allowed: two classes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_data_that_cannot_be_learnt_from_is_said_in_a_line(case: str, bench: Bench, tmp_path: Path) -> None:
    train, queries, said = BAD[case]
    places = [labelled(tmp_path / name, [{"other": "x"} | ({} if value is None else {"kind": value}) for value in part])
              for name, part in (("a", train), ("b", queries))]  # fmt: skip
    with pytest.raises(DataError, match=said) as caught:
        Classification.of(bench, probe(train=places[0], queries=places[1], label="kind"))
    assert "\n" not in str(caught.value)


def test_ranking_precision_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (60, 6), generator=generator).double()
    wanted = torch.rand(60, 6, generator=generator) < 0.4
    wanted[0], wanted[1] = False, True
    for row in range(60):
        theirs = label_ranking_average_precision_score(wanted[[row]].numpy(), scores[[row]].numpy())
        assert ranking_precision(scores, wanted)[row].item() == pytest.approx(theirs)


class Largest(TorchDispatchMode):
    """numbers: of the largest tensor that was made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(each.numel() for each in tree_leaves(found) if torch.is_tensor(each))])
        return found


def test_the_memory_of_a_ranking_grows_with_the_labels_not_with_their_pairs() -> None:
    """Of 2000 samples with 500 labels, pairs of these are gigabytes."""
    scores = torch.rand(4, 300, generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        ranking_precision(scores, scores > 0.7)
    assert largest.numbers <= scores.numel()


def test_samples_of_several_labels_are_ranked(bench: Bench, tmp_path: Path) -> None:
    """Labels that depend on the colour of a picture are learnt from its pixels; permuted, they are not."""
    pictures = [decode.image(s.fields["jpg"]) for s in read_numbers(DatasetIndex.load(str(DEMO / "val")), range(240))]
    level = np.array([np.asarray(p, dtype=float).mean((0, 1)) for p in pictures])
    names = [[name for name, on in zip(("red", "green", "blue"), each, strict=True) if on]
             for each in level > np.median(level, 0)]  # fmt: skip
    metas = [{"kind": each, "n": n} for n, each in enumerate(names)]
    train = labelled(tmp_path / "a", metas)
    section = probe(train=train, queries=train, label="kind", seeds=1, fractions=[0.5, 1.0], l2=[1.0, 100.0])
    row = row_of(section.run(bench)[0])
    assert row["classes"] == 3 and row["blind_name"] == "labels by their frequency" and row["majority"] is None
    assert row["raw"] > row["blind"] + 0.05 and row["title"] == "image linear probe: kind"
    classes = LabelSet(["blue", "green", "red"], True)
    assert torch.equal(classes.numbers([("red",), (), ("blue", "red")]),
                       torch.tensor([[0, 0, 1], [0, 0, 0], [1, 0, 1]]).bool())  # fmt: skip


def cards(run: Path, shards: Path) -> dict[str, Any]:
    """The rows of evaluations that learn, as this rank has them."""
    torch.distributed.init_process_group("gloo")
    torch.set_num_threads(1)
    places: dict[str, Any] = {"train": str(shards / "train"), "queries": str(shards / "val"), "label": "category"}
    asked = {
        "linear": LinearProbe(**places, fractions=[0.1, 1.0], seeds=2),
        "texts": LinearProbe(**places, backbone="text", fractions=[0.2], seeds=3),
        "tuned": Finetune(**places, fractions=[0.2], seeds=3, epochs=2, least_steps=9),
    }
    with threadpool_limits(1):
        card = score(run, asked, seed=3)
    assert not card["failed"], card["failed"]
    return dict(card["tasks"])


def test_labels_that_are_dealt_anew_tell_nothing(bench: Bench) -> None:
    """By the same procedure on the same samples, of which it else learns what the baselines do not know."""
    learnt, dealt = (row_of(probe(train_limit=500, query_limit=300, fractions=[1.0], seeds=1, l2=[100.0],
                                  permuted=each).run(bench)[0]) for each in (False, True))  # fmt: skip
    for name in ("trained", "random_net", "raw"):
        assert learnt[name] > learnt["majority"] + 0.08 and dealt[name] < dealt["majority"] + 0.03, name
    assert learnt["verdict"] != dealt["verdict"] and not dealt["passed"]


def test_a_seed_says_it_all_on_any_number_of_ranks(
    run: Path, shards: Path, ranks: Callable[..., list[Any]]
) -> None:
    (alone,), (first, second) = ranks(cards, 1, run, shards), ranks(cards, 2, run, shards)
    assert alone == first == second
    assert {len(row["seeds"]["trained"]) for row in alone.values()} == {2, 3}
    assert alone["linear"]["trained"] > alone["linear"]["majority"] + 0.2, "colours are seen by any network"
