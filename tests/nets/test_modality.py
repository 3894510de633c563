"""A tiny tower of each modality trains, exports, and gives in plain transformers the features that evaluation sees."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from scipy.signal import resample_poly
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    Wav2Vec2Config,
)

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig, Recipe
from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.loading.collate import collate
from bigssl.data.sample import Sample
from bigssl.engine import zero
from bigssl.engine.optim import build_optimizer
from bigssl.engine.plan.activations import everything_sample
from bigssl.nets.chance import dropout
from bigssl.nets.chance.seeds import another
from bigssl.nets.modality import MODALITIES
from bigssl.nets.modality.stretches import features_in_parts, stretch_count
from bigssl.nets.pool import mean_of
from bigssl.nets.towers import Tower, hf_config
from bigssl.nets.weightless import feature_size
from bigssl.objectives.clip import Clip
from bigssl.objectives.mlm import Mlm
from bigssl.objectives.needs import Needs
from bigssl.transfer.inputs import INPUTS, exported_input, input_of
from bigssl.transfer.leaving.export import export_run

DEMO = str(Path(__file__).parents[2] / "bigssl" / "demo" / "tokenizer.json")
WORDS = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
         "max_position_embeddings": 24}  # fmt: skip
SOUND = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
         "conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_conv_pos_embeddings": 4,
         "num_conv_pos_embedding_groups": 2}  # fmt: skip
SERIES = {"d_model": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32, "patch_length": 5,
          "patch_stride": 4}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 24}
TINY = {
    "vit": BackboneConfig(type="vit", size=32, config=WORDS | {"patch_size": 8}),
    "convnext": BackboneConfig(type="convnext", size=32, config={"hidden_sizes": [8, 16], "depths": [1, 1],
                                                                "num_stages": 2}),
    "modernbert": BackboneConfig(type="modernbert", tokenizer=DEMO, length=16, config=WORDS),
    "gpt2": BackboneConfig(type="gpt2", tokenizer="", length=16, config=GPT2),
    "patchtst": BackboneConfig(type="patchtst", channels=3, length=22, config=SERIES),
    "wav2vec2": BackboneConfig(type="wav2vec2", rate=8000, length=600, config=SOUND),
}  # fmt: skip
TINY["vit"].config.pop("max_position_embeddings")


@pytest.fixture(scope="module")
def bytes_only(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokenizer as decoders have them: bytes, and no token that stands for anything else."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


@pytest.fixture
def make(bytes_only: str) -> Callable[..., Tower]:
    def build(kind: str, **changes: Any) -> Tower:
        section = TINY[kind].model_copy(update=changes)
        if section.tokenizer == "":
            section = section.model_copy(update={"tokenizer": bytes_only})
        torch.manual_seed(0)
        return Tower("net", section, load_tokenizer(section.tokenizer) if section.tokenizer is not None else None)

    return build


def picture(rng: np.random.Generator) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(out, "png")
    return out.getvalue()


def series(rng: np.random.Generator, steps: int) -> bytes:
    values = rng.standard_normal((steps, 3)).cumsum(0).astype(np.float32)
    values[4:7, 1] = np.nan
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def sound(rng: np.random.Generator, steps: int) -> bytes:
    """Two channels at twice the rate of the network."""
    out = io.BytesIO()
    wave = rng.standard_normal((steps, 2)).cumsum(0)
    soundfile.write(out, 0.5 * wave / np.abs(wave).max(), 16_000, format="WAV", subtype="FLOAT")
    return out.getvalue()


def sample(number: int) -> Sample:
    """One of everything; of odd numbers, all is shorter than what the networks take."""
    rng, short = np.random.default_rng(number), number % 2
    fields = {
        "png": picture(rng), "npy": series(rng, 15 if short else 30), "wav": sound(rng, 500 if short else 3000),
        "txt": b"a cat" if short else b"%d is the state of the union, and long enough" % number,
    }  # fmt: skip
    return Sample(f"s{number}", fields, number, 0, "x.tar", "t")


def batch_of(tower: Tower, numbers: range) -> dict[str, Tensor]:
    taken = input_of(tower)
    found: dict[str, Tensor] = collate([taken.view(sample(number)) for number in numbers])
    return found


def alone(tower_folder: Path, model: PreTrainedModel, one: Sample) -> Tensor:
    """Features [D] as a user of the export would make them: transformers, numpy and what the model card says."""
    kind = model.config.model_type
    with torch.no_grad():
        if kind in ("vit", "convnext"):
            loaded = AutoImageProcessor.from_pretrained(tower_folder)
            hidden = model(**loaded(Image.open(io.BytesIO(one.fields["png"])), return_tensors="pt")).last_hidden_state
            return hidden[0, 1:].mean(0) if kind == "vit" else hidden[0].mean((1, 2))
        if kind in ("gpt2", "modernbert"):
            words = AutoTokenizer.from_pretrained(tower_folder)
            ids = words(one.fields["txt"].decode(), truncation=True, return_tensors="pt")["input_ids"]
            return model(input_ids=ids).last_hidden_state[0].mean(0)
        if kind == "wav2vec2":
            return _sound_alone(tower_folder, model, one)
        settings = json.loads((tower_folder / "preprocessor_config.json").read_text())
        values = np.load(io.BytesIO(one.fields["npy"]))[: settings["length"]]
        behind = ((0, settings["length"] - len(values)), (0, 0))
        seen = np.pad(np.isfinite(values), behind)
        assert settings["padding_value"] == "mean"
        values = np.where(seen, np.pad(values, behind), np.nanmean(values, 0)).astype(np.float32)
        given = {"past_values": torch.from_numpy(values)[None], "past_observed_mask": torch.from_numpy(seen)[None]}
        hidden = model(**given).last_hidden_state[0]  # [C, patches, D]
        # patches of 5 at every 4th step; the first of 22 steps is in none
        counting = [(c, p) for c in range(3) for p in range(5) if seen[1 + 4 * p : 6 + 4 * p, c].any()]
        return torch.stack([hidden[c, p] for c, p in counting]).mean(0)


def _sound_alone(folder: Path, model: PreTrainedModel, one: Sample) -> Tensor:
    loaded = AutoFeatureExtractor.from_pretrained(folder)
    values, rate = soundfile.read(io.BytesIO(one.fields["wav"]), dtype="float32")
    wave = resample_poly(values.mean(1), loaded.sampling_rate, rate)
    given = loaded(wave, sampling_rate=loaded.sampling_rate, max_length=loaded.max_length, truncation=True,
                   padding="max_length", return_tensors="pt")  # fmt: skip
    hidden = model(**given).last_hidden_state[0]
    frames = int(model._get_feat_extract_output_lengths(given["attention_mask"].sum()))
    return hidden[:frames].mean(0)


def trained(tower: Tower, batch: dict[str, Tensor]) -> Iterator[float]:
    """Losses of a regression on random numbers by a linear head, dropout on."""
    target, seeds = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.arange(6)
    head = torch.nn.Linear(tower.dim, 4)
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=3e-3)
    for step in range(40):
        with dropout.seeded(another(seeds, step)):
            hidden, features = tower.hidden(batch), tower.features(batch)
        assert hidden.dim() == 3 and hidden.shape[::2] == (6, tower.dim) and features.shape == (6, tower.dim)
        loss = (head(features) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()


@pytest.mark.parametrize("kind", TINY)
def test_a_tower_trains_exports_and_loads_in_plain_transformers(
    kind: str, make: Callable[..., Tower], tmp_path: Path
) -> None:
    tower = make(kind)
    dropout.by_sample(tower)
    batch = batch_of(tower, range(6))
    losses = list(trained(tower, batch))
    assert losses[-1] < 0.5 * losses[0], losses
    export_run(tmp_path, {"net": tower.model}, {"net": input_of(tower)}, {}, {"objective": kind})
    folder = tmp_path / "export" / "net"
    again = AutoModel.from_pretrained(folder).eval()
    assert input_of(tower).described in (tmp_path / "export" / "README.md").read_text()
    with torch.no_grad():
        ours = tower.eval().features(batch)
    plain = torch.stack([alone(folder, again, sample(number)) for number in range(6)])
    torch.testing.assert_close(plain, ours, rtol=1e-4, atol=2e-5)
    assert (ours[0] - ours[1]).abs().max() > 1e-2
    taken = exported_input(folder)
    assert {name: value.tolist() for name, value in taken.view(sample(1)).items()} == {
        name: value.tolist() for name, value in input_of(tower).view(sample(1)).items()
    }


@pytest.mark.parametrize("kind", TINY)
def test_the_raw_baseline_sees_the_sample_and_nothing_else(kind: str, make: Callable[..., Tower]) -> None:
    tower = make(kind)
    taken = input_of(tower)
    raws, alone = taken.raws(batch_of(tower, range(3))), taken.raws(batch_of(tower, range(1, 2)))
    if taken.once:  # an evaluation makes them of all samples
        assert raws == {} and taken.bags()
        return
    assert raws and not taken.bags() and list(raws) == list(alone)
    for name, raw in raws.items():
        assert raw.dim() == 2 and len(raw) == 3 and raw.float().isfinite().all(), name
        assert not torch.equal(raw[0], raw[2]) and torch.equal(raw[1], alone[name][0]), name


@pytest.mark.parametrize("kind", TINY)
def test_a_twin_has_equal_weights_of_its_own(kind: str, make: Callable[..., Tower]) -> None:
    tower = make(kind).eval()
    twin, batch = tower.twin(), batch_of(tower, range(2))
    with torch.no_grad():
        before, weights = tower.features(batch), [each.clone() for each in twin.parameters()]
        assert all(map(torch.equal, weights, tower.parameters()))
        assert torch.allclose(twin.features(batch), before, rtol=1e-5, atol=1e-6)  # products round by alignment
        for parameter in tower.parameters():
            parameter.add_(0.1)
        assert all(map(torch.equal, weights, twin.parameters()))
        assert torch.allclose(twin.features(batch), before, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(tower.features(batch), before, atol=1e-3)
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    if tower.modality == "text":
        assert twin.tokenizer is tower.tokenizer


def test_a_network_is_measured_without_its_memory(make: Callable[..., Tower], monkeypatch: pytest.MonkeyPatch) -> None:
    """7 B parameters in float32 would be 28 GB; the others show that no modality looks at numbers on the way."""

    def refuse(**_: object) -> None:
        raise AssertionError("a pass with numbers")

    monkeypatch.setattr("bigssl.nets.weightless.torch.random.fork_rng", refuse)
    for kind in TINY:
        make(kind)
    row, section = MODALITIES["text"], BackboneConfig(type="llama", tokenizer=DEMO, length=16)
    tokenizer = load_tokenizer(DEMO)
    dim = feature_size(
        "x", hf_config("x", section, tokenizer), lambda: row.trial(section, tokenizer),
        lambda model, inputs: mean_of(*row.run(model, inputs)), lambda _: None,
    )  # fmt: skip
    assert dim == 4096


def test_tasks_refuse_what_they_cannot_use_and_name_what_they_can(make: Callable[..., Tower]) -> None:
    towers = {"pictures": make("vit"), "words": make("modernbert"), "decoder": make("gpt2"), "sound": make("wav2vec2")}
    assert Needs("text").pick(towers, "decoder", "x") is towers["decoder"]
    assert Needs("text", sees="before").pick(towers, "decoder", "x") is towers["decoder"]
    for name, modality, options, said in [
        ("sound", "image", {}, "backbone 'sound': it is not an image backbone (with size), but takes sounds; allowed: "
                               "pictures"),
        ("picture", "image", {}, "backbone 'picture': there is none; allowed: pictures; nearest: pictures"),
        ("words", "series", {}, "it is not a series backbone (with channels and length), but takes tokens; allowed: a "
                                "series backbone (with channels and length), of which there is none that fits"),
        ("decoder", "text", {"sees": "both"}, "it is of type gpt2, in which each token sees those before it only; "
                                              "allowed: words"),
        ("words", "text", {"sees": "before"}, "it is of type modernbert, in which each token sees both its sides"),
        ("decoder", "text", {"tokens": ["mask_token"]}, "its tokenizer has no mask_token ("),
    ]:  # fmt: skip
        with pytest.raises(ConfigError) as caught:
            Needs(modality, **options).pick(towers, name, "objective.backbone")
        assert str(caught.value).startswith("objective.backbone: backbone ") and said in str(caught.value)
    with pytest.raises(ConfigError, match="each token sees those before it only"):
        Mlm(Mlm.Config(source="t", backbone="decoder"), towers)
    with pytest.raises(ConfigError, match="each token sees those before it only"):
        Clip(Clip.Config(source="t", image="pictures", text="decoder"), towers)


def test_masked_language_models_need_a_tokenizer_with_a_mask(make: Callable[..., Tower], bytes_only: str) -> None:
    tower = make("modernbert", tokenizer=bytes_only)
    assert tower.features(batch_of(tower, range(2))).isfinite().all()  # a tower does not
    assert tower.model.config.pad_token_id is None and tower.model.config.cls_token_id is None
    with pytest.raises(ConfigError, match="its tokenizer has no mask_token, pad_token, cls_token, sep_token \\("):
        Mlm(Mlm.Config(source="t", backbone="net"), {"net": tower})


def test_views_that_cannot_be_are_named(make: Callable[..., Tower]) -> None:
    one = sample(0)
    taken = input_of(make("patchtst", channels=2))
    with pytest.raises(DataError, match="shard x.tar, sample 's0': series of 3 channels; this backbone takes 2"):
        taken.view(one)
    out = io.BytesIO()
    np.save(out, np.full((5, 2), np.nan))
    with pytest.raises(DataError, match="series without a finite value in its first 22 steps"):
        taken.view(one._replace(fields={"npy": out.getvalue()}))
    with pytest.raises(DataError, match="'s0': no field flac or wav or ogg; it has txt"):
        input_of(make("wav2vec2")).view(one._replace(fields={"txt": b"a"}))
    with pytest.raises(RuntimeError, match="a series backbone .* takes 'series' from a batch; it holds image"):
        make("patchtst").features({"image": torch.zeros(1)})


def test_what_a_mask_hides_does_not_count(make: Callable[..., Tower]) -> None:
    for kind, name in (("patchtst", "series"), ("wav2vec2", "audio"), ("gpt2", "input_ids")):
        tower = make(kind).eval()
        batch = batch_of(tower, range(1, 2))  # the short one
        mask = batch[str(MODALITIES[tower.modality].mask)].bool()
        assert 0 < mask.float().mean() < 1
        hidden = torch.full_like(batch[name], float("nan") if kind == "patchtst" else 7)
        other = batch | {name: batch[name].where(mask, hidden)}
        with torch.no_grad():
            torch.testing.assert_close(tower.features(other), tower.features(batch), rtol=1e-4, atol=1e-5)


def test_a_pretrained_network_hides_nothing_at_random(make: Callable[..., Tower], tmp_path: Path) -> None:
    quiet = dict.fromkeys(["hidden_dropout", "activation_dropout", "attention_dropout"], 0.0)
    loud = Wav2Vec2Config(**SOUND, **quiet, layerdrop=0.5, mask_time_prob=0.5, mask_time_length=4)
    AutoModel.from_config(loud).save_pretrained(tmp_path)
    tower = make("wav2vec2", init_from=str(tmp_path), config={}).eval()
    batch = batch_of(tower, range(2))
    with torch.no_grad():
        torch.testing.assert_close(tower.train().features(batch), tower.eval().features(batch), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="backbones.net: length 22 and channels 2; allowed: length 22 and channels 3"):
        make("patchtst").model.save_pretrained(tmp_path / "series")
        make("patchtst", init_from=str(tmp_path / "series"), config={}, channels=2)


def test_gaps_of_series_have_the_mean_of_their_channel(make: Callable[..., Tower]) -> None:
    """On any level: what a network sees of a series does not depend on where its zero is."""
    tower = make("patchtst").eval()
    batch = batch_of(tower, range(2))
    mask = batch["series_mask"]
    assert not mask.all()
    lifted = batch | {"series": batch["series"] + 300}
    with torch.no_grad():
        torch.testing.assert_close(tower.features(lifted), tower.features(batch), rtol=1e-3, atol=1e-4)
    given = MODALITIES["series"].inputs(tower.model, batch)["past_values"]
    for row, channel in ((0, 0), (1, 2)):
        seen = mask[row, :, channel]
        known = batch["series"][row, seen, channel]
        assert torch.equal(given[row, seen, channel], known)
        torch.testing.assert_close(given[row, ~seen, channel], known.mean().expand((~seen).sum()))


@pytest.mark.parametrize("kind", ["patchtst", "wav2vec2"])
def test_features_of_stretches_are_means_of_what_was_observed_then(kind: str, make: Callable[..., Tower]) -> None:
    """Of a series channel by channel, gaps left out; of a sound, of what is heard of it."""
    tower, parts = make(kind).eval(), 3
    batch = batch_of(tower, range(2))
    with torch.no_grad():
        got = features_in_parts(tower.model, batch, parts)
        hidden, seen = (part for part in MODALITIES[tower.modality].run(
            tower.model, MODALITIES[tower.modality].inputs(tower.model, batch)))  # fmt: skip
    assert seen is not None and not seen.bool().all()
    channels = 3 if kind == "patchtst" else 1
    assert got.shape == (2, stretch_count(tower.model, parts) * tower.dim) == (2, channels * parts * tower.dim)
    for row in range(2):
        means = []
        for tokens, known in zip(hidden[row].chunk(channels), seen[row].bool().chunk(channels), strict=True):
            count = len(tokens) if kind == "patchtst" else int(known.sum())
            for part in range(parts):
                here = slice(part * count // parts, -(-(part + 1) * count // parts))
                means.append(tokens[here][known[here]].mean(0) if known[here].any() else torch.zeros(tower.dim))
        torch.testing.assert_close(got[row], torch.cat(means), rtol=1e-4, atol=1e-5)


def test_class_tokens_are_no_hidden_states(make: Callable[..., Tower]) -> None:
    tower = make("patchtst", config=SERIES | {"use_cls_token": True}).eval()
    batch = batch_of(tower, range(2))
    with torch.no_grad():
        found = tower.model(**MODALITIES["series"].inputs(tower.model, batch)).last_hidden_state
        assert found.shape == (2, 3, 6, 16)  # [B, channels, class token and patches, D]
        torch.testing.assert_close(tower.hidden(batch), found[:, :, 1:].reshape(2, 15, 16))


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_row_has_what_belongs_to_it(modality: str) -> None:
    """What docs/extend.md lists, each by the place where it is missing."""
    row = MODALITIES[modality]
    assert INPUTS.keys() <= MODALITIES.keys() and row.name == modality
    assert modality in INPUTS, f"bigssl/transfer/inputs/table.py: INPUTS has no {modality!r}"
    assert modality in decode.FIELDS, f"bigssl/data/kinds/decode.py: FIELDS has no {modality!r}"
    lacking = row.fields.keys() - BackboneConfig.model_fields.keys()
    assert not lacking, f"bigssl/config/recipe.py: BackboneConfig has no field {lacking}"
    taken = row.fields.keys() & {next(iter(other.fields)) for other in MODALITIES.values() if other is not row}
    assert not taken, f"bigssl/nets/modality/table.py: by {taken}, a backbone of {modality!r} would be of another row"
    assert any(kind in row.kinds for kind in TINY), f"tests/nets/test_modality.py: TINY has no network of {modality!r}"


def test_the_sample_of_a_plan_fills_every_window(make: Callable[..., Tower]) -> None:
    towers = [make(kind) for kind in TINY]
    made_up = everything_sample("t", towers)
    for tower in towers:
        view = input_of(tower).view(made_up)
        row = MODALITIES[tower.modality]
        assert set(view) == {row.batch, row.mask} - {None}
        assert row.mask is None or view[row.mask].all(), tower.modality


class Regression(torch.nn.Module):
    """A tower and a head; the loss is a mean, so that ranks' means add up."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower, self.head = dropout.by_sample(tower), torch.nn.Linear(tower.dim, 4)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        target = torch.sin(batch["seeds"][:, None] * torch.arange(1, 5))
        with dropout.seeded(batch["seeds"]):
            loss: Tensor = (self.head(self.tower.features(batch)) - target).square().mean()
        return loss


def regression(tower: Tower, samples: int = 6) -> tuple[Regression, dict[str, Tensor], Recipe]:
    recipe = Recipe.model_validate({
        "name": "towers", "steps": 4, "objective": {}, "backbones": {"unused": {"type": "resnet"}},
        "data": {"sources": {}}, "batch": {"size": samples}, "optim": {"lr": 0.003},
        "zero": {"stage": 3, "options": {"stage3_param_persistence_threshold": 0}},
    })  # fmt: skip
    return Regression(tower), batch_of(tower, range(samples)) | {"seeds": torch.arange(samples)}, recipe


def in_slices(make: Callable[..., Tower], kinds: list[str]) -> dict[str, tuple[list[float], dict[str, Tensor]]]:
    zero.start()
    rank, found = torch.distributed.get_rank(), {}
    for kind in kinds:
        module, batch, recipe = regression(make(kind))
        optimizer = build_optimizer(module, recipe.optim)
        engine = zero.Engine(module, optimizer, recipe, micro=3, accum=1, bf16=False)
        losses = []
        for _ in range(4):
            loss = engine({name: value[3 * rank : 3 * rank + 3] for name, value in batch.items()})
            engine.backward(loss)
            engine.step()
            total = loss.detach().clone()
            torch.distributed.all_reduce(total)
            losses.append(total.item() / 2)
        found[kind] = losses, zero.full_state(module)
    return found


@pytest.mark.distributed
def test_towers_train_on_two_ranks_at_zero_3_as_on_one(make: Callable[..., Tower], ranks: Any) -> None:
    kinds = ["gpt2", "patchtst", "wav2vec2"]  # the others are those of the objectives' contract
    found, _ = ranks(in_slices, 2, make, kinds)
    for kind in kinds:
        module, batch, recipe = regression(make(kind))
        optimizer = build_optimizer(module, recipe.optim)
        losses = []
        for _ in range(4):
            loss = module(batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.optim.clip)
            optimizer.step()
            losses.append(loss.item())
        assert found[kind][0] == pytest.approx(losses, rel=2e-4), kind
        assert losses[-1] < losses[0], kind
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(found[kind][1][name], tensor, rtol=1e-3, atol=1e-4, msg=f"{kind} {name}")
