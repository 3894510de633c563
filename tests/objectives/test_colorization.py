"""Colour from lightness: the loss in loops, its weights and blind line by what was seen before, and grey pictures."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pydantic import ValidationError

from bigssl.cli.main import main
from bigssl.data.sample import Sample
from bigssl.nets.progress import Progress
from bigssl.nets.remaking.base import Remaker
from bigssl.nets.remaking.colorization import colour_grid
from bigssl.objectives.colorization import Colorization

AT = Progress(0, 10)


def picture(pixels: np.ndarray) -> Sample:
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, "PNG")
    return Sample("x", {"png": out.getvalue()}, 0, 0, "", "x")


def test_the_loss_is_that_of_the_paper_beside_the_frequencies_of_the_passes_before(objective: Any, batch: Any) -> None:
    """Two passes, in loops in float64: bins, shares, weights by counts, and what who sees nothing would lose."""
    task = objective(Colorization, "colorization", bin=20)
    centres, said = colour_grid(20).astype(float), []
    task.painter.refine.register_forward_hook(lambda module, args, output: said.append(output.detach().double()))
    count = len(centres)
    seen, mass = np.zeros(count), np.zeros(count)
    kernel = np.exp(-((centres[:, None] - centres[None]) ** 2).sum(-1) / 50)
    kernel /= kernel.sum(0)
    for step in range(2):
        data = batch(task, size=3, step=step)
        losses = task(data, AT)
        frequencies = (seen + 1 / count) / (seen.sum() + 1)
        weights = 1 / (0.5 * kernel @ frequencies + 0.5 / count)
        weights /= (frequencies * weights).sum()
        expected = (mass + 1 / count) / (mass.sum() + 1)
        found, blind, new, more = [], [], np.zeros(count), np.zeros(count)
        for row in range(3):
            for y, x in np.ndindex(8, 8):
                squares = ((centres - data["colour"][row, :, y, x].numpy().astype(float)) ** 2).sum(1)
                nearest = np.argsort(squares, kind="stable")[:5]
                z = np.exp((squares[nearest[0]] - squares[nearest]) / 50)
                z /= z.sum()
                logits = said[step][row, :, y, x].numpy()
                log = logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())
                v = weights[nearest[0]]
                found.append(-v * (z * log[nearest]).sum())
                blind.append(-v * (z * np.log(expected[nearest])).sum())
                new[nearest[0]] += 1
                more[nearest] += v * z
        assert losses.total.item() == pytest.approx(np.mean(found), rel=1e-3)
        assert losses.blind.item() == pytest.approx(np.mean(blind), rel=1e-3)
        if step == 0:
            assert losses.blind.item() == pytest.approx(math.log(count), rel=1e-6)
        seen, mass = seen + new, mass + more
    assert task.counts.sum() == 2 * 3 * 64 == task.painter.seen[2] and losses.unit == "nats"


def test_a_regression_is_held_against_the_mean_colour(objective: Any, batch: Any) -> None:
    """In loops: that of the passes before; a decoder that says it has the blind line exactly."""
    task = objective(Colorization, "colorization", predict="regression")
    last, seen = task.painter.refine[-1], np.zeros((0, 2))
    torch.nn.init.zeros_(last.weight)
    for step in range(3):
        data = batch(task, size=5, step=step)
        colours = data["colour"].double().movedim(1, -1).reshape(-1, 2).numpy() / 110
        mean = seen.mean(0) if step else np.zeros(2)
        said = np.array([0.3, -0.2]) if step == 1 else mean
        last.bias.data = torch.tensor(said, dtype=torch.float32)
        losses = task(data, AT)
        assert losses.total.item() == pytest.approx(((colours - said) ** 2).sum(1).mean(), rel=1e-4)
        assert losses.blind.item() == pytest.approx(((colours - mean) ** 2).sum(1).mean(), rel=1e-4)
        seen = np.concatenate([seen, colours])
    with pytest.raises(ValidationError, match="uniform 0.3 has no effect with predict regression"):
        objective(Colorization, "colorization", predict="regression", uniform=0.3)


def test_lightness_is_shown_and_colour_asked_for_at_a_quarter(objective: Any) -> None:
    """Left half red, right half blue: bytes of L, and the ab of each."""
    task = objective(Colorization, "colorization", flip=False)
    pixels = np.zeros((32, 32, 3))
    pixels[:, :16, 0] = pixels[:, 16:, 2] = 255
    prepared = task.prepare(picture(pixels), np.random.default_rng(0), None)
    assert prepared["light"].shape == (1, 32, 32) and prepared["colour"].shape == (2, 8, 8)
    assert (prepared["light"][0, :, 2], prepared["light"][0, :, -2]) == (pytest.approx(136), pytest.approx(82))
    assert prepared["colour"][:, 3, 0].tolist() == [80, 67] and prepared["colour"][:, 3, 7].tolist() == [79, -108]


@pytest.mark.parametrize("predict", ["bins", "regression"])
def test_a_grey_picture_among_others_counts_for_nothing(objective: Any, batch: Any, predict: str) -> None:
    """Neither in the loss nor in what is remembered; of grey ones alone, the loss is 0, and so is its gradient."""

    def passed(data: dict[str, torch.Tensor]) -> tuple[Any, Any]:
        task = objective(Colorization, "colorization", predict=predict).eval().train()
        task.backbone.eval()  # whose BatchNorm sees all pictures
        losses = task(data, AT)
        losses.total.backward()
        return losses, task

    data = batch(objective(Colorization, "colorization"), size=4)
    mixed = {key: value.clone() for key, value in data.items()}
    mixed["colour"][2:] = torch.randint(-4, 5, mixed["colour"][2:].shape, dtype=torch.int8)
    (losses, task), (alone, other) = passed(mixed), passed({key: value[:2] for key, value in data.items()})
    assert losses.total.item() == pytest.approx(alone.total.item(), rel=1e-5)
    assert losses.blind.item() == pytest.approx(alone.blind.item(), rel=1e-5)
    assert losses.stats["grey"] == 0.5 and alone.stats["grey"] == 0
    for (name, one), (_, two) in zip(task.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(one, two), name
    none, still = passed(mixed | {"colour": mixed["colour"] * 0})
    assert none.total.item() == 0 and not any(p.grad.any() for p in still.parameters() if p.grad is not None)
    assert torch.isfinite(none.blind) and none.stats["grey"] == 1


def test_data_of_which_all_is_grey_are_refused_in_a_sentence(
    recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By `config check`, with what to do; with one picture in colour among them, they are not."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures" / "one"
    folder.mkdir(parents=True)
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(folder / f"{number}.png")

    def checked(name: str, *overrides: str) -> tuple[int, str]:
        if not (tmp_path / name).exists():
            assert main(["shards", "pack", str(tmp_path / "pictures"), str(tmp_path / name)]) == 0
        values = recipe("colorization", tmp_path / "run")
        values["data"]["sources"]["shards"]["url"] = str(tmp_path / name)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
        capsys.readouterr()
        return main(["config", "check", str(tmp_path / f"{name}.yaml"), *overrides]), capsys.readouterr().err

    code, said = checked("grey")
    assert code == 2 and len(said.strip().splitlines()) == 1
    assert "all 12 pictures that were looked at are grey: there is no colour to predict" in said and "shards" in said
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / "0.png")
    for seed in range(3):  # which of them are looked at first
        code, said = checked("mixed", f"seed={seed}")
        assert code == 0, said


def test_a_head_paints_pictures_that_keep_their_lightness(objective: Any, batch: Any) -> None:
    """From its settings and tensors alone; beside them, the grey picture, and the mean colour of the training."""
    task = objective(Colorization, "colorization").eval()
    task.train()(batch(task), AT)
    (head,) = task.exports().values()
    painter = Remaker.of_head(head.kind, head.settings, head.tensors, task.backbone.model)
    pictures = torch.randint(60, 200, (3, 3, 32, 32), dtype=torch.uint8)
    remade = painter.remake(task.backbone.model.eval(), pictures, torch.arange(3))
    assert remade.judged.all() and remade.judged.shape == (3, 1, 32, 32)
    assert torch.equal(remade.given[:, 0], remade.given[:, 1]) and not torch.equal(remade.made, remade.given)
    simple = painter.simple(pictures, remade.given, remade.judged)
    assert torch.equal(simple["grey"], remade.given) and len(simple) == 2
    told = (painter.seen[:2] / painter.seen[2]).tolist()
    colours = batch(task)["colour"].double().mean((0, 2, 3)).tolist()
    assert told == pytest.approx(colours, rel=1e-6) and painter.caption()
