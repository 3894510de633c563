"""Masked words of held-out documents: what a language backbone and its exported head know beyond token frequencies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bigssl.config.evaluate import EvalLanguage
from bigssl.data.errors import display
from bigssl.data.kinds import decode
from bigssl.data.kinds.masking import IGNORE, corrupt, select_tokens
from bigssl.data.kinds.text import encode_pieces
from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.frequencies import TokenFrequencies
from bigssl.nets.heads import MaskedLanguageHead
from bigssl.transfer.bench import Bench, Networks, Task
from bigssl.transfer.features import evaluating, samples_at
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.team import AgreedError

CHARACTERS = 1 << 16  # of a document; the rest of a longer one is left out


@dataclass(frozen=True)
class Document:
    """ids and labels int64 [P, length] of its pieces, padded; mask int64, 1 at tokens; labels -100 where not asked."""

    ids: Tensor
    labels: Tensor
    mask: Tensor


def masked_words(
    bench: Bench, networks: Networks, words: TextInput, head: dict[str, Tensor], settings: EvalLanguage, *, seed: int
) -> Task:
    """Cross-entropy of BERT's masked tokens in every document of `settings.queries`, a row of the scorecard's `losses`:

        title, sentence, verdict, unit      for people
        trained, random_net, blind          mean per masked token: lower is better. blind: token frequencies of the bank
        gains                               {blind | random_net: {difference, stderr}}: how far `trained` is below it
        passed                              below both by more than two standard errors
        documents, tokens                   how many were asked

    The same tokens are masked for all (from `seed` and the document's key); documents are the independent units of the
    standard error. They are dealt over the ranks: a collective.

    Args:
        head: tensors of the exported head.
    """
    surprise = _frequencies(bench, settings, words.tokenizer, networks.trained.config.vocab_size).surprise()
    heads = {name: _head(model, head if name == "trained" else None, seed) for name, model in networks.items()}
    numbers = bench.numbers(bench.index(settings.queries), settings.query_limit, "evaluate.language.queries")

    def sums(document: Document) -> dict[str, float]:
        asked = document.labels[document.labels != IGNORE]
        losses = {name: _loss(model, heads[name], document, bench) for name, model in networks.items()}
        return losses | {"blind": surprise[asked].sum().item(), "tokens": len(asked)}

    def mine() -> list[dict[str, float]]:
        return [sums(document) for document in _documents(settings.queries, numbers, words, seed)]

    rows = [row for part in bench.team.gather(mine) for row in part]
    names = ("trained", "random_net", "blind", "tokens")
    return _row({name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in names}, settings)


def _head(model: PreTrainedModel, tensors: dict[str, Tensor] | None, seed: int) -> MaskedLanguageHead:
    """Tied to the model's embedding; without `tensors`, at random from `seed`."""
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, nn.Parameter)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = MaskedLanguageHead(embedding, model.config.hidden_size)
    if tensors is not None:
        wanted = {name: list(value.shape) for name, value in head.named_parameters() if name != "weight"}
        there = {name: list(value.shape) for name, value in tensors.items()}
        if there != wanted:
            kind = "of another backbone" if there.keys() == wanted.keys() else "not of masked language modelling"
            raise AgreedError(f"evaluate.language.head: {kind}: it has {_shapes(there)}; allowed: {_shapes(wanted)}")
        head.load_state_dict(tensors, strict=False)
    return head


def _shapes(tensors: dict[str, list[int]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in sorted(tensors.items()))


def _texts(url: str, numbers: Sequence[int]) -> Iterator[tuple[str, str]]:
    for sample in samples_at(DatasetIndex.load(url), numbers):
        yield sample.key, decode.running_text(sample)[:CHARACTERS]


def _frequencies(
    bench: Bench, settings: EvalLanguage, tokenizer: PreTrainedTokenizerFast, vocabulary: int
) -> TokenFrequencies:
    """Of all tokens of the bank. A collective."""
    numbers = bench.numbers(bench.index(settings.bank), settings.bank_limit, "evaluate.language.bank")

    def mine() -> Tensor:
        counted = TokenFrequencies(vocabulary)
        for _, text in _texts(settings.bank, numbers):
            ids = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
            counted.count(torch.tensor(ids, dtype=torch.int64))
        return counted.counts

    everywhere = TokenFrequencies(vocabulary)
    everywhere.counts += sum(bench.team.gather(mine))
    return everywhere


def _documents(url: str, numbers: Sequence[int], words: TextInput, seed: int) -> Iterator[Document]:
    for key, text in _texts(url, numbers):
        rng = np.random.default_rng([seed, *key.encode()])
        pieces = encode_pieces(words.tokenizer, text, words.length)
        rows = [_masked(ids, borders, words.tokenizer, words.length, rng) for ids, borders in pieces]
        ids, labels, mask = (torch.from_numpy(np.stack(parts)) for parts in zip(*rows, strict=True))
        if (labels != IGNORE).any():
            yield Document(ids, labels, mask)


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


def _loss(model: PreTrainedModel, head: MaskedLanguageHead, document: Document, bench: Bench) -> float:
    """Sum over the masked tokens, in nats."""
    model.to(bench.device)  # type: ignore[arg-type]
    head.to(bench.device)
    total = 0.0
    with evaluating(model):
        for start in range(0, len(document.ids), bench.batch):
            part = slice(start, start + bench.batch)
            ids, labels, mask = (x[part].to(bench.device) for x in (document.ids, document.labels, document.mask))
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            total += head(hidden, labels).item()
    return total


def _row(sums: dict[str, Tensor], settings: EvalLanguage) -> dict[str, Any]:
    """sums float64 [documents] each."""
    count = sums["tokens"].sum()
    if not count:
        raise AgreedError(f"evaluate.language.queries: {display(settings.queries)} has no token to mask")
    mean = {name: (sums[name].sum() / count).item() for name in ("trained", "random_net", "blind")}
    gains = {name: _gain(sums[name] - sums["trained"], sums["tokens"]) for name in ("blind", "random_net")}
    names = {"blind": "token frequencies", "random_net": "the same network with random weights"}
    behind = [names[name] for name, gain in gains.items() if not gain["difference"] > 2 * gain["stderr"]]
    compared = ", ".join(
        f"{mean[name]:.2f} has {names[name]} ({gain['difference']:+.2f} ± {gain['stderr']:.2f})"
        for name, gain in gains.items()
    )
    documents = len(sums["tokens"])
    verdict = f"not better than {', '.join(behind)}" if behind else "better than all"
    said = f"masked words of {documents} held-out documents: {mean['trained']:.2f} nats a token; {compared}: {verdict}"
    return {
        "title": "masked words, held-out documents", "unit": "nats", **mean, "gains": gains, "passed": not behind,
        "verdict": verdict, "sentence": said, "documents": documents, "tokens": int(count),
    }  # fmt: skip


def _gain(differences: Tensor, tokens: Tensor) -> dict[str, float]:
    """Per token, from sums over documents; the standard error of a ratio of sums over independent documents."""
    mean = differences.sum() / tokens.sum()
    spread = (differences - mean * tokens).square().sum().sqrt() / tokens.sum()
    documents = len(tokens)
    stderr = spread.item() * math.sqrt(documents / (documents - 1)) if documents > 1 else math.inf
    return {"difference": mean.item(), "stderr": stderr}
