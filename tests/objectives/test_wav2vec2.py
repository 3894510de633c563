"""wav2vec 2.0: the loss of transformers at equal weights, masks, noise and distractors; loops; what the export loads
as."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining
from transformers.models.wav2vec2 import modeling_wav2vec2

from bigssl.config.errors import ConfigError
from bigssl.data.loading.loader import SEEDS
from bigssl.nets.chance import noise
from bigssl.nets.chance.seeds import another
from bigssl.nets.modality import MODALITIES
from bigssl.nets.progress import Progress
from bigssl.nets.sound.distractors import cosines_within, distractors
from bigssl.objectives.base import discover, exported_heads
from bigssl.objectives.wav2vec2 import Wav2vec2

AT = Progress(30, 100)
KIND = discover()["wav2vec2"]


def transformers_model(task: Wav2vec2, folder: Path) -> Wav2Vec2ForPreTraining:
    """The exported files, put together as the head's docstring says, and loaded by transformers."""
    head = exported_heads(task)["wav2vec2"]
    head.write(folder / "head.safetensors")
    tensors = load_file(folder / "head.safetensors")
    tensors |= {f"wav2vec2.{name}": value for name, value in task.backbone.model.state_dict().items()}
    c = task.config
    config = Wav2Vec2Config(**task.backbone.model.config.to_dict() | {
        "num_codevector_groups": c.codebooks, "num_codevectors_per_group": c.words, "codevector_dim": c.code_dim,
        "proj_codevector_dim": c.dim, "contrastive_logits_temperature": c.temperature, "mask_time_prob": 0.5,
        "diversity_loss_weight": c.diversity, "num_negatives": c.distractors, "feat_quantizer_dropout": 0.0,
    })  # fmt: skip
    config.save_pretrained(folder)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    model, said = Wav2Vec2ForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    return model.train()


def drawn_distractors(batch: dict[str, Any], count: int) -> Tensor:
    """int64 [B, F, K] of B · F, as transformers wants them; 0 where nothing is hidden."""
    hidden = batch["hidden"]
    rows = hidden.flatten().nonzero().squeeze(1)
    found = torch.zeros(hidden.numel(), count, dtype=torch.int64)
    found[rows] = rows[distractors(hidden, rows, frame_seeds(batch)[rows], count)]
    return found.view(*hidden.shape, count)


def frame_seeds(batch: dict[str, Any]) -> Tensor:
    return another(batch[SEEDS][:, None], torch.arange(batch["hidden"].shape[1])).flatten()


@pytest.mark.parametrize("stable", [False, True])
def test_the_loss_is_that_of_transformers(
    stable: bool, objective: Any, batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = objective(KIND, "wav2vec2", diversity=0.3)
    if stable:  # norms before each layer, and in every convolution: the large models
        section = KIND.preset["backbones"]["audio"]
        stably = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
        monkeypatch.setitem(section, "config", section["config"] | stably)
        task = objective(KIND, "wav2vec2", diversity=0.3)
    data, c = batch(task, size=5), task.config
    for parameter in (task.codebooks.weight_proj.bias, task.token):
        torch.nn.init.normal_(parameter)
    model = transformers_model(task, tmp_path)
    gumbel = noise.gumbel(frame_seeds(data), "codes", c.codebooks * c.words).view(-1, c.words)  # [B · F · G, V]
    temperature = 2.0 * (0.5 / 2.0) ** 0.3

    def with_our_noise(logits: Tensor, tau: float, hard: bool) -> Tensor:
        soft = ((logits + gumbel) / tau).softmax(-1)
        return torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0) - soft.detach() + soft

    monkeypatch.setattr(modeling_wav2vec2.nn.functional, "gumbel_softmax", with_our_noise)
    model.set_gumbel_temperature(temperature)
    theirs = model(
        **MODALITIES["audio"].inputs(model, data), mask_time_indices=data["hidden"],
        sampled_negative_indices=drawn_distractors(data, c.distractors),
    )  # fmt: skip
    count = data["hidden"].sum()
    losses = task(data, AT)
    torch.testing.assert_close(losses.total, theirs.loss / count, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.parts["contrast"].total, theirs.contrastive_loss.detach() / count, rtol=1e-5,
                               atol=1e-5)  # fmt: skip
    torch.testing.assert_close(losses.stats["unused"], theirs.diversity_loss.detach() / count, rtol=1e-5, atol=1e-5)
    assert losses.stats["gumbel"].item() == pytest.approx(temperature)
    losses.total.backward()
    (theirs.loss / count).backward()
    mine = dict(task.named_parameters())
    pairs = {"quantizer.weight_proj.weight": "codebooks.weight_proj.weight", "quantizer.codevectors":
             "codebooks.codevectors", "project_q.weight": "project_q.weight", "wav2vec2.masked_spec_embed": "token",
             "wav2vec2.feature_extractor.conv_layers.0.conv.weight":
             "backbone.model.feature_extractor.conv_layers.0.conv.weight"}  # fmt: skip
    for name, own in pairs.items():
        other = model.get_parameter(name).grad
        scale = other.abs().max().item()
        torch.testing.assert_close(mine[own].grad, other, rtol=1e-4, atol=1e-5 * scale, msg=name)


def test_the_loss_in_loops(objective: Any, batch: Any) -> None:
    """Equation 3 of the paper, frame by frame, in float64; the blind line counts who is left."""
    task = objective(KIND, "wav2vec2", words=2, codebooks=1)  # few codes: many distractors are the same
    data = batch(task, size=3)
    kept: dict[str, Tensor] = {}
    task.project_hid.register_forward_hook(lambda m, a, out: kept.__setitem__("contexts", out.detach().double()))
    task.project_q.register_forward_hook(lambda m, a, out: kept.__setitem__("targets", out.detach().double()))
    task.codebooks.register_forward_hook(lambda m, a, out: kept.__setitem__("ids", out.ids))
    losses = task(data, AT)
    rows = data["hidden"].flatten().nonzero().squeeze(1)
    others = distractors(data["hidden"], rows, frame_seeds(data)[rows], task.config.distractors)
    each, left = [], []
    for n, (context, own) in enumerate(zip(kept["contexts"], kept["targets"], strict=True)):
        def likeness(target: Tensor, context: Tensor = context) -> float:
            return math.exp((context @ target / context.norm() / target.norm()).item() / task.config.temperature)

        against = [kept["targets"][m] for m in others[n] if kept["ids"][m] != kept["ids"][n]]
        each.append(-math.log(likeness(own) / (likeness(own) + sum(map(likeness, against)))))
        left.append(math.log(1 + len(against)))
    assert min(left) < max(left)
    assert losses.parts["contrast"].total.item() == pytest.approx(np.mean(each), rel=1e-5)
    assert float(losses.parts["contrast"].blind) == pytest.approx(np.mean(left), rel=1e-5)


def test_distractors_are_other_hidden_frames_of_the_sound_all_alike() -> None:
    hidden = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 1, 0]], dtype=torch.bool)
    rows = hidden.flatten().nonzero().squeeze(1)
    found = distractors(hidden, rows, torch.arange(len(rows)) * 7919, 3000)
    for n in range(4):
        counts = found[n].bincount(minlength=6)
        others = [m for m in range(4) if m != n]
        assert counts[n] == 0 and counts[4:].sum() == 0
        assert all(abs(counts[m] - 1000) < 150 for m in others)
    assert (found[4] == 5).all() and (found[5] == 4).all()


def test_of_too_few_frames_nothing_can_be_hidden(objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KIND.preset["backbones"]["audio"], "length", 700)
    with pytest.raises(ConfigError, match=r"backbones.audio.length: value 700, 2 frames; allowed: >= 965, 3 frames"):
        objective(KIND, "wav2vec2")


def test_cosines_are_exact_in_half_precision() -> None:
    hidden = torch.ones(2, 6, dtype=torch.bool)
    contexts, targets = torch.randn(2, 12, 32, generator=torch.Generator().manual_seed(0))
    rows, others = torch.arange(12), torch.tensor([[(n + 1) % 6 + n // 6 * 6] for n in range(12)])
    with torch.autocast("cpu", torch.bfloat16):
        found = cosines_within(contexts, targets, hidden, rows, others, 6)
    expected = torch.stack([torch.cosine_similarity(contexts, targets),
                            torch.cosine_similarity(contexts, targets[others[:, 0]])], 1)  # fmt: skip
    torch.testing.assert_close(found, expected)
