"""A series network that fills in hidden patches, or forecasts, with its head, as transformers' class for that."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PatchTSTForPrediction, PatchTSTForPretraining, PreTrainedModel

from bigssl.data.sample import Sample
from bigssl.nets.heads.steps import window_deviation
from bigssl.nets.modality import MODALITIES
from bigssl.transfer.leaving.parts import LeavingPart
from bigssl.transfer.leaving.samples import collated

CLASSES: dict[str, type[PreTrainedModel]] = {"masked_series": PatchTSTForPretraining, "forecast": PatchTSTForPrediction}


def stepwise_model(part: LeavingPart) -> PreTrainedModel:
    """The network with its head, float32 in eval mode."""
    member = part.only
    config = copy.deepcopy(member.model.config)
    own: dict[str, Any] = {"dtype": torch.float32}
    if part.kind == "forecast":
        own |= {"prediction_length": part.settings["horizon"], "pooling_type": None, "share_projection": True,
                "loss": "mse"}  # fmt: skip
    else:
        own |= {"mask_type": "random", "random_mask_ratio": part.settings["ratio"], "mask_value": 0,
                "do_mask_input": True}  # fmt: skip
    for name, value in own.items():
        setattr(config, name, value)
    made: Any = CLASSES[part.kind](config)
    made.model.load_state_dict(member.model.state_dict())
    head = made.head.projection if part.kind == "forecast" else made.head.linear
    head.load_state_dict(dict(part.tensors))
    model: PreTrainedModel = made.eval()
    return model


def stepwise_outputs(part: LeavingPart, samples: list[Sample]) -> dict[str, Tensor]:
    """Of samples as evaluations view them: forecasts [N, H, C] in the unit of the data, or what the head makes of each
    patch, [N, C, P, steps], where nothing is hidden."""
    member = part.only
    batch = collated(member.takes, samples)
    channels = batch["series"].shape[2]
    with torch.no_grad():
        hidden = MODALITIES["series"].hidden(member.model, batch).unflatten(1, (channels, -1))  # [N, C, P, D]
        if part.kind == "masked_series":
            return {"patches": _linear(part.tensors, hidden)}
        values, seen = batch["series"], batch["series_mask"]
        mean = (values * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp(min=1)
        scale = window_deviation(values - mean, seen)[:, None]
        return {"forecast": _linear(part.tensors, hidden.flatten(2)).transpose(1, 2) * scale + mean}


def _linear(tensors: Mapping[str, Tensor], hidden: Tensor) -> Tensor:
    return torch.nn.functional.linear(hidden, tensors["weight"], tensors["bias"])
