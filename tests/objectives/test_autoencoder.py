"""Autoencoder: the loss in loops, a blind line without bias, noise that follows the sample, and a bottleneck."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig
from bigssl.nets.chance import noise
from bigssl.nets.pool import normalise
from bigssl.nets.progress import Progress
from bigssl.nets.remaking.base import picture_bytes
from bigssl.nets.towers import Tower
from bigssl.objectives.autoencoder import Autoencoder
from bigssl.objectives.base import build, discover

AT = Progress(0, 100)
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def tower(kind: str = "resnet", size: int = 32, channels: int | None = None, **config: Any) -> Tower:
    torch.manual_seed(0)
    return Tower("image", BackboneConfig(type=kind, size=size, channels=channels, config=config or RESNET), None)


def test_the_loss_is_the_squared_error_per_pixel(objective: Any, batch: Any) -> None:
    """Float64, pixel by pixel, against the picture without the noise that the network sees."""
    task = objective(Autoencoder, "autoencoder")
    data, said, shown = batch(task), [], []
    task.remaker.register_forward_hook(lambda module, args, output: said.append(output.detach().double().numpy()))
    task.backbone.model.register_forward_pre_hook(
        lambda module, args, named: shown.append(named["pixel_values"].clone()), with_kwargs=True)  # fmt: skip
    losses = task(data, AT)
    pictures = data["image"].double().numpy() / 127.5 - 1
    errors = [(said[0][b, c, y, x] - pictures[b, c, y, x]) ** 2 for b, c, y, x in np.ndindex(*pictures.shape)]
    assert losses.total.item() == pytest.approx(np.mean(errors), rel=1e-5)
    assert float(losses.blind) == pytest.approx(np.var(pictures, axis=0, ddof=1).mean(), rel=1e-6)
    for row, seed in enumerate(data["sample_seeds"]):
        own = noise.gaussian(seed[None], "noise", 3 * 32 * 32).view(3, 32, 32)
        torch.testing.assert_close(shown[0][row], normalise(data["image"][row]) + 0.1 * own)


def test_a_mean_picture_has_the_blind_line(objective: Any, batch: Any) -> None:
    """Of all 3,078 pictures, by a decoder that says their mean: the mean of many batches' lines is its error."""
    task = objective(Autoencoder, "autoencoder", noise=0.0)
    batches = [normalise(batch(task, step=step)["image"]).double() for step in range(40)]
    mean = torch.cat(batches).mean(0)
    lines = [float(task({"image": picture_bytes(each), "sample_seeds": torch.arange(len(each))}, AT).blind)
             for each in batches]  # fmt: skip
    assert np.mean(lines) == pytest.approx((torch.cat(batches) - mean).square().mean().item(), rel=0.02)


def test_a_resnet_draws_from_its_last_map() -> None:
    task = Autoencoder(Autoencoder.Config(source="x", width=32), {"image": tower(size=48)})
    assert task.remaker.settings == {"dim": 16, "side": 6, "size": 48, "width": 32, "channels": 3, "noise": 0.0}
    with torch.no_grad():
        hidden = task.backbone.model(pixel_values=torch.zeros(2, 3, 48, 48)).last_hidden_state
        assert task.remaker(hidden).shape == (2, 3, 48, 48)
    assert task.exports()["autoencoder"].tensors.keys() == dict(task.remaker.named_parameters()).keys()
    grey = Autoencoder(Autoencoder.Config(source="x", width=16, noise=0.1), {"image": tower(channels=1)})
    pictures = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    losses = grey({"image": pictures, "sample_seeds": torch.arange(2)}, AT)
    drawn = grey.eval().remaker.remake(grey.backbone.model, pictures, torch.arange(2))
    assert drawn.made.shape == (2, 1, 32, 32) and losses.total.isfinite()


@pytest.mark.parametrize(
    ("kind", "config", "fields", "words"),
    [
        ("vit", {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}, {},
         "objective.backbone: backbone 'image': it is of type vit, which has no feature map; allowed: .*convnext"),
        ("resnet", RESNET | {"hidden_sizes": [8, 192]}, {},
         "objective.noise: value 0, .* has 3,072 numbers for the 3,072 of a picture.*; allowed: noise"),
        ("resnet", RESNET | {"hidden_sizes": [8, 192]}, {"noise": 0.2}, ""),
    ],
)  # fmt: skip
def test_what_is_no_bottleneck_is_refused(kind: str, config: Any, fields: dict[str, Any], words: str) -> None:
    """Unless noise is in the way of copying."""
    section = discover()["autoencoder"].config_type("autoencoder", {}).model_validate(
        {"name": "autoencoder", "source": "x", "width": 16, **fields})  # fmt: skip
    if not words:
        assert build(section, {"image": tower(kind, **config)}).config.noise == 0.2
        return
    with pytest.raises(ConfigError, match=words) as caught:
        build(section, {"image": tower(kind, **config)})
    assert "\n" not in str(caught.value)
