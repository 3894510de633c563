"""Retrieval against loops: of views, and across modalities."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bigssl.data.order.stream import read_in_order
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.transfer import matrix
from bigssl.transfer.cosines import Centred
from bigssl.transfer.discovery import evaluation_union
from bigssl.transfer.features import encoder, text_batches, view_batches
from bigssl.transfer.inputs import ImageInput, TextInput
from bigssl.transfer.matrix import Matrix
from bigssl.transfer.recall import first_ranks, items_as_one
from bigssl.transfer.scorecard import score

Stored = Callable[[torch.Tensor], Matrix]


def test_items_with_an_equal_text_count_as_one() -> None:
    """Also where one links others: A and B say the same, and so do B and C in another text."""
    said = [("dog", "A"), ("dog", "B"), ("hound", "B"), ("hound", "C"), ("cat", "D"), ("puss", "D")]
    assert items_as_one(said) == {"A": "A", "B": "A", "C": "A", "D": "D"}


def hits(stored: Stored, queries: torch.Tensor, gallery: torch.Tensor, query_ids: list[str], gallery_ids: list[str]
         ) -> list[bool]:
    """Queries and gallery as rows of one matrix, queries first."""
    rows = Centred(stored(torch.cat([queries, gallery])), torch.zeros(queries.shape[1]))
    asking = range(len(queries))
    members = range(len(queries), len(rows))
    ids = query_ids + gallery_ids
    ranks = first_ranks(rows, asking, ids, rows, members, ids, range(len(rows)), deepest=1)
    return [rank == 1 for rank in ranks.tolist()]


@pytest.mark.parametrize("rows", [4096, 7])
def test_equals_loops(rows: int, stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking rows and gallery lie mixed in the matrix; a share of its rows gives that share of the hits."""
    monkeypatch.setattr(matrix, "ROWS", rows)
    generator = torch.Generator().manual_seed(0)
    items = torch.randn(31, 6, generator=generator)
    both = torch.stack([items, items + 1.2 * torch.randn(31, 6, generator=generator)], dim=1).flatten(0, 1)
    gallery, asking = list(range(0, 62, 2)), list(range(1, 47, 2))
    ids = [str(i // 2) for i in range(62)]
    slow = []
    for row in asking:
        cosines = [torch.cosine_similarity(both[row], both[other], dim=0).item() for other in gallery]
        slow.append(1 + sum(each > cosines[row // 2] for each in cosines))
    assert {1, 2, 3} < set(slow) and max(slow) > 5
    mean = torch.tensor([5.0, 0, 0, -3, 0, 0])
    there = Centred(stored(both + mean), mean)

    def found(rows: range, deepest: int) -> list[int]:
        return first_ranks(there, asking, ids, there, gallery, ids, rows, deepest=deepest).tolist()

    for deepest in (1, 5, 31, 99):
        assert found(range(62), deepest) == [min(rank, deepest + 1) for rank in slow], deepest
    parts = [found(range(a, b), 5) for a, b in ((0, 20), (20, 62))]
    assert parts[0] + parts[1] == found(range(62), 5) and len(parts[0]) == 10


def test_collapsed_features_are_at_chance(stored: Stored) -> None:
    ids = [str(i) for i in range(20)]
    assert sum(hits(stored, torch.ones(20, 5), torch.ones(20, 5), ids, ids)) == 1


def test_the_nearest_row_decides(stored: Stored) -> None:
    query, gallery = torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 1], [1, 0.1], [1, 0]])
    assert hits(stored, query, gallery, ["a"], ["a", "a", "b"]) == [False]
    assert hits(stored, query, gallery, ["b"], ["a", "b", "b"]) == [True]


def test_query_without_counterpart_is_refused(stored: Stored) -> None:
    with pytest.raises(ValueError, match="1 query ids are not in the gallery, the first 'z'"):
        hits(stored, torch.eye(2), torch.eye(2), ["a", "z"], ["a", "b"])


def several_captions(sample: Sample) -> Item:
    """It, with another text of its own in its json."""
    said = json.loads(sample.fields["json"]) | {"captions": [f"number {sample.fields['txt'].decode()} thing"]}
    fields = sample.fields | {"json": json.dumps(said).encode()}
    return Item(sample.key, sample.key, lambda: fields)


def test_pictures_and_texts_are_looked_for_in_each_other(
    run: Path, shards: Path, make_shards: Callable[..., None], make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
) -> None:  # fmt: skip
    """Both directions at each rank, against loops over the projected features. Of a picture's several captions each
    is asked for and looked for."""
    plain, val = run / "plain", run / "val"
    make_shards(plain, range(10))  # whose numbers the tokenizer knows: no two texts are one
    pack([several_captions(sample) for sample in read_in_order(DatasetIndex.load(plain))], val, name="x")
    asked = {"task": "retrieval", "heads": "clip", "bank": str(shards / "train"), "queries": str(val), "pair": "code",
             "k": [1, 3], "batch": 16}  # fmt: skip
    parse = TypeAdapter(dict[str, evaluation_union()]).validate_python
    tasks = score(run, parse({"pairs": asked}), seed=3)["tasks"]
    samples = list(read_in_order(DatasetIndex.load(val)))
    codes = [json.loads(sample.fields["json"])["code"] for sample in samples]
    written = [[sample.fields["txt"].decode(), *json.loads(sample.fields["json"])["captions"]] for sample in samples]
    said = list(dict.fromkeys((text, code) for texts, code in zip(written, codes, strict=True) for text in texts))
    assert len(said) == 20 and len(samples) == 20, "two designs share their words"
    heads = load_file(run / "export/heads/clip.safetensors")
    with torch.no_grad():
        views = next(iter(view_batches(samples, ImageInput(32), batch=99))).arrays
        words = next(iter(text_batches([text for text, _ in said], TextInput(tokenizer, 32), batch=99))).arrays
        images = encoder(make_model("resnet"), "cpu")(views) @ heads["image_projection"].T
        texts = encoder(make_model("bert"), "cpu")(words) @ heads["text_projection"].T
    ids = [code for _, code in said]
    for way, (asking, theirs), (gallery, known) in (
        ("images_to_texts", (images, codes), (texts, ids)), ("texts_to_images", (texts, ids), (images, codes)),
    ):  # fmt: skip
        for k in (1, 3):
            hits = 0
            for row, wanted in zip(asking, theirs, strict=True):
                cosines = torch.cosine_similarity(row[None], gallery)
                hits += wanted in [known[at] for at in cosines.argsort(descending=True)[:k]]
            task = tasks[f"pairs/{way}" + ("" if k == 1 else f"@{k}")]
            assert task["trained"] == pytest.approx(hits / len(theirs)), (way, k)
            assert task["raw"] is None and task["random_net"] is not None and task["gallery"] == len(known)
            assert task["chance"] == pytest.approx(k / len(known)) and task["queries"] == len(theirs)
    of_views = {key: value for key, value in asked.items() if key != "heads"} | {"view": "design", "k": [1, 5]}
    rows = score(run, parse({"views": of_views}), seed=3)["tasks"]
    assert rows.keys() == {"views", "views/recall@5"} and rows["views"]["trained"] <= rows["views/recall@5"]["trained"]
    assert rows["views/recall@5"]["chance"] == pytest.approx(5 / 10) and "among their 5 nearest" in (
        rows["views/recall@5"]["sentence"])  # fmt: skip
