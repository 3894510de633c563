"""Makes the networks of this room known to transformers' auto classes, once, when it is imported."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedModel

from bigssl.nets.vision.resnet_cifar import CifarResNetConfig, CifarResNetForImageClassification, CifarResNetModel

OURS = (CifarResNetConfig.model_type,)
"""Types whose code leaves beside their weights, as transformers has no class for them."""

AutoConfig.register(CifarResNetConfig.model_type, CifarResNetConfig)
CifarResNetConfig.register_for_auto_class()
for auto, kind in ((AutoModel, CifarResNetModel), (AutoModelForImageClassification, CifarResNetForImageClassification)):
    auto.register(CifarResNetConfig, kind)
    kind.register_for_auto_class(auto.__name__)


def trust(model: PreTrainedModel) -> dict[str, bool]:
    """Arguments that transformers' `from_pretrained` needs where bigssl is not installed."""
    return {"trust_remote_code": True} if model.config.model_type in OURS else {}
