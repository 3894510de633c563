"""Makes the networks that are ours known to transformers' auto classes, once, when it is imported."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedModel

from bigssl.nets.series.ts2vec import Ts2vecConfig, Ts2vecModel
from bigssl.nets.vision.resnet_cifar import CifarResNetConfig, CifarResNetForImageClassification, CifarResNetModel

OUR_CODE = {CifarResNetConfig.model_type: "resnet_cifar.py", Ts2vecConfig.model_type: "ts2vec.py"}
"""Types whose code leaves beside their weights, as transformers has no class for them, and its file."""

for config in (CifarResNetConfig, Ts2vecConfig):
    AutoConfig.register(config.model_type, config)
    config.register_for_auto_class()
for auto, taken, kind in (
    (AutoModel, CifarResNetConfig, CifarResNetModel), (AutoModel, Ts2vecConfig, Ts2vecModel),
    (AutoModelForImageClassification, CifarResNetConfig, CifarResNetForImageClassification),
):  # fmt: skip
    auto.register(taken, kind)
    kind.register_for_auto_class(auto.__name__)


def trust(model: PreTrainedModel) -> dict[str, bool]:
    """Arguments that transformers' `from_pretrained` needs where bigssl is not installed."""
    return {"trust_remote_code": True} if model.config.model_type in OUR_CODE else {}
