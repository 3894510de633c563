"""Codes of frames: a word of each of several codebooks, drawn by Gumbel noise (Baevski et al. 2020, arXiv 2006.11477,
section 2; Jang et al. 2017, arXiv 1611.01144)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bigssl import distributed


class Coded(NamedTuple):
    """vectors: [N, dim], words of all codebooks side by side. ids: int64 [N, G], which. logits: float32 [N, G, V]."""

    vectors: Tensor
    ids: Tensor
    logits: Tensor


class Codebooks(nn.Module):
    """`groups` codebooks of `words` vectors each. Names, shapes and beginnings are those of transformers'
    `Wav2Vec2GumbelVectorQuantizer`."""

    def __init__(self, width: int, groups: int, words: int, dim: int) -> None:
        """width: of a frame. dim: of a code, a multiple of `groups`."""
        super().__init__()
        self.groups, self.words = groups, words
        self.codevectors = nn.Parameter(torch.empty(1, groups * words, dim // groups).uniform_())
        self.weight_proj = nn.Linear(width, groups * words)
        nn.init.normal_(self.weight_proj.weight)
        nn.init.zeros_(self.weight_proj.bias)

    def forward(self, frames: Tensor, noise: Tensor | None, temperature: float) -> Coded:
        """Codes of frames [N, width].

        Args:
            noise: Gumbel, float32 [N, G · V]: the word is the largest of logits and noise, with the gradient of their
                softmax at `temperature`; None: the largest of the logits, without gradient.
        """
        logits = self.weight_proj(frames).float().unflatten(-1, (self.groups, self.words))
        soft = None if noise is None else ((logits + noise.view_as(logits)) / temperature).softmax(-1)
        ids = (logits if soft is None else soft).argmax(-1)
        hard = torch.zeros_like(logits).scatter_(-1, ids.unsqueeze(-1), 1.0)
        chosen = hard if soft is None else hard - soft.detach() + soft  # straight through
        books = self.codevectors.view(self.groups, self.words, -1)
        vectors = torch.einsum("ngv,gvd->ngd", chosen.to(books.dtype), books).flatten(1)
        return Coded(vectors, ids, logits)


def unused(logits: Tensor) -> Tensor:
    """[] the diversity loss: (G V − Σ_g exp H(p̄_g)) / (G V), p̄_g the mean softmax of all ranks' logits [N, G, V]; 0
    where all words of each codebook are equally likely. The same on every rank, with exact gradients."""
    own = logits.softmax(-1).sum(0).flatten()
    sums = distributed.sum_over_ranks(torch.cat([own, own.new_tensor([len(logits)])]))
    mean = (sums[:-1] / sums[-1]).view(logits.shape[1:])
    count = mean.numel()
    return (count - perplexities(mean).sum()) / count


def perplexities(shares: Tensor) -> Tensor:
    """exp of the entropy of each row of shares [G, V]: how many words there are, as it were."""
    return torch.exp(-torch.xlogy(shares, shares).sum(-1))


@torch.no_grad()
def use_of_words(logits: Tensor) -> Tensor:
    """[] how many different words the frames of all ranks have without noise, between 0 (one) and 1 (all, or as many as
    there are frames), by their perplexity; the mean over codebooks."""
    words = logits.shape[-1]
    counts = torch.zeros_like(logits[:1]).squeeze(0).scatter_add_(
        -1, logits.argmax(-1).T, logits.new_ones(logits.shape[1], logits.shape[0])
    )  # fmt: skip
    counts = distributed.all_reduce_sum(counts)
    most = counts.sum(-1).clamp(max=words)
    return ((perplexities(counts / counts.sum(-1, keepdim=True)) - 1) / (most - 1).clamp(min=1)).mean()
