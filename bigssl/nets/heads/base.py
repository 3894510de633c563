"""Heads that pretraining puts on a backbone; what an evaluation needs of them again is kept as a `Head`."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from bigssl.nets.norm import GlobalBatchNorm
from bigssl_kernels import linear_cross_entropy

IGNORED = -100  # label of a token that is not predicted
ABOUT_HEAD = "bigssl"  # key of the metadata of its file: JSON with kind, backbones and settings


class Head(NamedTuple):
    """What a task has trained on top of its backbones and an evaluation needs again.

    Attributes:
        kind: what it is: "clip" (two projections, of pictures and texts), "pair" (of sounds and another modality),
            "mlm" (a head of masked language modelling), or what makes pictures, a file of `bigssl/nets/remaking`. ""
            where nobody knows.
        backbones: the name of the backbone it belongs to, by role ("image", "text"): on another it means nothing.
        tensors: by name, as they are exported.
        settings: what else it takes to make it anew, as JSON can hold it.
    """

    kind: str
    backbones: dict[str, str]
    tensors: dict[str, Tensor]
    settings: dict[str, Any] = {}  # noqa: RUF012 - nobody writes to it

    def write(self, path: Path) -> None:
        """A safetensors file that says what it is. Float tensors are float32 there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        said = {"kind": self.kind, "backbones": self.backbones, "settings": self.settings}
        save_file({key: _kept(value) for key, value in self.tensors.items()}, path, {ABOUT_HEAD: json.dumps(said)})

    @classmethod
    def read(cls, path: Path) -> Head:
        """What `write` wrote, or the tensors of another program. Raises OSError, SafetensorError."""
        with safe_open(path, framework="pt") as stored:
            said = json.loads((stored.metadata() or {}).get(ABOUT_HEAD, "{}"))
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - it is no mapping
        return cls(said.get("kind", ""), said.get("backbones", {}), tensors, said.get("settings", {}))


def _kept(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).clone(memory_format=torch.contiguous_format)


class ProjectionHead(nn.Module):
    """MLP on a backbone: [B, dim] -> [B, out], dtype kept. Two layers with BatchNorm are SimCLR's (Chen et al. 2020),
    three SimCLR v2's (arXiv 2006.10029), two without MoCo v2's (arXiv 2003.04297)."""

    def __init__(
        self, dim: int, hidden: int, out: int, *, layers: int = 2, norm: bool = True, last_norm: bool = False,
        bias: bool = True,
    ) -> None:  # fmt: skip
        """norm: BatchNorm behind all layers but the last. last_norm: one without weights behind the last (MoCo v3).
        bias: of the last layer. Without, where a BatchNorm follows: it would undo the bias, whose gradient would be
        rounding noise that Adam walks along."""
        super().__init__()
        widths, parts = [dim, *[hidden] * (layers - 1)], list[nn.Module]()
        for before, after in itertools.pairwise(widths):
            parts += [nn.Linear(before, after, bias=not norm), *[GlobalBatchNorm(after)] * norm, nn.ReLU(inplace=True)]
        parts.append(nn.Linear(widths[-1], out, bias=bias and not last_norm))
        self.layers = nn.Sequential(*parts, *[GlobalBatchNorm(out, affine=False)] * last_norm)

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.layers(features)
        return projected


class MaskedLanguageHead(nn.Module):
    """BERT's head (Devlin et al. 2019) up to the loss, on the masked tokens only.

    The tied embedding is registered here as well, so that ZeRO-3 gathers it for this module's forward and backward. An
    embedding that is narrower than the hidden states (ALBERT, Lan et al. 2020; ELECTRA, Clark et al. 2020) is met by
    projecting these to its width, as in both papers' code. `masked_head` makes the one of a backbone.
    """

    def __init__(
        self, embedding: nn.Parameter, dim: int | None = None, activation: str = "gelu", eps: float = 1e-12
    ) -> None:
        """embedding: [V, E]. dim: size H of the hidden states; default E. activation: as ACT2FN calls it. eps: of the
        LayerNorm."""
        super().__init__()
        vocabulary, width = embedding.shape
        self.weight = embedding
        self.bias = nn.Parameter(torch.zeros(vocabulary))  # of the embedding there may be no more than the shape
        self.dense = nn.Linear(dim or width, width)
        self.activation = ACT2FN[activation]
        self.norm = nn.LayerNorm(width, eps=eps)

    def transform(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., E], what is compared with the embeddings."""
        transformed: Tensor = self.norm(self.activation(self.dense(hidden)))
        return transformed

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., V], all of them."""
        return F.linear(self.transform(hidden), self.weight, self.bias)

    def forward(self, hidden: Tensor, labels: Tensor, most: int | None = None) -> Tensor:
        """Sum of the cross-entropies over the labelled tokens; only these are transformed.

        Args:
            hidden: [B, T, H].
            labels: int64 [B, T], -100 where there is nothing to predict.
            most: if known to the host, how many tokens are labelled at most: a GPU then need not tell it how many are.

        Returns:
            [] float32; 0 with zero gradients where no token is labelled, NaN where more than `most` are.
        """
        labels = labels.flatten()
        rows = labelled_rows(labels, most)
        picked = hidden.flatten(0, 1).index_select(0, rows)  # [M, H]
        transformed = self.transform(picked)
        targets = labels.index_select(0, rows)
        if most is not None:  # rows beyond the labelled ones repeat the first token
            count = (labels != IGNORED).sum()
            targets = targets.masked_fill(torch.arange(len(rows), device=rows.device) >= count, IGNORED)
        loss = linear_cross_entropy(transformed, self.weight, targets, self.bias, reduction="sum")
        return loss if most is None else torch.where(count > most, float("nan"), loss)


_ACTIVATION = {"distilbert": "activation", "modernbert": "classifier_activation"} | dict.fromkeys(
    ("albert", "bert", "deberta", "deberta-v2", "ernie", "megatron-bert", "nomic_bert", "rembert", "roformer",
     "squeezebert"), "hidden_act",
)  # fmt: skip


def masked_head(embedding: nn.Parameter, config: PreTrainedConfig) -> MaskedLanguageHead:
    """The head for a backbone: with activation and epsilon of the one that transformers has for its type, so that the
    trained one leaves as `AutoModelForMaskedLM`.

    Args:
        embedding: [V, E], its token embedding.
        config: its configuration.
    """
    return MaskedLanguageHead(embedding, *masked_settings(config))


def masked_settings(config: PreTrainedConfig) -> tuple[int, str, float]:
    """What `MaskedLanguageHead` takes behind the embedding: size of the hidden states, activation, epsilon."""
    field = _ACTIVATION.get(config.model_type)  # of others (RoBERTa, ELECTRA, MPNet and theirs) it is always GELU
    activation = "gelu" if field is None else str(getattr(config, field))
    eps = getattr(config, "layer_norm_eps", getattr(config, "norm_eps", 1e-12))
    return config.hidden_size, activation, float(eps)


def labelled_rows(labels: Tensor, most: int | None) -> Tensor:
    """Numbers of the labelled tokens; with `most`, exactly min(most, T) numbers, filled up with 0, without a sync."""
    if most is None:
        return (labels != IGNORED).nonzero().squeeze(1)
    return torch.nonzero_static(labels != IGNORED, size=min(most, len(labels)), fill_value=0).squeeze(1)
