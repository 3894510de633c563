"""Held-out documents of which a small network has replaced some tokens: the same for whoever has to tell which.

What is hidden, and what is drawn for it, follows from the key of the document alone, and what is drawn from the network
that draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.data.kinds.masking import select_tokens
from bigssl.data.kinds.text import encode_pieces, padded
from bigssl.nets.chance import noise
from bigssl.nets.chance.seeds import another
from bigssl.nets.heads.base import MaskedLanguageHead
from bigssl.nets.modality import MODALITIES
from bigssl.transfer.features import evaluating
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.texts.documents import Unasked, keyed_texts


class HiddenPieces(NamedTuple):
    """Pieces of a document.

    Attributes:
        key: of the document.
        ids, mask, words: int64 [P, length]: tokens as they were, 1 at tokens, and numbers of words, -1 at what is none.
        hidden: bool [P, length].
        seeds: int64 [P], of what is drawn.
    """

    key: str
    ids: Tensor
    mask: Tensor
    words: Tensor
    hidden: Tensor
    seeds: Tensor


def hidden_pieces(
    url: str, numbers: Sequence[int], takes: TextInput, ratio: float, most: int, left: Unasked
) -> Iterator[HiddenPieces]:
    """Of documents, `most` pieces at a time; about `ratio` of the tokens of each piece are hidden, one at least."""
    for _, key, text in keyed_texts(url, numbers, left):
        pieces = list(encode_pieces(takes.tokenizer, text, takes.length))
        if not any((words >= 0).any() for _, words in pieces):
            left.empty.append(key)
            continue
        rows = [_row(key, number, *piece, takes, ratio) for number, piece in enumerate(pieces)]
        for begin in range(0, len(rows), most):
            parts = zip(*rows[begin : begin + most], strict=True)
            yield HiddenPieces(key, *(torch.from_numpy(np.stack(part)) for part in parts))


def _row(
    key: str, number: int, ids: np.ndarray, words: np.ndarray, takes: TextInput, ratio: float
) -> tuple[np.ndarray, ...]:
    seed = int.from_bytes(blake2b(f"{key}\0{number}".encode(), digest_size=8).digest(), "little", signed=True)
    hidden = select_tokens(words >= 0, np.random.default_rng([number, *key.encode()]), ratio) >= 0
    behind = (0, takes.length - len(ids))
    return (padded(ids, takes.length, takes.tokenizer.pad_token_id), np.pad(np.ones_like(ids), behind),
            padded(words, takes.length, -1), np.pad(hidden, behind), np.array(seed))  # fmt: skip


@dataclass(frozen=True)
class Replacing:
    """A network that draws tokens in place of those that are hidden, by the probabilities of its head."""

    model: PreTrainedModel
    head: MaskedLanguageHead
    mask_id: int

    def drawn(self, part: HiddenPieces, device: str | torch.device) -> Tensor:
        """int64 [P, length] on the CPU: the pieces with what was drawn."""
        self.model.to(device)  # type: ignore[arg-type]
        ids, mask, hidden, seeds = (each.to(device) for each in (part.ids, part.mask, part.hidden, part.seeds))
        shown = {"input_ids": ids.masked_fill(hidden, self.mask_id), "attention_mask": mask}
        with evaluating(self.model):
            logits = self.head.logits(MODALITIES["text"].hidden(self.model, shown)[hidden].float()).float()
        places = another(seeds[:, None], torch.arange(ids.shape[1], device=device))[hidden]
        chance = noise.gumbel(places, "token", logits.shape[1])
        found = ids.clone()
        found[hidden] = (logits + chance).argmax(-1)
        return found.cpu()
