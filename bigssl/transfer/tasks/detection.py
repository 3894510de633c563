"""Held-out documents of which a generator has replaced some tokens: which ones does the trained network tell?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.config.evaluate import Evaluation, Limit
from bigssl.config.section import PositiveInt
from bigssl.data.errors import display
from bigssl.nets.heads.base import MaskedLanguageHead
from bigssl.nets.heads.replacing import DiscriminatorHead
from bigssl.nets.modality import MODALITIES
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import evaluating
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.measures.ranking import area_under_curve
from bigssl.transfer.random_nets import random_mean, with_heads
from bigssl.transfer.scores import RAW, Score
from bigssl.transfer.team import AgreedError
from bigssl.transfer.texts.documents import Unasked
from bigssl.transfer.texts.lines import Lines, lines_of_bank, surroundings, vocabulary_of
from bigssl.transfer.texts.lm_heads import masked_heads
from bigssl.transfer.texts.replaced import HiddenPieces, Replacing, hidden_pieces

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked

GRAMS = f"{RAW}surprise of interpolated n-grams"
Judges = dict[str, tuple[PreTrainedModel, DiscriminatorHead]]


class Detection(Evaluation):
    """Replaced-token detection (ELECTRA) on held-out documents: how well tokens that the trained generator put there
    are told from those of the text, and the loss, beside random networks with random heads, the share that was
    replaced, and how little a token suits its neighbours by n-grams of the bank.

    The tokens are the same for all: hidden by the key of the document, drawn by the trained generator. Special tokens
    are not judged. Documents are the independent units of the standard error.
    """

    preset = {"generator": "text", "bank": "bigssl/demo/text/train", "queries": "bigssl/demo/text/val",
              "bank_limit": 2, "query_limit": 2, "seeds": 2}  # fmt: skip

    learns_from = "bank"

    head: str = Field("replaced_token", description="name under export/heads of what judges tokens")
    backbone: str = "text"
    generator_head: str = Field("mlm", description="name under export/heads of the head of the generator")
    generator: str = Field("generator", description="backbone that puts tokens there")
    bank: str = Field(description="documents trained on, whose n-grams are the raw baseline")
    bank_limit: Limit = None
    ratio: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are hidden")
    seeds: PositiveInt = Field(3, description="random networks, the mean of which is the baseline")

    def check(self, seen: Checked) -> None:
        judging = seen.backbone("backbone", "text")
        seen.head("head", "replaced_token", {"text": "backbone"})
        drawing = seen.backbone("generator", "text")
        seen.head("generator_head", "mlm", {"text": "generator"})
        if judging.tokenizer.get_vocab() != drawing.tokenizer.get_vocab() or judging.length > drawing.length:
            seen.refuse("generator", f"another tokenizer, or fewer tokens than {self.backbone!r} takes; allowed: the "
                                     "one that was trained beside it")  # fmt: skip
        seen.documents("bank")
        seen.documents("queries")

    def run(self, bench: Bench) -> list[Score]:
        subject = bench.subject(self.backbone, "text")
        takes = subject.takes
        assert isinstance(takes, TextInput)
        replacing = self._replacing(bench, takes)
        judges = with_heads(bench, subject, self.seeds, _fresh_head, bench.head(self.head).tensors)
        lines = None if bench.live else lines_of_bank(bench, self.bank, self.bank_limit, takes.tokenizer,
                                                      vocabulary_of(subject), around=True)  # fmt: skip
        numbers, left = bench.numbers(bench.index(self.queries), self.query_limit, "queries"), Unasked()
        pieces = bench.read(
            ("hidden", self.queries, self.query_limit, takes, self.ratio, bench.batch),
            lambda: hidden_pieces(self.queries, numbers, takes, self.ratio, bench.batch, left),
        )
        passes = bench.passes(pieces, partial(_told, bench, replacing, judges, lines), _nothing)
        parts = bench.team.gather(lambda: (list(_by_document(passes)), left))
        for said in left.said(f"{bench.where}.queries", [part for _, part in parts]):
            bench.note(said)
        return list(self._scores(bench, [each for mine, _ in parts for each in mine]))

    def _replacing(self, bench: Bench, takes: TextInput) -> Replacing:
        """The trained generator. A collective."""
        subject = bench.subject(self.generator, "text")
        head = masked_heads(bench, subject, bench.head(self.generator_head).tensors)["trained"]
        assert isinstance(head, MaskedLanguageHead)
        return Replacing(subject.models["trained"], head, int(takes.tokenizer.mask_token_id))

    def _scores(self, bench: Bench, documents: list[ToldDocument]) -> Iterator[Score]:
        ranked = [each for each in documents if 0 < each.replaced < each.tokens]
        if not ranked:
            raise AgreedError(f"{bench.where}.queries: of no document of {display(self.queries)} were some tokens "
                              "replaced, and some not")  # fmt: skip
        tokens, replaced = (torch.tensor([getattr(each, name) for each in documents], dtype=torch.float64)
                            for name in ("tokens", "replaced"))  # fmt: skip
        title, share = "replaced tokens, held-out documents", (replaced.sum() / tokens.sum()).item()
        facts = {"documents": len(documents), "tokens": int(tokens.sum()), "replaced": share}
        of = f"{len(ranked)} held-out documents, of whose tokens {100 * share:.1f} % were replaced"
        areas, seeds = random_mean(_columns([each.areas for each in ranked]))
        yield Score(title, f"is the area under the ROC curve of {of}", areas, [each.key for each in ranked], chance=0.5,
                    unit="AUC", seeds=seeds, facts=facts)  # fmt: skip
        nats, seeds = random_mean(_columns([each.nats for each in documents]), tokens)
        if not bench.live:
            rest = torch.tensor([share, 1 - share], dtype=torch.float64).log()
            nats |= {"blind": -(replaced * rest[0] + (tokens - replaced) * rest[1])}
        yield Score(
            f"{title}, loss", f"a token of {of}", nats, [each.key for each in documents], weights=tokens, unit="nats",
            higher_is_better=False, names={"blind": "the share that was replaced"}, seeds=seeds, facts=facts,
            row="loss",
        )  # fmt: skip


class Told(NamedTuple):
    """Of some pieces of a document, what is known of the tokens that are judged.

    truth: bool [M]. logits: float32 [M] of "replaced" by contender. surprise: float64 [M], or None.
    """

    key: str
    truth: np.ndarray
    logits: dict[str, np.ndarray]
    surprise: np.ndarray | None


class ToldDocument(NamedTuple):
    """nats: sums over the tokens by contender. areas: under the ROC curve, {} where all or no token was replaced."""

    key: str
    tokens: int
    replaced: int
    nats: dict[str, float]
    areas: dict[str, float]

    @classmethod
    def of(cls, key: str, parts: list[Told]) -> ToldDocument:
        truth = np.concatenate([part.truth for part in parts])
        logits = {name: np.concatenate([part.logits[name] for part in parts]) for name in parts[0].logits}
        nats = {name: float(np.logaddexp(0, np.where(truth, -1.0, 1.0) * each.astype(np.float64)).sum())
                for name, each in logits.items()}  # fmt: skip
        surprise = [part.surprise for part in parts if part.surprise is not None]
        scores = logits | ({GRAMS: np.concatenate(surprise)} if surprise else {})
        areas = {name: area_under_curve(truth, each) for name, each in scores.items() if 0 < truth.sum() < len(truth)}
        return cls(key, len(truth), int(truth.sum()), nats, areas)


def _by_document(passes: Iterable[Told]) -> Iterator[ToldDocument]:
    for key, parts in groupby(passes, lambda part: part.key):
        yield ToldDocument.of(key, list(parts))


def _columns(rows: list[dict[str, float]]) -> dict[str, Tensor]:
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}


def _fresh_head(model: PreTrainedModel) -> DiscriminatorHead:
    return DiscriminatorHead(int(model.config.hidden_size))


def _told(bench: Bench, replacing: Replacing, judges: Judges, lines: Lines | None, part: HiddenPieces) -> Told:
    drawn, judged = replacing.drawn(part, bench.device), part.words >= 0
    inputs = {"input_ids": drawn.to(bench.device), "attention_mask": part.mask.to(bench.device)}
    logits = {}
    for name, (model, head) in judges.items():
        model.to(bench.device)  # type: ignore[arg-type]
        with evaluating(model):
            logits[name] = head(MODALITIES["text"].hidden(model, inputs).float()).cpu()[judged].float().numpy()
    around = None if lines is None else surroundings(drawn, part.mask.bool(), judged)
    surprise = None if lines is None or around is None else lines.grams.surprise(around, drawn[judged].numpy())
    return Told(part.key, (drawn != part.ids)[judged].numpy(), logits, surprise)


def _nothing(part: HiddenPieces) -> Told:
    judged = part.words >= 0
    return Told(part.key, part.hidden[judged].numpy(), {"trained": np.zeros(int(judged.sum()), np.float32)}, None)
