"""Evaluations take a backbone of any modality: series and sounds, against loops, on paper and while it trains."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from transformers import AutoModel

from bigssl.config.errors import ConfigError
from bigssl.config.evaluate import Evaluation
from bigssl.config.recipe import BackboneConfig
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.engine.plan.evaluation import Checked
from bigssl.nets.embeddings.health import rankme
from bigssl.nets.norm import has_batch_norm
from bigssl.nets.towers import Tower
from bigssl.transfer import raw, subjects
from bigssl.transfer.baselines import random_network
from bigssl.transfer.collapse import feature_std
from bigssl.transfer.cosines import Centred
from bigssl.transfer.discovery import evaluation_union
from bigssl.transfer.features import embed, read_samples, view_batches
from bigssl.transfer.inputs import Input, input_of
from bigssl.transfer.knn import stored_knn
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.matrix import HeldPart, Matrix
from bigssl.transfer.probe import LiveProbe
from bigssl.transfer.scorecard import score
from bigssl.transfer.subjects import CALIBRATION_BATCHES, Live, Subject
from bigssl.transfer.team import Team

parse: Callable[[Any], dict[str, Evaluation]] = TypeAdapter(dict[str, evaluation_union()]).validate_python
BATCH, K = 7, 3
RAWS = {"series": ["raw values", "raw values at equal scale"],
        "audio": ["log power spectrum", "log power spectrum at equal loudness", "MFCC of 10 parts"]}
TINY = {
    "patchtst": BackboneConfig(type="patchtst", channels=2, length=20, config={
        "d_model": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32, "patch_length": 5,
        "patch_stride": 5}),
    "wav2vec2": BackboneConfig(type="wav2vec2", rate=4000, length=900, config={
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        "conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2}),
}  # fmt: skip


def wave(number: int) -> dict[str, bytes]:
    """One second of a tone, as a sound of 8 kHz and as a series of two channels; low or high in noise."""
    rng, high = np.random.default_rng(number), number % 2
    series = np.stack([np.sin(np.arange(25) * (0.3 + 0.9 * high) + shift) for shift in rng.random(2)], 1)
    series = (series + 0.8 * rng.standard_normal(series.shape)).astype(np.float32)
    series[3 : 5, 0] = np.nan
    sound = np.sin(np.arange(2000 + 200 * (number % 3)) * (0.2 + 0.5 * high)) + 0.8 * rng.standard_normal(
        2000 + 200 * (number % 3))
    npy, wav = io.BytesIO(), io.BytesIO()
    np.save(npy, series[: 25 - 10 * (number % 3 == 2)])
    soundfile.write(wav, 0.2 * sound, 8000, format="WAV", subtype="FLOAT")
    meta = {"pitch": "high" if high else "low", "item": str(number // 2)}
    return {"npy": npy.getvalue(), "wav": wav.getvalue(), "json": json.dumps(meta).encode()}


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("waves")
    for name, numbers in (("train", range(30)), ("val", range(30, 47))):
        pack([Item(f"w{n:03d}", f"w{n:03d}", lambda n=n: wave(n)) for n in numbers], folder / name, name="x")
    return folder


def tower_of(kind: str) -> Tower:
    torch.manual_seed(3)
    tower = Tower("net", TINY[kind], None)
    with torch.no_grad():
        for value in tower.model.state_dict().values():  # nothing stays at its default
            if value.is_floating_point():
                value.add_(0.05 * torch.rand(value.shape))
    return tower


def asked(waves: Path, **changes: Any) -> dict[str, Evaluation]:
    section = {"task": "knn", "backbone": "net", "bank": str(waves / "train"), "queries": str(waves / "val"),
               "label": "pitch", "k": K, "batch": BATCH}  # fmt: skip
    return parse({"near": section | changes})


def rows(tower: Tower, folder: Path, encode: Callable[[dict[str, Tensor]], Tensor]) -> tuple[Tensor, list[str]]:
    """What is made of each sample alone, and its label."""
    taken, found, labels = input_of(tower), [], []
    for sample in read_in_order(DatasetIndex.load(folder)):
        with torch.no_grad():
            found.append(encode({n: torch.from_numpy(each)[None] for n, each in taken.view(sample).items()})[0])
        labels.append(json.loads(sample.fields["json"])["pitch"])
    return torch.stack(found).double(), labels


def raw_of(taken: Input, name: str) -> Callable[[dict[str, Tensor]], Tensor]:
    return lambda batch: taken.raws(batch)[name]


def right_share(tower: Tower, waves: Path, encode: Callable[[dict[str, Tensor]], Tensor]) -> float:
    (bank, known), (queries, wanted) = (rows(tower, waves / part, encode) for part in ("train", "val"))
    mean, right = bank.mean(0), 0
    for row, label in zip(queries, wanted, strict=True):
        cosines = torch.cosine_similarity(bank - mean, (row - mean)[None])
        votes: dict[str, float] = {}
        for value, at in zip(*(part.tolist() for part in cosines.topk(K)), strict=True):
            votes[known[at]] = votes.get(known[at], 0.0) + np.exp(value / 0.07)
        right += max(sorted(votes), key=lambda each: votes[each]) == label
    return right / len(wanted)


def calibrated(tower: Tower, waves: Path, seed: int) -> nn.Module:
    """A random network whose BatchNorm has the mean over batches of what goes into it: by hooks of our own."""
    model = random_network(tower.model.config, seed)
    batches = list(view_batches(read_samples(DatasetIndex.load(waves / "train"), CALIBRATION_BATCHES * BATCH),
                                input_of(tower), batch=BATCH))  # fmt: skip
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {norm: [] for norm in norms}
    for norm in norms:
        norm.train().momentum = 0.0
        norm.register_forward_pre_hook(
            lambda norm, given: seen[norm].append((given[0].mean((0, 2)), given[0].transpose(0, 1).flatten(1).var(1))))
    with torch.no_grad():
        for batch in batches:
            embed(model, batch.arrays)
        for norm, found in seen.items():
            norm.eval()
            for name, values in zip(("running_mean", "running_var"), zip(*found, strict=True), strict=True):
                getattr(norm, name).copy_(torch.stack(values).mean(0))
    return model


@pytest.mark.parametrize("parts", [None, 3])
@pytest.mark.parametrize("kind", TINY)
def test_a_backbone_of_any_modality_is_judged_and_probed(
    kind: str, parts: int | None, waves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = tower_of(kind)
    taken, sections = input_of(tower), asked(waves, item="item", parts=parts)
    export_run(tmp_path, {"net": tower.model}, {"net": taken}, {}, {})
    counted: list[int] = []
    calibrate = subjects.calibrate_batch_norm
    monkeypatch.setattr(subjects, "calibrate_batch_norm", lambda *given: counted.append(calibrate(*given)))
    card = score(tmp_path, sections, seed=5)
    row = card["tasks"]["near"]
    assert counted == ([5] if kind == "patchtst" else []) and has_batch_norm(tower.model) == bool(counted)
    model = AutoModel.from_pretrained(tmp_path / "export" / "net").eval()
    twin = calibrated(tower, waves, 5)
    for name, network in (("trained", model), ("random_net", twin)):
        encode = partial(embed, network, parts=parts)
        assert row[name] == pytest.approx(right_share(tower, waves, encode)), name
        features = rows(tower, waves / "train", encode)[0]  # real numbers, which no two networks share
        health = {"std": feature_std(features), "rankme": rankme(features), "samples": 30, "of": min(features.shape)}
        found = card["health"]["net"][name]
        assert {measure: found[measure] for measure in health} == pytest.approx(health, rel=1e-4)
        assert all(0 <= found[measure] <= 1 for measure in ("span", "uniform", "spread"))
    raws = {name: right_share(tower, waves, raw_of(taken, name)) for name in RAWS[tower.modality]}
    assert row["raws"] == pytest.approx(raws) and row["raw"] == max(row["raws"].values())
    assert row["raws"][row["raw_name"]] == row["raw"] and row["title"] == f"{tower.modality} kNN: pitch"
    for name in raws:
        features = rows(tower, waves / "train", raw_of(taken, name))[0]
        assert card["health"]["net"][name]["rankme"] == pytest.approx(rankme(features), rel=1e-4)
    assert f"unseen {taken.plural} get the right pitch of 2" in row["sentence"]
    live = Live([Subject("net", {"trained": tower.model.train()}, taken, tower.dim)])
    probe = LiveProbe(sections, live, team=Team(), seed=5, device="cpu")
    probe.prepare()
    found = probe()
    assert found["probe/near"] == pytest.approx(row["trained"]) and tower.model.training
    assert found["health/net/std"] == pytest.approx(card["health"]["net"]["trained"]["std"], rel=1e-4)


def test_stretches_of_time_tell_an_order_that_their_mean_does_not(tmp_path: Path) -> None:
    """By the linear probe: the same values, once in the first and once in the second half of a series."""
    def burst(number: int) -> dict[str, bytes]:
        series = 0.01 * np.random.default_rng(number).standard_normal((20, 2)).astype(np.float32)
        series[5 * (number % 4) : 5 * (number % 4) + 5] += np.sin(np.arange(5))[:, None].astype(np.float32)
        npy = io.BytesIO()
        np.save(npy, series)
        return {"npy": npy.getvalue(), "json": json.dumps({"half": "early" if number % 4 < 2 else "late"}).encode()}

    for part, numbers in (("train", range(40)), ("val", range(40, 80))):
        pack([Item(f"b{n:03d}", f"b{n:03d}", lambda n=n: burst(n)) for n in numbers], tmp_path / part, name="x")
    tower = tower_of("patchtst")
    model = tower.model
    with torch.no_grad():  # a patch is all that its state tells of: without this a position would tell the order
        model.encoder.positional_encoder.position_enc.zero_()
    export_run(tmp_path, {"net": model}, {"net": input_of(tower)}, {}, {})
    section = {"task": "linear", "backbone": "net", "train": str(tmp_path / "train"), "queries": str(tmp_path / "val"),
               "label": "half", "fractions": [1.0], "seeds": 2}  # fmt: skip
    card = score(tmp_path, parse({"mean": section, "parts": section | {"parts": 4}}), seed=0)["tasks"]
    assert card["mean"]["trained"] < 0.7 and card["parts"]["trained"] == 1.0
    assert card["parts"]["random_net"] > 0.9 and card["mean"]["raws"] == card["parts"]["raws"]


def test_what_a_backbone_of_another_modality_is_judged_on_is_looked_into_before(waves: Path, tmp_path: Path) -> None:
    towers = {"net": tower_of("patchtst"), "ear": tower_of("wav2vec2")}

    def check(**changes: Any) -> None:
        (section,) = asked(waves, **changes).values()
        section.check(Checked("evaluate.near", section, towers, {}))

    check()
    check(backbone="ear", item="item")
    pack([Item("a", "a", lambda: {"txt": b"a", "json": b'{"pitch": "low"}'})], tmp_path / "texts", name="x")
    for changes, said in [
        ({"backbone": "eer"}, "evaluate.near.backbone: no backbone 'eer'; allowed: ear, net; nearest: ear"),
        ({"queries": str(tmp_path / "texts")}, "evaluate.near.queries: .*sample a has json, txt; allowed: .* npy"),
        ({"backbone": "ear", "bank": str(tmp_path / "texts")}, "near.bank: .*allowed: shards with flac or wav or ogg"),
    ]:
        with pytest.raises(ConfigError, match=said):
            check(**changes)
    check(backbone="ear", parts=10)
    picture = BackboneConfig(type="resnet", size=16, config={"embedding_size": 8, "hidden_sizes": [8], "depths": [1]})
    for task in ("knn", "linear"):
        given = {"task": task, "backbone": "eye", "bank" if task == "knn" else "train": "bigssl/demo/emoji/train",
                 "queries": "bigssl/demo/emoji/val", "label": "category", "parts": 2}  # fmt: skip
        (section,) = parse({"x": given}).values()
        with pytest.raises(ConfigError, match="evaluate.x.parts: value 2: the backbone takes image; allowed: of one "
                                              "that takes series or audio, or null"):  # fmt: skip
            section.check(Checked("evaluate.x", section, {"eye": Tower("eye", picture, None)}, {}))
    (section,) = parse({"x": {"task": "zero_shot", "image_backbone": "net", "queries": str(waves / "val"),
                              "captions": str(waves / "train"), "label": "pitch"}}).values()  # fmt: skip
    with pytest.raises(ConfigError, match="evaluate.x.image_backbone: no image backbone 'net'; allowed: none"):
        section.check(Checked("evaluate.x", section, towers, {}))


def test_views_of_one_item_are_found_again_in_any_modality(waves: Path, tmp_path: Path) -> None:
    """Neighbouring numbers are one item, once low and once high; the raw baseline is that of a loop."""
    tower = tower_of("patchtst")
    export_run(tmp_path, {"net": tower.model}, {"net": input_of(tower)}, {}, {})
    bank, queries = str(waves / "train"), str(waves / "val")
    asked_for = {"task": "retrieval", "backbone": "net", "bank": bank, "queries": queries, "pair": "item",
                 "view": "pitch", "batch": BATCH}  # fmt: skip
    row = score(tmp_path, parse({"pairs": asked_for}), seed=0)["tasks"]["pairs"]
    assert "of 16 unseen series have the same item" in row["sentence"] and set(row["raws"]) == set(RAWS["series"])
    for name in RAWS["series"]:
        encode = raw_of(input_of(tower), name)
        (known, _), (found, pitches) = (rows(tower, Path(each), encode) for each in (bank, queries))
        unit = torch.nn.functional.normalize(found - known.mean(0), dim=1)
        right = 0
        for at in range(16):
            others = [j for j in range(17) if pitches[j] != pitches[at]]
            right += max(others, key=lambda j: float(unit[at] @ unit[j])) // 2 == at // 2
        assert row["raws"][name] == pytest.approx(right / 16), name


def test_a_small_channel_and_a_quiet_sound_are_seen_by_one_of_the_raw_baselines() -> None:
    """The class lies in a channel of a thousandth of the other's scale, or in the pitch of sounds of any loudness: by
    values as they are it is lost, and what sees it would be called better than raw."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    wave = torch.sin(torch.arange(40) * (0.3 + 0.4 * labels[:, None])) + 0.1 * torch.randn(80, 40, generator=generator)
    series = torch.stack([1000 * torch.randn(80, 40, generator=generator), wave], dim=-1)
    tones = torch.sin(torch.arange(2000) * (0.2 + 0.5 * labels[:, None])) * 10 ** -(5 * torch.rand(80, 1))
    found = raw.values(series, torch.ones(series.shape, dtype=torch.bool), 40)
    found |= raw.spectra(tones, torch.ones(80, 2000, dtype=torch.int64))
    share = {}
    for name, rows in found.items():
        bank, asked = (Centred(Matrix([HeldPart(part)]), rows[:60].mean(0)) for part in (rows[:60], rows[60:]))
        share[name] = (stored_knn(bank, labels[:60], asked, range(20), k=K) == labels[60:]).float().mean().item()
    assert share["raw values"] < 0.8 < share["raw values at equal scale"], share
    assert share["log power spectrum at equal loudness"] == 1, share
    flat = raw.values(torch.full((1, 9, 1), 1000.1), torch.tensor([[[True]] * 5 + [[False]] * 4]).view(1, 9, 1), 9)
    assert not flat["raw values at equal scale"].any(), "rounding is no shape"
