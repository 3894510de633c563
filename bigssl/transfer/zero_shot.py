"""Classification of images, or sounds, by texts that describe the classes, without labelled ones (Radford et al.
2021).

A head file holds "image_projection" (or "audio_projection") [P, D] and "text_projection" [P, D_text], bias-free linear
weights into the shared space, and "logit_scale" [], which does not change which class wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from bigssl.config.evaluate import Evaluation, Item, Label, Limit
from bigssl.data.errors import display
from bigssl.transfer.bench import Bench
from bigssl.transfer.cosines import unit
from bigssl.transfer.inputs import input_of
from bigssl.transfer.knn import encode_labels
from bigssl.transfer.matrix import Matrix
from bigssl.transfer.scores import Score, majority_hits
from bigssl.transfer.subjects import Captions, Encoded, Tensors
from bigssl.transfer.team import AgreedError

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked


class ByTexts(Evaluation):
    """Images, or sounds, to classes that are known by texts; which texts is up to the evaluation."""

    preset = {"captions": "bigssl/demo/emoji/train", "queries": "bigssl/demo/emoji/val", "label": "category"}

    learns_from = "captions"

    heads: str = Field("clip", description="name under export/heads of the two projections")
    image_backbone: str = "image"
    text_backbone: str = "text"
    audio_backbone: str | None = Field(None, description="with heads of sounds, which take the place of images")
    captions: str = Field(description="shards whose captions and labels describe the classes")
    label: Label = "label"
    item: Item = None
    caption_limit: Limit = None

    @property
    def asking(self) -> tuple[str, str]:
        """Modality of what is classified, and its backbone."""
        return ("image", self.image_backbone) if self.audio_backbone is None else ("audio", self.audio_backbone)

    def unlabelled(self) -> dict[str, str]:
        return {self.asking[1]: "captions"}

    def check(self, seen: Checked) -> None:
        kind, _ = self.asking
        asks = input_of(seen.backbone(f"{kind}_backbone", kind))
        texts = input_of(seen.backbone("text_backbone", "text"))
        heads = {kind: f"{kind}_backbone", "text": "text_backbone"}
        seen.head("heads", "clip" if kind == "image" else "pair", heads)
        seen.samples("captions", texts, "label")
        seen.samples("queries", asks, "label", "item")

    def texts(self, captions: Captions) -> tuple[list[str], list[str]]:
        """(texts, class of each)."""
        raise NotImplementedError

    def score(self, queries: Encoded, hits: dict[str, Tensor], classes: list[str], texts: int) -> Score:
        """The row: title and words."""
        raise NotImplementedError

    def raw(self, bench: Bench, queries: Encoded, classes: list[str], asked: Tensor) -> dict[str, Tensor]:
        """{"raw": hits [N]} of the raw input, {} where there is nothing to compare with. A collective."""
        return {}

    def run(self, bench: Bench) -> list[Score]:
        asked = self.asked(bench)
        hits = asked.hits(range(asked.texts)) | asked.beside
        hits |= {} if bench.live else self.raw(bench, asked.queries, asked.classes, asked.right)
        return [self.score(asked.queries, hits, asked.classes, asked.texts)]

    def asked(self, bench: Bench) -> NamedClasses:
        """What is to be told apart, and the texts that may tell it. A collective."""
        kind, name = self.asking
        asks, text = bench.subject(name, kind), bench.subject(self.text_backbone, "text")
        queries = bench.encode(asks, self.queries, limit=self.query_limit, field="queries",
                               columns=self.metadata())  # fmt: skip
        captions = bench.captions(self.captions, [self.label], limit=self.caption_limit, field="captions",
                                  also=[f"sub{self.label}"])  # fmt: skip
        wanted = queries.column(self.label)
        missing = ", ".join(sorted(set(wanted) - set(captions.columns[self.label])))
        if missing:
            raise AgreedError(f"{bench.where}.captions: {display(self.captions)} has no text for {missing}")
        sentences, labels = self.texts(captions)
        described = bench.texts(text, sentences)
        widths = {kind: queries.matrices["trained"].width, "text": described["trained"].width}
        heads = clip_heads(bench, self.heads, widths)
        (known, right), classes = encode_labels(labels, wanted)
        majority = {} if bench.live else {"majority": majority_hits(wanted)}
        return NamedClasses(bench, queries, described, heads, known, right, classes, majority)


@dataclass(frozen=True)
class NamedClasses:
    """Images or sounds whose class is asked, and texts.

    Attributes:
        described: features of the texts by contender.
        known: int64 [texts], the class of each. right: int64 [N], that of each query.
        classes: by name. beside: hits of what sees neither.
    """

    bench: Bench
    queries: Encoded
    described: dict[str, Matrix]
    heads: dict[str, Tensors]
    known: Tensor
    right: Tensor
    classes: list[str]
    beside: dict[str, Tensor]

    @property
    def texts(self) -> int:
        return len(self.known)

    def hits(self, texts: Sequence[int]) -> dict[str, Tensor]:
        """bool [N] by contender, where the texts with these numbers describe the classes. A collective."""
        among = torch.full_like(self.known, len(self.classes))  # a class of those that are left out
        among[list(texts)] = self.known[list(texts)]
        return {name: self._found(name, matrix, among) == self.right for name, matrix in self.described.items()}

    def _found(self, name: str, texts: Matrix, among: Tensor) -> Tensor:
        head, bench = self.heads[name], self.bench
        directions = _directions(bench, texts, among, len(self.classes) + 1, head["text_projection"])
        into = partial(project, weight=head[f"{self.queries.subject.takes.modality}_projection"])
        return nearest_class(bench, self.queries.matrices[name], into, directions[:-1])


def clip_heads(bench: Bench, name: str, widths: Mapping[str, int]) -> dict[str, Tensors]:
    """By contender, the projections of an export and random ones of their shapes. A collective.

    Args:
        widths: values of a feature of the two backbones, by their modality.
    Raises:
        AgreedError: they are of other backbones.
    """
    trained = bench.head(name).tensors
    _check_heads(f"{bench.where}.heads", trained, widths)
    return {"trained": trained, "random_net": _random_heads(trained, bench.seed)}


def _check_heads(where: str, heads: Tensors, widths: Mapping[str, int]) -> None:
    for side, width in widths.items():
        name = f"{side}_projection"
        if name not in heads or heads[name].shape[1:] != (width,):
            there = ", ".join(f"{key} {list(value.shape)}" for key, value in sorted(heads.items()))
            fields = " and ".join(f"{each}_backbone" for each in widths)
            raise AgreedError(
                f"{where}: {name} [any, {width}] is needed for these backbones, there is: {there}; allowed: two "
                f"projections that were trained on {fields}"
            )


def _random_heads(heads: Tensors, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) for name, value in heads.items()}


def _directions(bench: Bench, texts: Matrix, labels: Tensor, classes: int, projection: Tensor) -> Tensor:
    """[classes, P]: the direction of the mean of each class's unit text vectors; each rank sums its share."""
    sums = torch.zeros(classes, len(projection))

    def add() -> None:
        for rows, piece in texts.pieces(bench.team.share(len(texts))):
            sums.add_(class_sums(project(piece, projection), labels[rows.start : rows.stop], classes))

    bench.team.gather(add)
    return unit(bench.team.total(sums))


def nearest_class(
    bench: Bench, queries: Matrix, to_space: Callable[[Tensor], Tensor], directions: Tensor
) -> Tensor:
    """Class int64 [N] of each query [D] by the `directions` [classes, P] in the space to which it is taken. A
    collective."""

    def mine() -> Tensor:
        pieces = queries.pieces(bench.team.share(len(queries)))
        found = [zero_shot_predict(to_space(piece), directions) for _, piece in pieces]
        return torch.cat([torch.empty(0, dtype=torch.int64), *found])

    return bench.hits(mine)


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
