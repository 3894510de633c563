"""Zero-shot classification in closed form and against loops."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex
from bigssl.transfer.discovery import evaluation_union
from bigssl.transfer.features import encoder, text_batches, view_batches
from bigssl.transfer.inputs import ImageInput, TextInput
from bigssl.transfer.scorecard import score
from bigssl.transfer.zero_shot import (
    class_names,
    class_sums,
    project,
    readable,
    zero_shot_predict,
)


def test_project_is_a_linear_map_to_unit_length() -> None:
    vectors = project(torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[3.0, 0], [0, 4], [0, 3]]))
    assert torch.allclose(vectors, torch.tensor([[1, 0, 0], [0, 0.8, 0.6]]))


def test_class_sums_are_those_of_its_rows() -> None:
    texts = torch.tensor([[1.0, 0], [0, 1], [0, -1], [2, 2]])
    assert class_sums(texts, torch.tensor([0, 0, 2, 0]), 3).tolist() == [[3, 3], [0, 0], [0, -1]]


def test_predict_equals_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    images, classes = torch.randn(40, 5, generator=generator), torch.randn(6, 5, generator=generator)
    slow = []
    for image in images:
        cosines = [torch.cosine_similarity(image, each, dim=0).item() for each in classes]
        slow.append(cosines.index(max(cosines)))
    assert zero_shot_predict(images, classes).tolist() == slow


@pytest.mark.parametrize("name, text", [("Food & Drink", "food and drink"), ("face-smiling", "face smiling"),
                                        ("other_symbol", "other symbol"), ("cat", "cat")])
def test_readable(name: str, text: str) -> None:
    assert readable(name) == text


def test_class_names_with_their_finer_names() -> None:
    meta = [{"category": "Food & Drink", "subcategory": "food-fruit"}, {"category": "Food & Drink"},
            {"category": "Animals", "subcategory": "animal-bird"}]
    texts, names = class_names(meta, "category")
    assert dict(zip(texts, names, strict=True)) == {"food and drink": "Food & Drink", "food fruit": "Food & Drink",
                                                    "animals": "Animals", "animal bird": "Animals"}


def test_templates_are_averaged_as_unit_vectors_and_stand_beside_the_names_alone(
    run: Path, shards: Path, make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    """In loops: of each class the mean of the unit vectors of all its names in all templates."""
    templates = ["a {} thing", "thing number 3: {}", "the {}"]
    asked = {"task": "zero_shot", "captions": str(shards / "train"), "queries": str(shards / "val"),
             "label": "category", "templates": templates, "batch": 16}  # fmt: skip
    parse = TypeAdapter(dict[str, evaluation_union()]).validate_python
    card = score(run, parse({"both": asked, "plain": asked | {"templates": ["{}"]}}), seed=3)
    samples = list(read_in_order(DatasetIndex.load(shards / "val")))
    meta = [json.loads(sample.fields["json"]) for sample in read_in_order(DatasetIndex.load(shards / "train"))]
    names, classes = class_names(meta, "category")
    heads = load_file(run / "export/heads/clip.safetensors")
    encode = {kind: encoder(make_model(kind), "cpu") for kind in ("resnet", "bert")}
    views = next(iter(view_batches(samples, ImageInput(32), batch=99)))
    images = project(encode["resnet"](views.arrays), heads["image_projection"])

    def share(forms: list[str]) -> float:
        sums: dict[str, torch.Tensor] = {}
        for name, label in zip(names, classes, strict=True):
            for form in forms:
                (batch,) = text_batches([form.replace("{}", name)], TextInput(tokenizer, 32), batch=9)
                vector = project(encode["bert"](batch.arrays), heads["text_projection"])[0]
                sums[label] = sums.get(label, torch.zeros(8)) + vector
        found = [max(sorted(sums), key=lambda each: float(torch.cosine_similarity(image, sums[each], dim=0)))
                 for image in images]  # fmt: skip
        return sum(one == each["category"] for one, each in zip(found, views.meta, strict=True)) / len(found)

    tasks = card["tasks"]
    assert tasks["both"]["trained"] == pytest.approx(share(templates)) and tasks["both"]["texts"] == 3 * len(names)
    assert tasks["both/names"]["trained"] == tasks["plain"]["trained"] == pytest.approx(share(["{}"]))
    assert tasks["both"]["title"] == "zero-shot category: 3 templates"
    (note,) = [note for note in card["notes"] if "one template alone" in note]
    for form in (*templates, "{}"):
        assert f"{form!r} {100 * share([form]):.1f} %" in note
