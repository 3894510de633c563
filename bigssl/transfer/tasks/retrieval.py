"""Finding the same item in its other view, or in words, among samples never trained on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from bigssl.config.evaluate import METADATA, Evaluation, Limit
from bigssl.config.section import PositiveInt
from bigssl.transfer.bench import Bench
from bigssl.transfer.inputs import input_of
from bigssl.transfer.recall import Across, ascending, first_ranks, recalled
from bigssl.transfer.scores import Score
from bigssl.transfer.team import AgreedError

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked


class Retrieval(Evaluation):
    """Nearest neighbours of an item among all items in another view: is it among them?

    Without `heads`, views are samples of one backbone that differ in the field `view`, in both directions. With heads
    of CLIP, they are pictures and their texts, through the projections: a row for each direction. With those of
    `audio_text` or `audio_image` they are sounds and their texts, or sounds and pictures.
    """

    preset = {"bank": "bigssl/demo/emoji/train", "queries": "bigssl/demo/emoji/val", "pair": "code", "view": "design"}

    learns_from = "bank"

    backbone: str = "image"
    bank: str = Field(description="shards whose mean is taken from all features before each cosine")
    pair: Annotated[str | None, METADATA] = Field(
        None, description="metadata field that views of one item share; across modalities the default is the key"
    )
    view: Annotated[str | None, METADATA] = Field(
        None, description="metadata field that tells the views of an item apart"
    )
    heads: str | None = Field(None, description="name under export/heads of two projections: across modalities")
    image_backbone: str = Field("image", description="with heads of pictures")
    text_backbone: str | None = Field("text", description="with heads; none: sounds are looked for in pictures")
    audio_backbone: str | None = Field(None, description="with heads of sounds, which take the place of pictures, or "
                                                         "without text_backbone of texts")  # fmt: skip
    k: list[PositiveInt] = Field([1], min_length=1, description="neighbours that are looked at, ascending")
    bank_limit: Limit = None

    _ascends = field_validator("k")(ascending)

    @model_validator(mode="after")
    def _of_one_kind(self) -> Retrieval:
        if self.heads is None and (self.pair is None or self.view is None):
            raise ValueError("pair and view are needed, the metadata fields that views of one item share and that tell "
                             "them apart; or heads, to look for pictures and their texts in each other")  # fmt: skip
        if self.heads is not None and self.view is not None:
            raise ValueError("view has no effect beside heads, whose views are pictures and texts; allowed: one of the "
                             "two")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _has_two_sides(self) -> Retrieval:
        if self.audio_backbone is None and self.text_backbone is None:
            raise ValueError("text_backbone: none without audio_backbone leaves pictures alone; allowed: one of them")
        if self.heads is None and self.audio_backbone is not None:
            raise ValueError("audio_backbone has no effect without heads; allowed: backbone, with pair and view")
        return self

    @property
    def sides(self) -> dict[str, str]:
        """Backbones across which is looked, by modality, texts last."""
        seen = {"image": self.image_backbone}
        heard = {} if self.audio_backbone is None else {"audio": self.audio_backbone}
        return heard | seen if self.text_backbone is None else (heard or seen) | {"text": self.text_backbone}

    def unlabelled(self) -> dict[str, str]:
        return {self.backbone if self.heads is None else next(iter(self.sides.values())): "bank"}

    def check(self, seen: Checked) -> None:
        if self.heads is None:
            takes = input_of(seen.backbone("backbone"))
            seen.samples("bank", takes)
            seen.samples("queries", takes, "pair", "view")
            return
        inputs = [input_of(seen.backbone(f"{side}_backbone", side)) for side in self.sides]
        kind = "pair" if "audio" in self.sides else "clip"
        seen.head("heads", kind, {side: f"{side}_backbone" for side in self.sides})
        seen.samples("bank", inputs[0])
        seen.samples("queries", inputs[0], "pair")
        seen.samples("queries", inputs[1])

    def run(self, bench: Bench) -> list[Score]:
        return self._of_views(bench) if self.heads is None else self._across(bench, self.heads)

    def _across(self, bench: Bench, heads: str) -> list[Score]:
        across = Across.of(bench, heads, self.sides, url=self.queries, limit=self.query_limit, pair=self.pair)
        return [score for direction in across.directions(bench, self.k[-1]) for score in direction.scores(self.k)]

    def _of_views(self, bench: Bench) -> list[Score]:
        assert self.pair is not None and self.view is not None
        network = bench.subject(self.backbone)
        bank = bench.encode(network, self.bank, limit=self.bank_limit, field="bank", columns=[])
        queries = bench.encode(network, self.queries, limit=self.query_limit, field="queries",
                               columns=self.metadata())  # fmt: skip
        contenders = {name: of(queries) for name, of in bench.contenders(bank).items()}
        ids, views = queries.column(self.pair), queries.column(self.view)
        rows = bench.team.share(len(ids))
        ranks: dict[str, list[Tensor]] = {name: [] for name in contenders}
        groups: list[str] = []
        galleries: list[int] = []
        for asking, gallery in _rounds(ids, views):
            groups += [ids[i] for i in asking]
            galleries += [len(gallery)] * len(asking)
            for name, among in contenders.items():
                ranks[name].append(bench.hits(partial(
                    first_ranks, among, asking, ids, among, gallery, ids, rows, deepest=self.k[-1])))  # fmt: skip
        if not groups:
            raise AgreedError(f"{bench.where}.pair: value {self.pair!r}, but none occurs in two {self.view!r}s; "
                              "allowed: a metadata field that views of one item share")  # fmt: skip
        found = {name: torch.cat(parts) for name, parts in ranks.items()}
        return [self._score(k, network.takes.plural, found, groups, galleries) for k in self.k]

    def _score(self, k: int, plural: str, ranks: dict[str, Tensor], groups: list[str], galleries: list[int]) -> Score:
        where = "as their nearest neighbour" if k == 1 else f"among their {k} nearest neighbours"
        title = f"retrieval: same {self.pair}, other {self.view}" + (f", recall@{k}" if k > 1 else "")
        subject = f"of {len(groups)} unseen {plural} have the same {self.pair} in the other {self.view} {where}"
        return recalled(title, subject, ranks, groups, k=k, galleries=galleries, row="" if k == 1 else f"recall@{k}")


def _rounds(ids: list[str], views: list[str]) -> Iterator[tuple[list[int], list[int]]]:
    """(samples of one view that have a counterpart in another, all samples of that) for each ordered pair of views."""
    members = {name: [i for i, each in enumerate(views) if each == name] for name in sorted(set(views))}
    for one, other in ((a, b) for a in members for b in members if a != b):
        there = {ids[i] for i in members[other]}
        if asking := [i for i in members[one] if ids[i] in there]:
            yield asking, members[other]
