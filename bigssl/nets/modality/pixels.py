"""What a network of pictures and the recipe have to agree on: channels, and a size that its patches fill."""

from __future__ import annotations

from transformers import PreTrainedModel

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig
from bigssl.nets.modality.kinds import WHOLE_PATCHES

COLOURS = 3  # channels of a picture, where no other number is asked for


def check_channels(where: str, model: PreTrainedModel, config: BackboneConfig) -> None:
    """Raises ConfigError where the network takes other channels than the recipe says."""
    own, asked = getattr(model.config, "num_channels", COLOURS), config.channels or COLOURS
    if asked not in (1, COLOURS):
        raise ConfigError(f"{where}.channels: value {asked}; allowed: 1 (pictures are made grey), or {COLOURS} (every "
                          "picture is read as RGB, grey ones too)")  # fmt: skip
    if own == asked:
        return
    if config.init_from is not None:
        why = f"as the network in {config.init_from} takes"
    elif "num_channels" in config.config:
        why = "as config.num_channels says"
    else:
        why = f"the only number that a {model.config.model_type} takes"
    default = " (the default)" if config.channels is None else ""
    raise ConfigError(f"{where}.channels: value {asked}{default}; allowed: {own}, {why}")


def check_patches(where: str, model: PreTrainedModel, config: BackboneConfig) -> None:
    """Raises ConfigError where patches do not fill the picture: what is over at its right and lower edge, such a
    network leaves out without a word."""
    patch = getattr(model.config, "patch_size", None)
    if model.config.model_type not in WHOLE_PATCHES or not isinstance(patch, int) or not config.size:
        return
    if config.size % patch:
        near = [count * patch for count in (config.size // patch, config.size // patch + 1) if count]
        raise ConfigError(f"{where}.size: value {config.size}; allowed: a multiple of patch_size {patch}, such as "
                          f"{' or '.join(map(str, near))}, or another config.patch_size")  # fmt: skip
