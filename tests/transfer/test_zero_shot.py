"""Zero-shot classification in closed form and against loops."""

import pytest
import torch

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
