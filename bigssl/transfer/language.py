"""Masked words of held-out documents: what a language backbone and its exported head know beyond token frequencies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bigssl.config import EvalLanguage
from bigssl.data import decode
from bigssl.data.errors import DataError, display
from bigssl.data.index import DatasetIndex
from bigssl.data.masking import IGNORE, corrupt, select_tokens
from bigssl.data.text import encode_pieces, load_tokenizer
from bigssl.nets.frequencies import TokenFrequencies
from bigssl.nets.heads import MaskedLanguageHead
from bigssl.transfer.features import evaluating, read_samples

CHARACTERS = 1 << 16  # of a document; the rest of a longer one is left out


@dataclass(frozen=True)
class Document:
    """ids and labels int64 [P, length] of its pieces, padded; mask int64, 1 at tokens; labels -100 where not asked."""

    ids: Tensor
    labels: Tensor
    mask: Tensor


def masked_words(
    trained: PreTrainedModel, random_net: PreTrainedModel, words: Path, head: dict[str, Tensor], settings: EvalLanguage,
    *, seed: int, batch: int, device: str | torch.device,
) -> dict[str, Any]:
    """Cross-entropy of BERT's masked tokens in every document of `settings.queries`, a row of the scorecard's `losses`:

        title, sentence, verdict, unit      for people
        trained, random_net, blind          mean per masked token: lower is better. blind: token frequencies of the bank
        gains                               {blind | random_net: {difference, stderr}}: how far `trained` is below it
        passed                              below both by more than two standard errors
        documents, tokens                   how many were asked

    The same tokens are masked for all (from `seed` and the document's key); documents are the independent units of the
    standard error.

    Args:
        words: exported folder of the backbone, with its tokenizer.
        head: tensors of the exported head.
    """
    tokenizer = load_tokenizer(words)
    length = min(tokenizer.model_max_length, getattr(trained.config, "max_position_embeddings", 1 << 30))
    frequencies = _frequencies(settings, tokenizer, trained.config.vocab_size)
    surprise = frequencies.surprise()
    networks = {
        "trained": (trained, _head(trained, head, seed)),
        "random_net": (random_net, _head(random_net, None, seed)),
    }
    sums: dict[str, list[float]] = {"trained": [], "random_net": [], "blind": [], "tokens": []}
    for document in _documents(settings, tokenizer, length, seed):
        asked = document.labels[document.labels != IGNORE]
        sums["tokens"].append(len(asked))
        sums["blind"].append(surprise[asked].sum().item())
        for name, (model, its_head) in networks.items():
            sums[name].append(_loss(model, its_head, document, batch, device))
    return _row({name: torch.tensor(values, dtype=torch.float64) for name, values in sums.items()}, settings)


def _head(model: PreTrainedModel, tensors: dict[str, Tensor] | None, seed: int) -> MaskedLanguageHead:
    """Tied to the model's embedding; without `tensors`, at random from `seed`."""
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, nn.Parameter)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = MaskedLanguageHead(embedding)
    if tensors is not None:
        lacking = head.load_state_dict(tensors, strict=False)
        if lacking.unexpected_keys or lacking.missing_keys != ["weight"]:
            raise DataError(f"evaluate.language.head: not a head of masked language modelling: {sorted(tensors)}")
    return head


def _texts(url: str, limit: int) -> Iterator[tuple[str, str]]:
    for sample in read_samples(DatasetIndex.load(url), limit):
        yield sample.key, decode.running_text(sample)[:CHARACTERS]


def _frequencies(settings: EvalLanguage, tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> TokenFrequencies:
    counted = TokenFrequencies(vocabulary)
    for _, text in _texts(settings.bank, settings.limit):
        ids = tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        counted.count(torch.tensor(ids, dtype=torch.int64))
    return counted


def _documents(
    settings: EvalLanguage, tokenizer: PreTrainedTokenizerFast, length: int, seed: int
) -> Iterator[Document]:
    for key, text in _texts(settings.queries, settings.limit):
        rng = np.random.default_rng([seed, *key.encode()])
        rows = [_masked(ids, words, tokenizer, length, rng) for ids, words in encode_pieces(tokenizer, text, length)]
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


def _loss(
    model: PreTrainedModel, head: MaskedLanguageHead, document: Document, batch: int, device: str | torch.device
) -> float:
    """Sum over the masked tokens, in nats."""
    model.to(device)  # type: ignore[arg-type]
    head.to(device)
    total = 0.0
    with evaluating(model):
        for start in range(0, len(document.ids), batch):
            part = slice(start, start + batch)
            ids, labels, mask = (x[part].to(device) for x in (document.ids, document.labels, document.mask))
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            total += head(hidden, labels).item()
    return total


def _row(sums: dict[str, Tensor], settings: EvalLanguage) -> dict[str, Any]:
    """sums float64 [documents] each."""
    count = sums["tokens"].sum()
    if not count:
        raise DataError(f"evaluate.language.queries: {display(settings.queries)} has no token to mask")
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
