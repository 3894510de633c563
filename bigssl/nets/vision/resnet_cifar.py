"""ResNet for small pictures (He et al. 2016, https://arxiv.org/abs/1512.03385), with the stem of SimCLR's appendix B.9
(https://arxiv.org/abs/2002.05709): a 3 × 3 convolution of stride 1 and no max-pool, in place of 7 × 7 of stride 2 and
one.

It is transformers' ResNet in all else, under the same names of weights. This file knows nothing but transformers: a
copy lies beside exported weights, so that `AutoModel.from_pretrained(DIR, trust_remote_code=True)` loads them.
"""

from typing import Any

from torch import nn
from transformers.models.resnet.configuration_resnet import ResNetConfig
from transformers.models.resnet.modeling_resnet import (
    ResNetConvLayer,
    ResNetEmbeddings,
    ResNetEncoder,
    ResNetForImageClassification,
    ResNetModel,
    ResNetPreTrainedModel,
)


class CifarResNetConfig(ResNetConfig):
    """The fields of ResNetConfig."""

    model_type = "resnet_cifar"


class CifarStem(ResNetEmbeddings):
    """[B, num_channels, H, W] -> [B, embedding_size, H, W]."""

    def __init__(self, config: CifarResNetConfig) -> None:
        super().__init__(config)
        self.embedder = ResNetConvLayer(
            config.num_channels, config.embedding_size, kernel_size=3, stride=1, activation=config.hidden_act
        )
        self.pooler = nn.Identity()  # type: ignore[assignment]


class CifarResNetModel(ResNetModel):
    """As ResNetModel; hidden states [B, D, H / 8, W / 8] of four stages."""

    config_class = CifarResNetConfig

    def __init__(self, config: CifarResNetConfig) -> None:
        ResNetPreTrainedModel.__init__(self, config)
        self.embedder = CifarStem(config)
        self.encoder = ResNetEncoder(config)
        self.pooler = nn.AdaptiveAvgPool2d((1, 1))
        self.post_init()


class CifarResNetForImageClassification(ResNetForImageClassification):
    """As ResNetForImageClassification."""

    config_class = CifarResNetConfig

    def __init__(self, config: CifarResNetConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.resnet = CifarResNetModel(config)
