"""Sounds, and their texts or pictures, are looked for in each other; against loops over the projected features."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers import AutoModel, PreTrainedModel, Wav2Vec2Config

from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.heads.base import Head
from bigssl.transfer.discovery import evaluation_union
from bigssl.transfer.features import encoder, text_batches, view_batches
from bigssl.transfer.inputs import AudioInput, ImageInput, Input, TextInput
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.scorecard import score
from bigssl.transfer.zero_shot import class_names

SPEECH = Path(__file__).parents[2] / "bigssl" / "demo" / "speech" / "val"
PARSE = TypeAdapter(dict[str, evaluation_union()]).validate_python


class Pairs(NamedTuple):
    """Two networks that were exported with projections, and what they take."""

    nets: dict[str, PreTrainedModel]
    takes: dict[str, Input]
    tensors: dict[str, torch.Tensor]

    @torch.no_grad()
    def vectors(self, side: str, samples: list[Any]) -> torch.Tensor:
        """In the shared space, of samples or texts."""
        takes = self.takes[side]
        if isinstance(takes, TextInput):
            views = next(iter(text_batches(samples, takes, batch=len(samples))))
        else:
            views = next(iter(view_batches(samples, takes, batch=len(samples))))
        return encoder(self.nets[side], "cpu")(views.arrays) @ self.tensors[f"{side}_projection"].T


def exported(other: str, folder: Path, make_model: Callable[..., PreTrainedModel]) -> Pairs:
    letters = load_tokenizer(SPEECH.parents[1] / "tokenizer-characters.json")
    torch.manual_seed(0)
    hears = AutoModel.from_config(Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=[8, 8],
        conv_kernel=[40, 20], conv_stride=[20, 16], num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    ))  # fmt: skip
    takes: dict[str, Input] = {"audio": AudioInput(16_000, 8000), "image": ImageInput(32),
                               "text": TextInput(letters, 32)}  # fmt: skip
    nets = {"audio": hears, other: make_model("bert", vocab_size=120) if other == "text" else make_model("resnet")}
    tensors = {f"{side}_projection": torch.randn(8, 16) for side in nets} | {"logit_scale": torch.tensor(2.0)}
    heads = {"both": Head("pair", {side: side for side in nets}, tensors)}
    export_run(folder, nets, {side: takes[side] for side in nets}, heads, {})
    return Pairs(nets, takes, tensors)


@pytest.mark.parametrize("other", ["text", "image"])
def test_sounds_and_what_belongs_to_them(
    other: str, tmp_path: Path, make_model: Callable[..., PreTrainedModel]
) -> None:  # fmt: skip
    pairs = exported(other, tmp_path, make_model)
    section = {"task": "retrieval", "heads": "both", "audio_backbone": "audio", "bank": str(SPEECH),
               "queries": str(SPEECH), "pair": "code", "k": [1, 5], "batch": 16}  # fmt: skip
    section |= {"text_backbone": None} if other == "image" else {}
    samples = list(read_in_order(DatasetIndex.load(SPEECH)))
    tasks = score(tmp_path, PARSE({"heard": section}), seed=3)["tasks"]
    words = [sample.fields["txt"].decode() for sample in samples]
    sounds, others = pairs.vectors("audio", samples), pairs.vectors(other, words if other == "text" else samples)
    plural = {"text": "texts", "image": "images"}[other]
    for way, asking, gallery in ((f"sounds_to_{plural}", sounds, others), (f"{plural}_to_sounds", others, sounds)):
        cosines = torch.nn.functional.normalize(asking, dim=1) @ torch.nn.functional.normalize(gallery, dim=1).T
        ranks = (cosines > cosines.diag()[:, None]).sum(1)
        for k in (1, 5):
            task = tasks[f"heard/{way}" + ("" if k == 1 else f"@{k}")]
            assert task["trained"] == pytest.approx((ranks < k).float().mean().item(), abs=0.012), (way, k)
            assert task["queries"] == task["gallery"] == 90 and task["random_net"] is not None


def test_sounds_to_classes_known_by_names_and_by_captions(
    tmp_path: Path, make_model: Callable[..., PreTrainedModel]
) -> None:
    """And the class means of raw sounds beside them."""
    pairs = exported("text", tmp_path, make_model)
    asked = {"heads": "both", "audio_backbone": "audio", "captions": str(SPEECH), "queries": str(SPEECH),
             "label": "category", "batch": 16}  # fmt: skip
    sections = {task: asked | {"task": task} for task in ("zero_shot", "class_mean")}
    tasks = score(tmp_path, PARSE(sections), seed=3)["tasks"]
    samples = list(read_in_order(DatasetIndex.load(SPEECH)))
    meta = [json.loads(sample.fields["json"]) for sample in samples]
    labels = [each["category"] for each in meta]
    names = class_names(meta, "category")
    captions = [sample.fields["txt"].decode() for sample in samples], labels
    sounds = pairs.vectors("audio", samples)

    def share(queries: torch.Tensor, described: torch.Tensor, of: list[str], unit: bool) -> float:
        rows = torch.nn.functional.normalize(described, dim=1) if unit else described
        means = {label: rows[[each == label for each in of]].mean(0) for label in sorted(set(of))}
        found = [max(means, key=lambda label: float(torch.cosine_similarity(one, means[label], dim=0)))
                 for one in queries]  # fmt: skip
        return sum(one == label for one, label in zip(found, labels, strict=True)) / len(labels)

    for task, (texts, of) in {"zero_shot": names, "class_mean": captions}.items():
        right = share(sounds, pairs.vectors("text", texts), of, unit=True)
        assert tasks[task]["trained"] == pytest.approx(right), task
        assert "of 90 unseen sounds get the right category" in tasks[task]["sentence"]
    heard = next(iter(view_batches(samples, pairs.takes["audio"], batch=99))).arrays
    raws = pairs.takes["audio"].raws(heard)
    assert set(tasks["class_mean"]["raws"]) == {f"class means of {name}" for name in raws}
    for name, values in raws.items():
        centred = values - values.mean(0)
        assert tasks["class_mean"]["raws"][f"class means of {name}"] == pytest.approx(
            share(centred, centred, labels, unit=False), abs=0.012), name  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), [
    ({"text_backbone": None}, "text_backbone: none without audio_backbone leaves pictures alone"),
    ({"heads": None, "pair": "code", "view": "voice", "audio_backbone": "audio"}, "audio_backbone has no effect"),
])  # fmt: skip
def test_two_sides_are_needed(changes: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PARSE({"x": {"task": "retrieval", "heads": "clip", "bank": "a", "queries": "b"} | changes})
