"""Our head of masked language modelling as the head that transformers has for the backbone's type, exactly."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel

from bigssl.transfer.leaving.parts import LeavingPart, UnfitError


def masked_language_model(part: LeavingPart) -> PreTrainedModel:
    """The network with its head, float32 in eval mode. Raises UnfitError: transformers has another head, or none, for
    this type."""
    member = part.only
    config = adapted(member.model.config)
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise UnfitError(f"part {part.name!r}: transformers has no class that predicts masked tokens with a "
                         f"{config.model_type}; allowed: --format onnx, which holds any head")
    model: PreTrainedModel = AutoModelForMaskedLM.from_config(config)
    model.base_model.load_state_dict(member.model.state_dict())
    fill_masked_head(part, model)
    return model.eval()


def fill_masked_head(part: LeavingPart, model: PreTrainedModel) -> None:
    """Puts the trained head into `model`, whose body has its weights.

    Every head of transformers that has a layer, an activation, a LayerNorm and a decoder is filled with the tensors of
    ours; a bias that its LayerNorm does not have goes into the decoder's: W (x + b) = W x + W b.

    Raises:
        UnfitError: this class has another head.
    """
    base: Any = model.base_model
    inside = {id(module) for module in base.modules()}
    own = [module for module in model.modules() if id(module) not in inside]
    embedding: Any = base.get_input_embeddings().weight
    linear = [module for module in own if isinstance(module, nn.Linear)]
    dense = [module for module in linear if module.weight.shape == part.tensors["dense.weight"].shape]
    decoders = [module for module in linear if module.weight.shape == embedding.shape]
    norms = [module for module in own if isinstance(module, nn.LayerNorm)]
    if len(dense) != 1 or len(decoders) != 1 or len(norms) != 1 or dense[0].bias is None or decoders[0].bias is None:
        raise UnfitError(f"part {part.name!r}: transformers' {type(model).__name__} has another head than the one "
                         "trained; allowed: --format onnx, which holds any head")
    _fill(model, embedding, part.tensors, dense[0], norms[0], decoders[0])


def adapted(config: PreTrainedConfig) -> PreTrainedConfig:
    """With what makes room for our head: a bias (ModernBERT), the embedding's width (RemBERT)."""
    config = copy.deepcopy(config)
    config.dtype = torch.float32
    if hasattr(config, "classifier_bias"):
        config.classifier_bias = True
    if hasattr(config, "output_embedding_size"):
        config.output_embedding_size = config.input_embedding_size
    return config


@torch.no_grad()
def _fill(
    model: PreTrainedModel, embedding: Tensor, tensors: dict[str, Tensor],
    dense: nn.Linear, norm: nn.LayerNorm, decoder: nn.Linear,
) -> None:  # fmt: skip
    bias = tensors["bias"].clone()
    if norm.bias is None:
        bias += embedding @ tensors["norm.bias"]
    else:
        norm.bias.copy_(tensors["norm.bias"])
    norm.weight.copy_(tensors["norm.weight"])
    dense.weight.copy_(tensors["dense.weight"])
    dense.bias.copy_(tensors["dense.bias"])
    decoder.weight.copy_(embedding)
    model.tie_weights()
    free = [p for name, p in model.named_parameters() if p.shape == bias.shape and name.endswith("bias")]
    for parameter in free:  # of some types a bias beside the decoder, tied to its own
        parameter.copy_(bias)
    decoder.bias.copy_(bias)
