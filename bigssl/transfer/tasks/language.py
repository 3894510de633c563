"""Masked words of held-out documents: what a language backbone and its exported head know beyond token frequencies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bigssl.config.evaluate import Evaluation, Limit
from bigssl.data.errors import display
from bigssl.data.kinds import decode
from bigssl.data.kinds.masking import IGNORE, corrupt, select_tokens
from bigssl.data.kinds.text import encode_pieces
from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.frequencies import TokenFrequencies
from bigssl.nets.heads import MaskedLanguageHead, masked_head
from bigssl.nets.pool import mean_of
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import evaluating, samples_at
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.scores import Score
from bigssl.transfer.subjects import Subject, Tensors
from bigssl.transfer.team import AgreedError

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked

CHARACTERS = 1 << 16  # of a document; the rest of a longer one is left out
Heads = dict[str, MaskedLanguageHead]
Sums = dict[str, float]


@dataclass(frozen=True)
class Document:
    """ids and labels int64 [P, length] of its pieces, padded; mask int64, 1 at tokens; labels -100 where not asked."""

    key: str
    ids: Tensor
    labels: Tensor
    mask: Tensor


class Pieces(NamedTuple):
    """Some pieces of a document, as many as a forward pass takes. document: its key."""

    document: str
    ids: Tensor
    labels: Tensor
    mask: Tensor


class PiecesJudged(NamedTuple):
    """Of some pieces of a document: sums over their masked tokens, in nats, with the number of these, and features
    [P, D] by contender."""

    document: str
    sums: Sums
    features: dict[str, Tensor]


class Language(Evaluation):
    """Loss on masked tokens of held-out documents, beside token frequencies and a random network.

    The same tokens are masked for all (from the seed and the document's key); documents are the independent units of
    the standard error. They are dealt over the ranks.
    """

    preset = {"bank": "bigssl/demo/text/train", "queries": "bigssl/demo/text/val"}

    learns_from = "bank"

    head: str = Field("mlm", description="name under export/heads of the head of masked language modelling")
    backbone: str = "text"
    bank: str = Field(description="documents trained on, whose token frequencies are the line to beat")
    bank_limit: Limit = None

    def check(self, seen: Checked) -> None:
        seen.backbone("backbone", "text")
        seen.head("head", "mlm", {"text": "backbone"})
        seen.documents("bank")
        seen.documents("queries")

    def run(self, bench: Bench) -> list[Score]:
        subject = bench.subject(self.backbone, "text")
        words = subject.takes
        assert isinstance(words, TextInput)
        heads = _heads(bench, subject, bench.head(self.head))
        vocabulary = subject.models["trained"].config.vocab_size
        surprise = None if bench.live else self._frequencies(bench, words.tokenizer, vocabulary).surprise()
        numbers = bench.numbers(bench.index(self.queries), self.query_limit, "queries")
        documents = bench.read(("documents", self.queries, self.query_limit, words),
                               lambda: _documents(self.queries, numbers, words, bench.seed))  # fmt: skip
        pieces = (part for document in documents for part in _parts(document, bench.batch))
        run = partial(_judged, subject, heads, surprise, bench)
        mine: list[tuple[str, Sums]] = []
        passes = bench.passes(pieces, run, partial(_nothing, subject.width))
        bench.look_at(subject, bench.stored(_features_of(passes, mine)))
        found = bench.team.gather(lambda: _by_document(mine))
        return [self._score(bench, [sums for part in found for sums in part.items()])]

    def _frequencies(self, bench: Bench, tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> TokenFrequencies:
        """Of all tokens of the bank. A collective."""
        numbers = bench.numbers(bench.index(self.bank), self.bank_limit, "bank")

        def mine() -> Tensor:
            counted = TokenFrequencies(vocabulary)
            for _, text in _texts(self.bank, numbers):
                ids = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
                counted.count(torch.tensor(ids, dtype=torch.int64))
            return counted.counts

        everywhere = TokenFrequencies(vocabulary)
        everywhere.counts += sum(bench.team.gather(mine))
        return everywhere

    def _score(self, bench: Bench, documents: list[tuple[str, Sums]]) -> Score:
        if not documents:
            raise AgreedError(f"{bench.where}.queries: {display(self.queries)} has no token to mask")
        values: dict[str, Tensor] = {name: torch.tensor([sums[name] for _, sums in documents], dtype=torch.float64)
                  for name in ("blind", "random_net", "trained", "tokens") if name in documents[0][1]}  # fmt: skip
        tokens = values.pop("tokens")
        return Score(
            "masked words, held-out documents", f"a masked token of {len(documents)} held-out documents", values,
            [key for key, _ in documents], weights=tokens, unit="nats", higher_is_better=False,
            names={"blind": "token frequencies"}, facts={"documents": len(documents), "tokens": int(tokens.sum())},
        )  # fmt: skip


def _heads(bench: Bench, subject: Subject, tensors: Tensors) -> Heads:
    """The trained head, and for a random network a random one from the seed, tied to the embedding of each."""
    found = {}
    for name, model in subject.models.items():
        embedding = bench.subjects.whole(model.get_input_embeddings().weight)  # type: ignore[arg-type]
        with torch.random.fork_rng():
            torch.manual_seed(bench.seed)
            head = masked_head(embedding, model.config)
        if name == "trained":
            _refuse_other_head(f"{bench.where}.head", head, tensors)
            head.load_state_dict(tensors, strict=False)
        found[name] = head.to(bench.device)
    return found


def _refuse_other_head(where: str, head: MaskedLanguageHead, tensors: Tensors) -> None:
    wanted = {name: list(value.shape) for name, value in head.named_parameters() if name != "weight"}
    there = {name: list(value.shape) for name, value in tensors.items()}
    if there != wanted:
        kind = "of another backbone" if there.keys() == wanted.keys() else "not of masked language modelling"
        raise AgreedError(f"{where}: {kind}: it has {_shapes(there)}; allowed: {_shapes(wanted)}")


def _shapes(tensors: dict[str, list[int]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in sorted(tensors.items()))


def _texts(url: str, numbers: Sequence[int]) -> Iterator[tuple[str, str]]:
    for sample in samples_at(DatasetIndex.load(url), numbers):
        yield sample.key, decode.running_text(sample)[:CHARACTERS]


def _documents(url: str, numbers: Sequence[int], words: TextInput, seed: int) -> Iterator[Document]:
    for key, text in _texts(url, numbers):
        rng = np.random.default_rng([seed, *key.encode()])
        pieces = encode_pieces(words.tokenizer, text, words.length)
        rows = [_masked(ids, borders, words.tokenizer, words.length, rng) for ids, borders in pieces]
        ids, labels, mask = (torch.from_numpy(np.stack(parts)) for parts in zip(*rows, strict=True))
        if (labels != IGNORE).any():
            yield Document(key, ids, labels, mask)


def _parts(document: Document, batch: int) -> Iterator[Pieces]:
    for start in range(0, len(document.ids), batch):
        part = slice(start, start + batch)
        yield Pieces(document.key, document.ids[part], document.labels[part], document.mask[part])


def _judged(subject: Subject, heads: Heads, surprise: Tensor | None, bench: Bench, part: Pieces) -> PiecesJudged:
    asked = part.labels[part.labels != IGNORE]
    both = {name: _loss(model, heads[name], part, bench) for name, model in subject.models.items()}
    sums = {name: loss for name, (loss, _) in both.items()}
    blind = {} if surprise is None else {"blind": surprise[asked].sum().item()}
    features = {name: rows for name, (_, rows) in both.items()}
    return PiecesJudged(part.document, sums | blind | {"tokens": float(len(asked))}, features)


def _nothing(width: int, part: Pieces) -> PiecesJudged:
    return PiecesJudged(part.document, {"trained": 0.0, "tokens": 1.0}, {"trained": torch.zeros(len(part.ids), width)})


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


def _loss(model: PreTrainedModel, head: MaskedLanguageHead, part: Pieces, bench: Bench) -> tuple[float, Tensor]:
    """(sum over the masked tokens, features [P, D] of the pieces as they are asked)."""
    model.to(bench.device)  # type: ignore[arg-type]
    ids, labels, mask = (each.to(bench.device) for each in (part.ids, part.labels, part.mask))
    with evaluating(model):
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        return head(hidden, labels).item(), mean_of(hidden, mask).cpu()


def _masked(
    ids: np.ndarray, words: np.ndarray, tokenizer: PreTrainedTokenizerFast, length: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    selection = select_tokens(words >= 0, rng, 0.15)
    masked, labels = corrupt(ids, selection, rng, vocab_size=len(tokenizer), mask_id=tokenizer.mask_token_id)
    fill = (0, length - len(ids))
    return (
        np.pad(masked, fill, constant_values=tokenizer.pad_token_id),
        np.pad(labels, fill, constant_values=IGNORE),
        (np.arange(length) < len(ids)).astype(np.int64),
    )
