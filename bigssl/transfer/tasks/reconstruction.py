"""Held-out pictures, drawn again: what a decoder makes of a network's states, beside what needs no network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.config.evaluate import Evaluation, Item, Limit
from bigssl.data.errors import display
from bigssl.nets.heads.base import Head
from bigssl.nets.remaking.base import Remade, Remaker, discover_remakers
from bigssl.report.pictures import write_grid
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import Views, evaluating, samples_at, view_batches
from bigssl.transfer.inputs import input_of
from bigssl.transfer.measures.pictures import WINDOW, psnr, ssim
from bigssl.transfer.scores import RAW, Score
from bigssl.transfer.subjects import Encoded, Notes, Subject
from bigssl.transfer.team import AgreedError, named

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked

PICTURES = 8  # that are shown to a person
AT_ONCE = 32  # that are measured
MEASURES: dict[str, tuple[str, Callable[[Tensor, Tensor, Tensor], Tensor]]]
MEASURES = {"psnr": ("dB", psnr), "ssim": ("SSIM", ssim)}  # by name, unit and function
Measured = dict[str, dict[str, Tensor]]  # by measure and contender, float64 [B]


class Reconstruction(Evaluation):
    """Pictures that a decoder draws of a network's states (inpainting, MAE, autoencoders, colours): PSNR and SSIM where
    they are judged, beside the mean picture of the bank, simple ways without a network, and a random network with a
    random decoder.

    What is hidden follows from the key of the sample alone: it is the same for all, in every run. Eight samples, the
    same every time, are drawn for a person: RUN/pictures, and the report.
    """

    preset = {"head": "pictures", "bank": "bigssl/demo/emoji/train", "queries": "bigssl/demo/emoji/val",
              "item": "code", "bank_limit": 64, "query_limit": 48, "batch": 32}  # fmt: skip

    learns_from = "bank"

    head: str = Field(description="name under export/heads of the decoder")
    backbone: str = "image"
    bank: str = Field(description="shards trained on: their mean picture is the blind line, and from them the "
                                  "BatchNorm of the random network is set")  # fmt: skip
    item: Item = None
    bank_limit: Limit = None

    def unlabelled(self) -> dict[str, str]:
        return {self.backbone: "bank"}

    def check(self, seen: Checked) -> None:
        tower = seen.backbone("backbone", "image")
        if tower.size < WINDOW:
            seen.refuse("backbone", f"pictures of {tower.size} pixels a side; allowed: {WINDOW}, a window of SSIM")
        seen.head("head", discover_remakers(), {"image": "backbone"})
        seen.samples("bank", input_of(tower))
        seen.samples("queries", input_of(tower), "item")

    def run(self, bench: Bench) -> list[Score]:
        subject, head = bench.subject(self.backbone, "image"), bench.head(self.head)
        makers = bench.team.each(lambda: _makers(bench, subject, head))
        blind = None if bench.live else self._mean_picture(bench, subject)
        mine = Notes(self.metadata())
        views = mine.of(bench.views(subject.takes, self.queries, self.query_limit, "queries"))
        judge = partial(_judged, bench, subject, makers, blind)
        found = bench.team.gather(lambda: (mine, list(bench.passes(views, judge, _nothing))))
        parts = [part for _, each in found for part in each]
        notes = [part for part, _ in found]
        queries = Encoded(subject, {}, [key for part in notes for key in part.keys], notes)
        if not parts:
            raise AgreedError(f"{bench.where}.queries: no samples in {display(self.queries)}")
        self._show(bench, subject, makers["trained"])
        return [self._score(name, _whole(parts, name), queries) for name in MEASURES]

    def _mean_picture(self, bench: Bench, subject: Subject) -> Tensor:
        """uint8 [1, C, H, W], of the bank. A collective."""

        def mine() -> tuple[Tensor, int]:
            total, count = torch.zeros((), dtype=torch.float64), 0
            for views in bench.views(subject.takes, self.bank, self.bank_limit, "bank"):
                total = total + views.arrays["image"].double().sum(0)
                count += len(views.keys)
            return total, count

        totals, counts = zip(*bench.team.gather(mine), strict=True)
        if not sum(counts):
            raise AgreedError(f"{bench.where}.bank: no samples in {display(self.bank)}")
        mean: Tensor = sum(totals) / sum(counts)
        return mean.round().to(torch.uint8)[None]

    def _show(self, bench: Bench, subject: Subject, trained: Maker) -> None:
        """Draws the pictures for a person. A collective: every rank makes the same pass, the main one writes."""
        index = bench.index(self.queries)
        numbers = sorted({n * len(index) // PICTURES for n in range(PICTURES)})
        shown = bench.read(("pictures", self.queries, subject.takes),
                           lambda: view_batches(samples_at(index, numbers), subject.takes, batch=PICTURES))  # fmt: skip
        (views,) = bench.team.each(lambda: list(shown))
        if bench.rehearsal or bench.out is None:
            return
        pictures = views.arrays["image"].to(bench.device)
        remade = bench.team.each(lambda: _remade(bench, subject, trained, pictures, views.keys))
        if remade is None:
            return
        rows = {"given": remade.given, "made": remade.made, "truth": pictures}
        write = partial(write_grid, bench.out, bench.where.partition(".")[2], bench.step,
                        {name: row.cpu().numpy() for name, row in rows.items()}, trained[1].caption())  # fmt: skip
        bench.team.gather(lambda: str(write()) if bench.team.rank == 0 else "")

    def _score(self, name: str, values: dict[str, Tensor], queries: Encoded) -> Score:
        return Score(
            f"pictures drawn again: {name.upper()}",
            f"of {len(queries)} unseen pictures drawn again, where they are judged", values, queries.groups(self.item),
            unit=MEASURES[name][0], names={"blind": "the mean picture of the bank"}, row=name,
        )  # fmt: skip


Maker = tuple[PreTrainedModel, Remaker]


def _makers(bench: Bench, subject: Subject, head: Head) -> dict[str, Maker]:
    """By contender, a network on the device with its decoder: the trained one, or one with random weights by the seed.
    Raises DataError where the head is none that draws pictures of this network."""
    found: dict[str, Maker] = {}
    for name, model in subject.models.items():
        model.to(bench.device)  # type: ignore[arg-type]
        tensors = head.tensors if name == "trained" else None
        with named(f"{bench.where}.head: a head of the kind {head.kind!r}"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(bench.seed)
            found[name] = model, _of_head(head, tensors, model)
    return found


def _of_head(head: Head, tensors: Mapping[str, Tensor] | None, model: PreTrainedModel) -> Remaker:
    try:
        return Remaker.of_head(head.kind, head.settings, tensors, model)
    except (KeyError, TypeError):
        allowed = ", ".join(sorted(discover_remakers()))
        raise ValueError(f"draws no pictures with settings {head.settings}; allowed: {allowed}") from None


def _judged(
    bench: Bench, subject: Subject, makers: Mapping[str, Maker], blind: Tensor | None, views: Views
) -> Measured:  # fmt: skip
    """Of a batch, by measure and contender. While a network trains, NaN where its pixels are not finite."""
    pictures = views.arrays["image"].to(bench.device)
    remade = {name: _remade(bench, subject, maker, pictures, views.keys) for name, maker in makers.items()}
    if (own := remade["trained"]) is None:
        odd = torch.full((len(pictures),), float("nan"), dtype=torch.float64)
        return {measure: {"trained": odd} for measure in MEASURES}
    made = {name: each.made for name, each in remade.items() if each is not None}
    if blind is not None:
        made["blind"] = torch.where(own.judged, blind.to(bench.device), pictures)
        simple = makers["trained"][1].simple(pictures, own.given, own.judged)
        made |= {RAW + words: each for words, each in simple.items()}
    return {measure: {name: _measured(by, each, pictures, own.judged) for name, each in made.items()}
            for measure, (_, by) in MEASURES.items()}  # fmt: skip


def _measured(by: Callable[[Tensor, Tensor, Tensor], Tensor], *pictures: Tensor) -> Tensor:
    """float64 [B], on the CPU; a few at a time, since a measure holds several copies in float64."""
    pieces = zip(*(each.split(AT_ONCE) for each in pictures), strict=True)
    return torch.cat([by(*piece) for piece in pieces]).cpu()


def _remade(
    bench: Bench, subject: Subject, maker: Maker, pictures: Tensor, keys: Iterable[str]
) -> Remade | None:  # fmt: skip
    """None where the pixels of a network that trains are not finite: its loss says so, and the other ranks are not left
    in a pass. Of an exported one, whatever is wrong is a DataError."""
    model, remaker = maker
    seeds = torch.tensor([picture_seed(key) for key in keys], device=pictures.device)
    exported = nullcontext() if bench.live else named(f"{bench.where}: pictures of {subject.name}")
    try:
        with exported, evaluating(model):
            return remaker.remake(model, pictures, seeds)
    except FloatingPointError:
        return None


def picture_seed(key: str) -> int:
    """int64 of the key of a sample: what is hidden of it in every evaluation."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little", signed=True)


def _nothing(views: Views) -> Measured:
    return {measure: {"trained": torch.zeros(len(views.keys), dtype=torch.float64)} for measure in MEASURES}


def _whole(parts: list[Measured], measure: str) -> dict[str, Tensor]:
    """By contender, of all batches; the trained one alone where it was not finite."""
    names = [name for name in parts[0][measure] if all(name in part[measure] for part in parts)]
    return {name: torch.cat([part[measure][name] for part in parts]) for name in names}
