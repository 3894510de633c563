"""MAE: the loss of the paper in loops, a blind line in closed form, and a backbone that never sees what is hidden."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig
from bigssl.nets.chance import noise
from bigssl.nets.pool import normalise
from bigssl.nets.progress import Progress
from bigssl.nets.remaking.lines import mean_picture_error
from bigssl.nets.remaking.mae import can_hide, encode_visible, patches_of, pictures_of, targets
from bigssl.nets.towers import Tower
from bigssl.objectives.base import build, discover
from bigssl.objectives.mae import PATCHES, Mae, blind_error
from bigssl.transfer.inputs import ImageInput
from bigssl.transfer.leaving.export import export_run

AT = Progress(0, 100)
FIELDS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}


def backbone(kind: str, **changes: Any) -> Tower:
    wide = {} if kind.startswith("dinov2") else {"intermediate_size": 64}
    torch.manual_seed(0)
    return Tower("image", BackboneConfig(type=kind, size=32, config={**FIELDS, **wide, **changes}), None)


def predictions(task: Mae, data: Any) -> tuple[Tensor, Any]:
    """What the decoder says in a forward pass, [B, N, P], and the losses."""
    said: list[Any] = []
    hook = task.remaker.register_forward_hook(lambda module, args, output: said.append(output.detach()))
    losses = task(data, AT)
    hook.remove()
    return said[0], losses


def test_the_loss_is_that_of_the_paper_in_loops(objective: Any, batch: Any) -> None:
    """Float64, pixel by pixel: patches row by row, y before x before channel, mean over hidden patches."""
    task = objective(Mae, "mae")
    data = batch(task)
    predicted, losses = predictions(task, data)
    errors, blinds = [], []
    for row, picture in enumerate(normalise(data["image"]).double().numpy()):
        order = noise.orders(data["sample_seeds"], "mask", 16)[row].tolist()
        for number in order[4:]:  # 75 % of 16
            top, left = 8 * (number // 4), 8 * (number % 4)
            pixels = [picture[c, top + y, left + x] for y in range(8) for x in range(8) for c in range(3)]
            target = (np.array(pixels) - np.mean(pixels)) / np.sqrt(np.var(pixels, ddof=1) + 1e-6)
            errors.append(np.mean((predicted[row, number].double().numpy() - target) ** 2))
            blinds.append(np.mean(target**2))
    assert losses.total.item() == pytest.approx(np.mean(errors), rel=1e-5)
    assert float(losses.blind) == pytest.approx(np.mean(blinds), rel=1e-5)
    assert losses.unit == "squared error"


def test_the_blind_line_is_what_each_patchs_mean_gives(objective: Any, batch: Any) -> None:
    """A decoder that says nothing has it, whatever the pictures; a checkerboard has 1 − 1/P, a blank picture 0."""
    task = objective(Mae, "mae")
    with torch.no_grad():
        for parameter in task.remaker.decoder.decoder_pred.parameters():
            parameter.zero_()
    data = batch(task)
    losses = task(data, AT)
    assert losses.total.item() == pytest.approx(float(losses.blind), rel=1e-6) and 0.5 < float(losses.blind) < 1
    board = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = 0
    for picture, blind, flat in ((board, 1 - 1 / 192, 0.0), (board * 0 + 7, 0.0, 1.0)):
        losses = task({"image": picture, "sample_seeds": torch.arange(2)}, AT)
        assert float(losses.blind) == pytest.approx(blind, abs=2e-6) and losses.stats["flat"].item() == flat
        assert losses.total.item() == pytest.approx(blind, abs=2e-6)
    v = torch.tensor([[[0.0], [1e-6], [4.0]]])
    assert blind_error(v, 192)[0].item() == pytest.approx((1 - 1 / 192) * (0.5 + 4 / 4.000001) / 3)


def test_patches_and_back() -> None:
    pixels = torch.randn(2, 3, 16, 24)
    whole = patches_of(pixels, 8)
    assert whole.shape == (2, 6, 192)
    assert torch.equal(pictures_of(patches_of(pixels[..., :16], 8), 8), pixels[..., :16])
    assert torch.equal(whole[1, 4].view(8, 8, 3), pixels[1, :, 8:16, 8:16].permute(1, 2, 0))
    normal, variance = targets(whole)
    torch.testing.assert_close(normal.mean(-1), torch.zeros(2, 6), atol=1e-6, rtol=0)
    torch.testing.assert_close(normal.var(-1), torch.ones(2, 6), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal * (variance + 1e-6).sqrt() + whole.mean(-1, keepdim=True), whole)


@pytest.mark.parametrize("kind", PATCHES)
def test_the_backbone_sees_what_is_visible_and_nothing_else(kind: str) -> None:
    """All patches visible: its own hidden states. Some: the same whatever the others hold, and each by its position."""
    tower = backbone(kind)
    can_hide(tower.model)
    tower.eval()
    pixels = torch.randn(3, 3, 32, 32)
    own = tower.model(pixel_values=pixels).last_hidden_state
    every = encode_visible(tower.model, pixels, torch.arange(16).expand(3, 16))
    torch.testing.assert_close(every[:, 1:], own[:, -16:])
    torch.testing.assert_close(every[:, 0], own[:, 0])
    order = noise.orders(torch.arange(3), "mask", 16)
    shuffled = encode_visible(tower.model, pixels, order)
    torch.testing.assert_close(shuffled[:, 1:], own[:, -16:].gather(1, order[..., None].expand(-1, -1, 32)),
                               rtol=1e-4, atol=1e-5)  # fmt: skip
    seen = order[:, :4]
    changed = patches_of(pixels, 8).scatter(1, order[:, 4:, None].expand(-1, -1, 192), 9.0)
    back = pictures_of(changed, 8)
    some = encode_visible(tower.model, pixels, seen)
    assert some.shape == (3, 5, 32) and torch.equal(some, encode_visible(tower.model, back, seen))
    assert not torch.allclose(some[:, 1:], shuffled[:, 1:5], atol=1e-4)  # attention reached the others there
    assert torch.equal(tower.model(pixel_values=pixels).last_hidden_state, own)  # and outside, it sees all


def test_three_quarters_are_hidden_by_sample_and_step(objective: Any, batch: Any) -> None:
    task, seen = objective(Mae, "mae"), []
    task.backbone.model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    state = torch.get_rng_state()
    data = batch(task)
    first, again = task(data, AT), task(data, AT)
    assert seen == [torch.Size([12, 5, 32])] * 2  # class token and 4 of 16
    assert torch.equal(first.total, again.total) and torch.equal(state, torch.get_rng_state())
    other = task(data | {"sample_seeds": batch(task, step=1)["sample_seeds"]}, AT)
    assert not torch.equal(first.total, other.total)
    masks = noise.orders(data["sample_seeds"], "mask", 16)[:, :4].sort(-1).values
    assert len({tuple(mask) for mask in masks.tolist()}) > 6


def test_views_of_another_task_on_the_same_backbone_are_whole(batch: Any) -> None:
    """A joint run: SimCLR's features are those of all patches, before, between and after."""
    tower = backbone("vit").eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    alone = tower.features({"image": pixels})
    config = Mae.Config(source="emoji", decoder_dim=8, decoder_layers=1, decoder_heads=2)
    tasks = [Mae(config, {"image": tower}) for _ in range(2)]
    assert len(tower.model.embeddings._forward_hooks) == 1
    for task in tasks:
        task({"image": pixels, "sample_seeds": torch.arange(2)}, AT)
        assert torch.equal(tower.features({"image": pixels}), alone)
    twin = copy.deepcopy(tower)
    assert torch.equal(twin.features({"image": pixels}), alone)
    assert not set(map(id, twin.modules())) & set(map(id, tasks[0].modules()))


def test_an_export_is_a_plain_vit_that_sees_all_patches(objective: Any, batch: Any, tmp_path: Path) -> None:
    task = objective(Mae, "mae")
    task(batch(task), AT).total.backward()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    export_run(tmp_path, {"image": task.backbone.model}, {"image": ImageInput(32)}, {}, {})
    loaded = AutoModel.from_pretrained(tmp_path / "export" / "image").eval()
    assert type(loaded).__name__ == "ViTModel"
    hidden = loaded(pixel_values=normalise(pixels)).last_hidden_state
    assert hidden.shape == (2, 17, 32)
    torch.testing.assert_close(hidden[:, 1:].mean(1), task.eval().backbone.features({"image": pixels}))


RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("resnet", {}, "objective.backbone: backbone 'image': it is of type resnet, .*; allowed: .* of type vit, "),
        ("beit", {}, "objective.backbone: backbone 'image': it is of type beit, which cannot leave patches out"),
        ("vit", {"ratio": 0.95}, "objective.ratio: value 0.95 leaves 0 of 16 patches; allowed: from 0.0625 to 0.9375"),
        ("vit", {"decoder_dim": 20, "decoder_heads": 3}, "objective.decoder_heads: value 3; allowed: a divisor of"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(kind: str, fields: dict[str, Any], words: str) -> None:
    section = BackboneConfig(type="resnet", size=32, config=RESNET)
    tower = Tower("image", section, None) if kind == "resnet" else backbone(kind)
    config = discover()["mae"].config_type("mae", {}).model_validate({"name": "mae", "source": "x", **fields})
    with pytest.raises(ConfigError, match=words) as caught:
        build(config, {"image": tower})
    assert "\n" not in str(caught.value)


def test_the_decoder_finds_every_state_at_the_place_of_its_patch(
    objective: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network can learn a wrong order by heart, so that no loss tells: states are numbered, and looked for."""
    task, held = objective(Mae, "mae"), []

    def numbered(model: Any, pixels: Tensor, seen: Tensor) -> Tensor:
        numbers = torch.cat([seen.new_zeros(len(seen), 1), seen + 1], 1).float()  # class token, patch n as n + 1
        return numbers.unsqueeze(-1).expand(-1, -1, task.backbone.dim)

    def restore(module: Any, args: tuple[Tensor, Tensor]) -> None:
        states, places = args
        filled = torch.cat([states[:, 1:, 0], states.new_zeros(len(states), places.shape[1] - states.shape[1] + 1)], 1)
        held.append(filled.gather(1, places))

    monkeypatch.setattr("bigssl.objectives.mae.encode_visible", numbered)
    task.remaker.decoder.register_forward_pre_hook(restore)
    data = batch(task)
    task(data, AT)
    visible = noise.orders(data["sample_seeds"], "mask", task.patches)[:, : task.visible]
    wanted = torch.zeros_like(held[0]).scatter(1, visible, (visible + 1).float())
    assert torch.equal(held[0], wanted)


def test_pixels_as_they_are_have_the_mean_picture_as_their_blind_line(objective: Any, batch: Any) -> None:
    """Float64, in loops; the line without bias: over many batches of two it is the variance of the data."""
    task = objective(Mae, "mae", normalised_pixels=False)
    data = batch(task)
    predicted, losses = predictions(task, data)
    pixels = normalise(data["image"]).double()
    hidden = noise.orders(data["sample_seeds"], "mask", 16)[:, 4:]
    errors = [((predicted[row, number].double() - patches_of(pixels, 8)[row, number]) ** 2).mean().item()
              for row in range(len(pixels)) for number in hidden[row].tolist()]  # fmt: skip
    assert losses.total.item() == pytest.approx(np.mean(errors), rel=1e-5) and task.least == 2
    assert float(losses.blind) == pytest.approx(np.var(pixels.numpy(), axis=0, ddof=1).mean(), rel=1e-6)
    assert losses.blind_name == "the mean picture"
    twos = [float(mean_picture_error(pixels[[one, other]])) for one in range(len(pixels)) for other in range(one)]
    assert np.mean(twos) == pytest.approx(float(losses.blind), rel=1e-6)


def test_sizes_of_the_base_model_are_those_of_the_paper() -> None:
    """224/16: 196 patches, 147 hidden, 768 numbers each; as many parameters as transformers' ViTMAEForPreTraining."""
    with torch.device("meta"):
        tower = Tower("image", BackboneConfig(type="vit", size=224, config={}), None)
        task = Mae(Mae.Config(source="x"), {"image": tower})
    assert (task.patches, task.patches - task.visible) == (196, 147)
    parts = [part for name, part in task.named_parameters() if ".pooler." not in name]
    assert sum(part.numel() for part in parts) == 111_907_840
    hidden, order = torch.empty(2, 50, 768, device="meta"), torch.empty(2, 196, dtype=torch.int64, device="meta")
    assert task.remaker(hidden, order).shape == (2, 196, 768)
