"""Classification of images by texts that describe the classes, without a labelled image (Radford et al. 2021).

A head file holds "image_projection" [P, D_image] and "text_projection" [P, D_text], bias-free linear weights into the
shared space, and "logit_scale" [], which does not change which class wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TextEncoder = Callable[[Sequence[str]], Tensor]


def project(features: Tensor, weight: Tensor) -> Tensor:
    """Unit vectors [N, P] in the shared space of features [N, D] under a weight [P, D]."""
    return F.normalize(features.float() @ weight.float().T, dim=1)


def class_sums(vectors: Tensor, labels: Tensor, classes: int) -> Tensor:
    """[classes, P]: the sum of the vectors [N, P] of each class; labels int64 [N]. Of unit text vectors, its direction
    is the class's (prompt ensembling)."""
    return torch.zeros(classes, vectors.shape[1]).index_add_(0, labels, vectors.float())


def zero_shot_predict(image_vectors: Tensor, class_text_vectors: Tensor) -> Tensor:
    """Class int64 [N] with the largest cosine. image_vectors [N, P], class_text_vectors [classes, P]."""
    return (F.normalize(image_vectors.float(), dim=1) @ F.normalize(class_text_vectors.float(), dim=1).T).argmax(1)


def readable(name: str) -> str:
    """A class name as a caption would say it: `Food & Drink` -> `food and drink`, `face-hat` -> `face hat`."""
    return " ".join(name.replace("&", " and ").replace("-", " ").replace("_", " ").lower().split())


def class_names(meta: Sequence[Mapping[str, object]], label: str) -> tuple[list[str], list[str]]:
    """(texts, class of each): every class by its name, and by the names of its finer classes where `sub<label>` exists.

    meta: the metadata of captioned samples; label: e.g. "category", with "subcategory" as the finer one.
    """
    pairs: dict[tuple[str, str], None] = {}
    for values in meta:
        name = str(values[label])
        pairs[readable(name), name] = None
        if f"sub{label}" in values:
            pairs[readable(str(values[f"sub{label}"])), name] = None
    ordered = sorted(pairs)
    return [text for text, _ in ordered], [name for _, name in ordered]
