"""The head of networks that read one text and write another: which token does the decoder write next?"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from bigssl.nets.heads.base import IGNORED
from bigssl_kernels import TokenStatistics, linear_cross_entropy

BIAS = "final_logits_bias"  # transformers' name of a buffer: nothing trains it, and most folders hold zeros


class WritingHead(nn.Module):
    """Hidden states of a decoder to the cross-entropies of its tokens: logits = W h + b, never held.

    W is the token embedding, which is registered here as well, so that ZeRO-3 gathers it for this module's forward and
    backward. b is a buffer, float32 [V]: 0, or that of the folder that the network began with.
    """

    final_logits_bias: Tensor

    def __init__(self, embedding: nn.Parameter, bias: Tensor) -> None:
        """embedding: [V, H]. bias: [V]."""
        super().__init__()
        self.weight = embedding
        self.register_buffer(BIAS, bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., V], all of them."""
        return F.linear(hidden, self.weight, self.final_logits_bias.to(hidden.dtype))

    def forward(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, TokenStatistics]:
        """[] float32, the sum over the labelled tokens (0 with zero gradients where there are none), and what the
        logits of each say, [N].

        Args:
            hidden: [N, H]. labels: int64 [N], -100 where there is nothing to write.
        """
        return linear_cross_entropy(hidden, self.weight, labels, self.final_logits_bias, reduction="sum",
                                    return_aux=True)  # fmt: skip


def writing_head(embedding: nn.Parameter, vocabulary: int, folder: str | None = None) -> WritingHead:
    """The head tied to `embedding`, [V, H]; with the bias that lies in `folder`, from which the network began, if one
    does."""
    bias = torch.zeros(vocabulary)
    for file in sorted(Path(folder).glob("*.safetensors")) if folder else ():
        with safe_open(file, framework="pt") as stored:
            bias = stored.get_tensor(BIAS).flatten().float() if BIAS in stored.keys() else bias  # noqa: SIM118
    return WritingHead(embedding, bias)


def written_states(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
    """The decoder's hidden states [B, T, H], each before it sees its own token.

    Args:
        input_ids, attention_mask: int64 [B, S], what is read.
        labels: int64 [B, T], what is to be written, -100 behind its end, where no token sees it.
    """
    hidden: Tensor = model(
        input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=_shown(model, labels), use_cache=False
    ).last_hidden_state
    return hidden


def written_after(model: PreTrainedModel, read: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
    """The same from `read` [B, S, H], what the encoder made."""
    hidden: Tensor = model(
        encoder_outputs=(read,), attention_mask=attention_mask, decoder_input_ids=_shown(model, labels), use_cache=False
    ).last_hidden_state
    return hidden


def _shown(model: PreTrainedModel, labels: Tensor) -> Tensor:
    """What a decoder is shown: `decoder_start_token_id`, and all labels but the last."""
    start = labels.new_full((len(labels), 1), model.config.decoder_start_token_id)
    shown = torch.cat([start, labels[:, :-1]], 1)
    return shown.masked_fill(shown == IGNORED, model.config.pad_token_id)
