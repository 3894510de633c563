"""Held-out documents: what a language backbone and its head know of masked or next tokens, or of those behind noise,
beyond token frequencies and n-grams."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.config.evaluate import Evaluation, Limit
from bigssl.data.errors import display
from bigssl.data.kinds.masking import IGNORE
from bigssl.nets.heads.writing import written_after
from bigssl.nets.modality import MODALITIES
from bigssl.nets.pool import mean_of
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import evaluating
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.scores import Score
from bigssl.transfer.subjects import Subject
from bigssl.transfer.team import AgreedError
from bigssl.transfer.texts import documents as texts
from bigssl.transfer.texts import lm_heads
from bigssl.transfer.texts.documents import Document, Unasked, document_parts
from bigssl.transfer.texts.lines import Lines, Sums, lines_of_bank, vocabulary_of
from bigssl.transfer.texts.lm_heads import Head, causal_heads, is_causal, is_writing, masked_heads, writing_heads

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked

MOST_NATS = 700.0  # whose exponential is a number yet
Asked = Literal["masked", "next", "written"]


class PiecesJudged(NamedTuple):
    """Of some pieces of a document: sums over the tokens that are asked, in nats, with the number of these, and
    features [P, D] by contender."""

    document: str
    sums: Sums
    features: dict[str, Tensor]


class Language(Evaluation):
    """Loss on masked tokens of held-out documents (of a decoder-only network: on each next token; of an
    encoder-decoder: on each token, written from a text with noise) and its perplexity, beside token frequencies,
    interpolated n-grams of the bank and a random network.

    The same tokens are masked for all (from the seed and the document's key), and n-grams see what the network sees:
    both sides of a masked token, or what stands before the next one (not the text with noise). Documents are the
    independent units of the standard error. They are dealt over the ranks.
    """

    preset = {"bank": "bigssl/demo/text/train", "queries": "bigssl/demo/text/val", "bank_limit": 6, "query_limit": 3}

    learns_from = "bank"

    head: str = Field("mlm", description="name under export/heads of the head of masked language modelling; a "
                                         "network with a decoder is judged with its own")  # fmt: skip
    backbone: str = "text"
    bank: str = Field(description="documents trained on, whose token frequencies and n-grams are the lines to beat")
    bank_limit: Limit = None

    def check(self, seen: Checked) -> None:
        tower = seen.backbone("backbone", "text")
        decodes = is_causal(tower.model.config) or is_writing(tower.model.config)
        if not decodes:
            seen.head("head", "mlm", {"text": "backbone"})
        elif self.head != type(self).model_fields["head"].default:
            seen.refuse("head", f"{self.backbone} is judged with its own; allowed: left out")
        elif is_causal(tower.model.config) and not lm_heads.has_own_head(tower.model.config) and not seen.has_head(
            partial(lm_heads.is_head_of, self.backbone)
        ):
            seen.refuse("backbone", lm_heads.headless(tower.model.config))
        seen.documents("bank")
        seen.documents("queries")

    def run(self, bench: Bench) -> list[Score]:
        subject = bench.subject(self.backbone, "text")
        takes = subject.takes
        assert isinstance(takes, TextInput)
        asked = _asked_of(subject)
        heads = masked_heads(bench, subject, bench.head(self.head).tensors) if asked == "masked" else (
            causal_heads if asked == "next" else writing_heads)(bench, subject)  # fmt: skip
        lines = None if bench.live else lines_of_bank(
            bench, self.bank, self.bank_limit, takes.tokenizer, vocabulary_of(subject), around=asked == "masked",
            written=asked == "written")  # fmt: skip
        numbers, left = bench.numbers(bench.index(self.queries), self.query_limit, "queries"), Unasked()
        read = partial(texts.following_documents, self.queries, numbers, takes, left) if asked == "next" else partial(
            texts.masked_documents if asked == "masked" else texts.noisy_documents, self.queries, numbers, takes,
            bench.seed, left)  # fmt: skip
        documents = bench.read(("documents", self.queries, self.query_limit, takes), read)
        pieces = (part for document in documents for part in document_parts(document, bench.batch))
        mine: list[tuple[str, Sums]] = []
        passes = bench.passes(pieces, partial(_judged, subject, heads, lines, bench), partial(_nothing, subject.width))
        bench.look_at(subject, bench.stored(_features_of(passes, mine)))
        found = bench.team.gather(lambda: (_by_document(mine), left))
        for said in left.said(f"{bench.where}.queries", [part for _, part in found]):
            bench.note(said)
        return [self._score(bench, asked, lines, [sums for part, _ in found for sums in part.items()])]

    def _score(self, bench: Bench, asked: Asked, lines: Lines | None, documents: list[tuple[str, Sums]]) -> Score:
        if not documents:
            raise AgreedError(f"{bench.where}.queries: {display(self.queries)} has no token to "
                              + ("mask" if asked == "masked" else "predict"))  # fmt: skip
        values: dict[str, Tensor] = {name: torch.tensor([sums[name] for _, sums in documents], dtype=torch.float64)
                                     for name in documents[0][1]}  # fmt: skip
        tokens = values.pop("tokens")
        perplexity = {name: _perplexity(value.sum() / tokens.sum()) for name, value in values.items()}
        shown = "" if (own := perplexity["trained"]) is None else f"(perplexity {own:.4g}) "
        facts: dict[str, Any] = {"documents": len(documents), "tokens": int(tokens.sum()), "perplexity": perplexity}
        facts |= {} if lines is None else {"ngram_tokens": lines.grams.tokens}
        return Score(
            f"{asked} words, held-out documents", f"{shown}a {asked} token of {len(documents)} held-out documents",
            values, [key for key, _ in documents], weights=tokens, unit="nats", higher_is_better=False,
            names={"blind": "token frequencies"}, facts=facts,
        )  # fmt: skip


def _asked_of(subject: Subject) -> Asked:
    config = subject.models["trained"].config
    return "next" if is_causal(config) else "written" if is_writing(config) else "masked"


def _perplexity(loss: Tensor) -> float | None:
    """exp of a mean loss in nats; None where that is no number."""
    return math.exp(loss.item()) if loss.item() < MOST_NATS else None


def _judged(subject: Subject, heads: dict[str, Head], lines: Lines | None, bench: Bench, part: Document
            ) -> PiecesJudged:
    assert isinstance(subject.takes, TextInput)
    begin = subject.takes.tokenizer.cls_token_id
    both = {name: _loss(model, heads[name], part, bench, begin) for name, model in subject.models.items()}
    sums = {name: loss for name, (loss, _) in both.items()}
    features = {name: rows for name, (_, rows) in both.items()}
    tokens = {"tokens": float((part.labels != IGNORE).sum())}
    return PiecesJudged(part.key, ({} if lines is None else lines.sums(part)) | sums | tokens, features)


def _nothing(width: int, part: Document) -> PiecesJudged:
    return PiecesJudged(part.key, {"trained": 0.0, "tokens": 1.0}, {"trained": torch.zeros(len(part.ids), width)})


def _features_of(passes: Iterator[PiecesJudged], sums: list[tuple[str, Sums]]) -> Iterator[dict[str, Tensor]]:
    """The features, one pass after the other; the sums of each go to the list."""
    for each in passes:
        sums.append((each.document, each.sums))
        yield each.features


def _by_document(parts: Iterable[tuple[str, Sums]]) -> dict[str, Sums]:
    found: dict[str, Sums] = {}
    for document, sums in parts:
        before = found.setdefault(document, dict.fromkeys(sums, 0.0))
        found[document] = {name: before[name] + value for name, value in sums.items()}
    return found


def _loss(model: PreTrainedModel, head: Head, part: Document, bench: Bench, begin: int | None) -> tuple[float, Tensor]:
    """(sum over the tokens asked, features [P, D] of the pieces as they are asked). begin: the token before a text,
    which a decoder is shown and not asked."""
    model.to(bench.device)  # type: ignore[arg-type]
    ids, labels, mask = (each.to(bench.device) for each in (part.ids, part.labels, part.mask))
    inputs = MODALITIES["text"].inputs(model, {"input_ids": ids, "attention_mask": mask})
    with evaluating(model):
        hidden = states = MODALITIES["text"].run(model, inputs)[0]
        if is_writing(model.config):
            framed = torch.cat([torch.full_like(labels[:, :1], begin or 0), labels[:, 1:]], 1)
            states = written_after(model, hidden, mask, framed)
        return head(states.float(), labels).item(), mean_of(hidden.float(), mask).cpu()
