"""Zero-shot classification in closed form and against loops."""

import pytest
import torch

from bigssl.transfer.zero_shot import (
    class_names,
    class_vectors,
    project,
    readable,
    zero_shot_accuracy,
    zero_shot_predict,
)


def test_project_is_a_linear_map_to_unit_length() -> None:
    vectors = project(torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[3.0, 0], [0, 4], [0, 3]]))
    assert torch.allclose(vectors, torch.tensor([[1, 0, 0], [0, 0.8, 0.6]]))


def test_class_vector_is_the_direction_of_the_mean_of_unit_texts() -> None:
    texts = torch.tensor([[10.0, 0], [0, 0.1], [0, -7]])
    vectors = class_vectors(texts, torch.tensor([0, 0, 1]), 2)
    assert torch.allclose(vectors, torch.tensor([[0.5**0.5, 0.5**0.5], [0, -1]]))


def test_number_of_texts_of_a_class_is_no_advantage() -> None:
    texts = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 2, 2, 2])
    repeated = class_vectors(torch.cat([texts, texts[:1], texts[:1]]), torch.cat([labels, torch.tensor([0, 0])]), 3)
    assert torch.allclose(repeated, class_vectors(texts, labels, 3), atol=1e-6)


def test_class_without_text_is_refused() -> None:
    with pytest.raises(ValueError, match=r"classes \[1\] of 3 have no text"):
        class_vectors(torch.eye(2), torch.tensor([0, 2]), 3)


def test_predict_equals_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    images, classes = torch.randn(40, 5, generator=generator), torch.randn(6, 5, generator=generator)
    slow = []
    for image in images:
        cosines = [torch.cosine_similarity(image, each, dim=0).item() for each in classes]
        slow.append(cosines.index(max(cosines)))
    assert zero_shot_predict(images, classes).tolist() == slow
    assert zero_shot_accuracy(images, classes, torch.tensor(slow)) == 1.0
    assert zero_shot_accuracy(images, classes, (torch.tensor(slow) + torch.arange(40) % 2) % 6) == 0.5


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
