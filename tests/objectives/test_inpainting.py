"""Inpainting: both players' gradients to the bit, the losses of the paper in loops, holes, and collapses in words."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bigssl.config.errors import ConfigError
from bigssl.config.optim import OptimConfig
from bigssl.engine.clipping import clip_gradients
from bigssl.engine.optim import build_optimizer
from bigssl.nets.heads import gan
from bigssl.nets.pool import normalise
from bigssl.nets.progress import Progress
from bigssl.nets.remaking.base import GREY, Remaker
from bigssl.nets.remaking.holes import LEAST, MOST, SMALLEST, Holes, around, border_mean
from bigssl.objectives.inpainting import Inpainting
from bigssl.report.collapses import CollapseWatch

AT = Progress(0, 100)
CONVNEXT = {"type": "convnext", "size": 32, "config": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}}
ONE_PLACE = {"type": "mobilenet_v1", "size": 32, "config": {"depth_multiplier": 0.1}}  # BatchNorm over a map of 1 × 1


@pytest.fixture
def task(objective: Any) -> Any:
    return lambda **changes: objective(Inpainting, "inpainting", **changes)


def gradients(task: Inpainting) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in task.named_parameters() if parameter.requires_grad}


def painted(task: Inpainting, data: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, fills everywhere and filled pictures, by the parts of the task and nothing of its `forward`."""
    pixels, hidden = normalise(data["image"]), data["hidden"]
    made = task.remaker(task.backbone.hidden({"image": torch.where(hidden, GREY, data["image"])}))
    return pixels, made, torch.where(hidden, made, pixels)


@pytest.mark.parametrize("backbone", ["vit", "resnet", CONVNEXT, ONE_PLACE], ids=["vit", "resnet", "convnext", "1x1"])
def test_neither_player_feels_the_others_loss(
    backbone: Any, objective: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: gradients of one backward pass, beside those of each loss in a backward pass of its own. (Weights
    that are powers of two, so that it does not matter when they are multiplied with.)"""
    monkeypatch.setitem(Inpainting.preset, "backbones", {"image": backbone})
    one, other = (objective(Inpainting, "inpainting", reconstruction=0.5, adversarial=0.25) for _ in range(2))
    data = batch(one, size=4)
    one(data, AT).total.backward()
    pixels, made, filled = painted(other, data)
    hidden = data["hidden"].expand_as(made)
    squares = ((made - pixels).square() * hidden).sum((1, 2, 3)) / hidden.sum((1, 2, 3))
    passes = F.softplus(-other.discriminator(filled)[0]).mean()
    real, fake = other.discriminator(pixels)[0], other.discriminator(filled.detach())[0]
    names = {name: p for name, p in other.named_parameters() if p.requires_grad}
    of_judge = {name: p for name, p in names.items() if name.startswith("discriminator.")}
    of_maker = {name: p for name, p in names.items() if name not in of_judge}
    found = torch.autograd.grad(0.5 * squares.mean() + 0.25 * passes, list(of_maker.values()), retain_graph=True)
    judged = torch.autograd.grad(F.softplus(-real).mean() + F.softplus(fake).mean(), list(of_judge.values()))
    wanted = dict(zip([*of_maker, *of_judge], [*found, *judged], strict=True))
    assert of_judge and of_maker and gradients(one).keys() == wanted.keys()
    for name, gradient in gradients(one).items():
        assert gradient is not None and gradient.any() and torch.equal(gradient, wanted[name]), name


@pytest.mark.parametrize("overlap", [0, 2])
def test_the_losses_are_those_of_the_paper_in_loops(task: Any, batch: Any, overlap: int) -> None:
    """Float64, pixel by pixel; distances to a hole by looking at every pixel of it."""
    it = task(overlap=overlap, reconstruction=0.7, adversarial=0.2, share=0.3)
    data = batch(it, size=3)
    losses = it(data, AT)
    with torch.no_grad():
        pixels, made, filled = (each.double().numpy() for each in painted(it, data))
        real, fake = (it.discriminator(torch.tensor(each).float())[0].double().numpy() for each in (pixels, filled))
    errors, blinds = [], []
    for n in range(3):
        holes = np.argwhere(data["hidden"][n, 0].numpy())
        near = {(y, x): np.abs(holes - (y, x)).max(1).min() for y in range(32) for x in range(32)}
        weights = {at: 1.0 if far == 0 else 10.0 for at, far in near.items() if far <= overlap}
        border = np.mean([pixels[n, :, y, x] for (y, x), far in near.items() if far == 1], 0)
        total = sum(weights.values())
        errors.append(sum(w * np.mean((made[n, :, y, x] - pixels[n, :, y, x]) ** 2) for (y, x), w in weights.items()))
        blinds.append(sum(w * np.mean((border - pixels[n, :, y, x]) ** 2) for (y, x), w in weights.items()) / total)
        errors[-1] /= total
        if not overlap:
            inside = np.array([pixels[n, :, y, x] for y, x in holes])
            assert blinds[-1] == pytest.approx((inside.var(0) + (inside.mean(0) - border) ** 2).mean())
    passes = np.mean([math.log(1 + math.exp(-logit)) for logit in fake])  # −log D, with D = 1 / (1 + e^−logit)
    judged = np.mean([-math.log(1 / (1 + math.exp(-logit))) for logit in real])
    judged += np.mean([-math.log(1 - 1 / (1 + math.exp(-logit))) for logit in fake])
    wanted = {"": (0.7 * np.mean(errors) + 0.2 * passes, 0.7 * np.mean(blinds) + 0.2 * math.log(2)),
              "/reconstruction": (np.mean(errors), np.mean(blinds)), "/generator": (passes, math.log(2)),
              "/discriminator": (judged, 2 * math.log(2))}  # fmt: skip
    for path, part in losses.named():
        assert (part.total.item(), float(part.blind)) == pytest.approx(wanted[path], rel=1e-5), path


def test_an_undecided_discriminator_gives_ln_2_and_its_double(task: Any, batch: Any) -> None:
    it = task()
    for parameter in it.discriminator.judge.parameters():
        torch.nn.init.zeros_(parameter)
    losses = it(batch(it, size=3), AT)
    for name in ("generator", "discriminator"):
        assert losses.parts[name].total.item() == pytest.approx(losses.parts[name].blind, rel=1e-6)
    assert losses.spread["doubt"].item() == 1 and losses.stats["real"].item() == losses.stats["filled"].item() == 0.5


def test_losses_of_sure_logits_are_finite_and_have_slopes() -> None:
    sure = torch.tensor([-200.0, 200.0], requires_grad=True)
    loss = gan.generator_loss(sure) + gan.discriminator_loss(sure, sure)
    assert loss.item() == pytest.approx(300.0)
    loss.backward()
    assert sure.grad is not None and torch.equal(sure.grad, torch.tensor([-1.0, 0.5]))
    assert gan.doubt(torch.tensor([6.0])).item() == pytest.approx(4 * math.exp(6) / (1 + math.exp(6)) ** 2)


def test_the_discriminator_has_a_rate_and_betas_of_its_own(task: Any) -> None:
    it = task()
    optimizer = build_optimizer(it, OptimConfig(lr=0.01, weight_decay=0.1))
    own = {id(parameter) for parameter in it.discriminator.parameters()}
    for group in optimizer.param_groups:
        inside = {id(parameter) in own for parameter in group["params"]}
        assert len(inside) == 1
        assert (group["lr"], group["betas"]) == (
            (pytest.approx(0.001), (0.5, 0.999)) if inside == {True} else (pytest.approx(0.01), (0.9, 0.999))
        )


def test_a_steep_discriminator_stops_the_generator_by_no_norm(task: Any, batch: Any) -> None:
    """Where the recipe clips, the generator's gradient is clipped by its own; where it does not, neither is."""
    for clip in (1.0, 0.0):
        it = task()
        it(batch(it, size=4), AT).total.backward()
        optimizer = build_optimizer(it, OptimConfig(lr=0.01, clip=clip))
        own = [each for each in it.discriminator.parameters() if each.grad is not None]
        rest = [each for part in (it.backbone, it.remaker) for each in part.parameters() if each.grad is not None]
        for parameters, factor in ((own, 1000), (rest, 0.001)):
            for parameter in parameters:
                parameter.grad *= factor
        before = [each.grad.clone() for each in rest]
        clip_gradients(optimizer, 0, torch.device("cpu"))
        steep = float(torch.nn.utils.get_total_norm([each.grad for each in own]))
        assert steep == pytest.approx(1.0, rel=1e-4) if clip else steep > 1
        assert all(torch.equal(each.grad, old) for each, old in zip(rest, before, strict=True))


# Holes


@pytest.mark.parametrize("shape", ["block", "center", "irregular"])
def test_holes_hide_the_share_that_is_asked_for_and_differ(shape: Any) -> None:
    holes = Holes(shape, 0.25, 64)
    drawn = holes.of_seeds(torch.arange(300))
    assert drawn.shape == (300, 1, 64, 64) and drawn.dtype == torch.bool
    shares = drawn.float().mean((1, 2, 3))
    assert (shares - 0.25).abs().max() < (0.025 if shape == "irregular" else 1 / 64)
    assert torch.equal(holes.of_seeds(torch.tensor([7, 7]))[1:], drawn[7:8])
    kinds = len({each.numpy().tobytes() for each in drawn})
    assert kinds == 1 if shape == "center" else kinds > 290
    if shape == "irregular":
        assert shares.min() >= 0.25
        return
    assert not (drawn[..., [0, -1], :].any() or drawn[..., [0, -1]].any()), "a border is seen on every side"
    rows, columns = drawn.any(3).sum((1, 2)), drawn.any(2).sum((1, 2))
    assert torch.equal(rows * columns, drawn.sum((1, 2, 3))), "one rectangle"
    ratio = rows / columns
    assert 0.45 < ratio.min() <= ratio.max() < 2.2
    where = drawn.float().mean(0)[0]
    assert torch.allclose(where, where.flip(0), atol=0.15) and torch.allclose(where, where.flip(1), atol=0.15)
    if shape == "center":
        assert drawn[0, 0, 16:48, 16:48].all()
    else:
        assert ratio.log().std() > 0.3 and where[32, 32] > where[4, 4] > 0


@pytest.mark.parametrize("shape", ["block", "center", "irregular"])
@pytest.mark.parametrize("size", [SMALLEST, 33])
@pytest.mark.parametrize("share", [LEAST, MOST])
def test_no_hole_is_all_or_nothing(shape: Any, size: int, share: float) -> None:
    drawn = Holes(shape, share, size).of_seeds(torch.arange(100))
    assert drawn.any((2, 3)).all() and around(drawn).any((2, 3)).all()
    assert drawn.float().mean((1, 2, 3)).max() <= share + 0.15
    assert border_mean(torch.rand(100, 3, size, size), drawn).isfinite().all()


# The remaker


@pytest.mark.parametrize("shape", ["block", "irregular"])
def test_fills_come_from_what_is_seen_and_leave_it_alone(task: Any, batch: Any, shape: str) -> None:
    """Of the network and of what it is compared with: another truth behind the hole changes nothing."""
    it = task(hole=shape)
    head = it.exports()["inpainting"]
    remaker = Remaker.of_head(head.kind, head.settings, head.tensors, it.backbone.model)
    pictures, seeds = batch(it, size=3)["image"], torch.tensor([3, 5, 9])
    model = it.backbone.model.eval()
    with torch.no_grad():
        given, made, judged = remaker.remake(model, pictures, seeds)
        secret = torch.where(judged, 255 - pictures, pictures)
        assert torch.equal(remaker.remake(model, secret, seeds).made[judged.expand_as(made)],
                           made[judged.expand_as(made)])  # fmt: skip
        whole = it.remaker(it.backbone.hidden({"image": given}))
    assert torch.equal(judged, it.remaker.holes.of_seeds(seeds))
    assert torch.equal(given, torch.where(judged, GREY, pictures))
    assert torch.equal(made, torch.where(judged, (whole * 127.5 + 127.5).round().to(torch.uint8), pictures))
    fills = remaker.simple(pictures, given, judged)
    assert len(fills) == 3
    for name, fill in fills.items():
        assert fill.dtype == torch.uint8 and torch.equal(torch.where(judged, pictures, fill), pictures)
        assert torch.equal(remaker.simple(secret, given, judged)[name], torch.where(judged, fill, secret)), name
        assert not torch.equal(fill, given)
    hole, border = judged[1, 0], around(judged)[1, 0]
    wanted = pictures[1][:, border].float().mean(1).round()
    assert torch.allclose(fills["mean of the visible border"][1][:, hole].float().mean(1), wanted, atol=1)
    assert remaker.caption().startswith("Given: all but ")


# Collapse, and what is refused


def test_both_collapses_are_named_in_words(task: Any, batch: Any) -> None:
    """A generator that paints one picture whatever it sees; a discriminator that says the same of everything, and one
    that is sure; and none of it before."""

    def said(it: Inpainting) -> dict[str, str]:
        spread = it(batch(it, size=8), AT).spread
        notes = CollapseWatch().observe(1, {f"spread/{name}": float(value) for name, value in spread.items()})
        return dict(note.split(": collapsed since step 1: ") for note in notes)

    healthy, generator, blunt, sure = (task() for _ in range(4))
    with torch.no_grad():
        generator.remaker.decoder.exit.weight.zero_()
        blunt.discriminator.layers[0].weight.zero_()
        sure.discriminator.judge.bias.fill_(9.0)
    assert said(healthy) == {}
    (words,) = said(generator).values()
    assert words.startswith("all samples are filled in nearly alike (spread 0.0") and "The generator has coll" in words
    assert "it sees nearly the same in every picture and every fill" in said(blunt)["discriminator"]
    assert "It has won, or says the same of everything: log D is saturated" in said(sure)["doubt"]


def test_the_spread_of_fills_is_that_of_their_deviations_in_parts_of_the_truths() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(64, 3, 16, 16, generator=generator)
    hidden = torch.rand(64, 1, 16, 16, generator=generator) < 0.4
    common = torch.randn(1, 3, 16, 16, generator=generator)
    for share in (0.0, 0.01, 0.25, 1.0, 4.0):
        found = gan.spread_of_fills(5 * common + share * truth, truth, hidden).item()
        assert found == pytest.approx(min(1, math.sqrt(share)), abs=1e-3)
    junk = torch.where(hidden, common.expand_as(truth), truth)  # what is not painted does not count
    assert gan.spread_of_fills(junk, truth, hidden).item() == pytest.approx(0, abs=1e-3)
    flat = torch.ones_like(truth)
    assert gan.spread_of_fills(truth, flat, hidden).item() == 1, "nothing to tell apart"


@pytest.mark.parametrize(
    ("fields", "size", "words"),
    [
        ({}, 4, "objective.backbone: .* has pictures of 4 pixels a side; allowed: at least 8, "),
        ({"overlap": 9}, 32, "objective.overlap: value 9; allowed: up to 8, a quarter"),
        ({"overlap_weight": 2.0}, 32, "objective.overlap_weight: value 2.0 has no effect with overlap 0; allowed: "),
        ({"share": 0.6}, 32, "share"),
        ({"share": 0.0}, 32, "share"),
        ({"hole": "all"}, 32, "hole"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    task: Any, fields: dict[str, Any], size: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"type": "vit", "size": size, "config": {"hidden_size": 16, "num_hidden_layers": 1, "patch_size": 4,
                                                     "num_attention_heads": 2, "intermediate_size": 16}}  # fmt: skip
    monkeypatch.setitem(Inpainting.preset, "backbones", {"image": small})
    with pytest.raises((ConfigError, ValueError), match=words) as caught:
        task(**fields)
    assert "\n" not in str(caught.value) or not isinstance(caught.value, ConfigError)
