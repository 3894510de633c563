"""What a section of an evaluation that learns may say: refused before anything is trained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from bigssl.config.errors import ConfigError
from bigssl.config.evaluate import probe_model
from bigssl.config.recipe import BackboneConfig
from bigssl.data.kinds.text import load_tokenizer
from bigssl.engine.plan.evaluation import Checked
from bigssl.nets.towers import Tower
from bigssl.transfer.discovery import evaluation_union

ROOT = Path(__file__).parents[3]
TOKENIZER = str(ROOT / "bigssl/demo/tokenizer.json")
SECTIONS = {
    "image": BackboneConfig(type="resnet", size=16, config={
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}),
    "series": BackboneConfig(type="patchtst", channels=6, length=40, config={
        "d_model": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32, "patch_length": 8,
        "patch_stride": 8}),
    "text": BackboneConfig(type="albert", tokenizer=TOKENIZER, length=16, config={
        "hidden_size": 16, "embedding_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 16}),
}  # fmt: skip


@pytest.fixture(scope="module")
def towers() -> dict[str, Tower]:
    return {name: Tower(name, section, load_tokenizer(TOKENIZER) if section.tokenizer else None)
            for name, section in SECTIONS.items()}  # fmt: skip


def demo(task: str, **fields: Any) -> Any:
    places = {"train": str(ROOT / "bigssl/demo/emoji/train"), "queries": str(ROOT / "bigssl/demo/emoji/val")}
    return TypeAdapter(evaluation_union()).validate_python({"task": task, "label": "category", **places, **fields})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "the samples that are judged": (
        {"task": "linear", "train": str(ROOT / "bigssl/demo/emoji/val")},
        "evaluate.mine.queries: value .*: 2 of 2 shards are also in evaluate.mine.train",
    ),
    "no such label": (
        {"task": "finetune", "label": "categori"},
        "evaluate.mine.label: value 'categori' is not in the metadata of .*nearest: category",
    ),
    "another modality": (
        {"task": "linear", "backbone": "series"}, "evaluate.mine.train: value .*allowed: shards with npy",
    ),
    "layers that are none": (
        {"task": "hybrid", "top": 3}, "evaluate.mine.top: value 3: the network has 2 layers; allowed: 1 to 2",
    ),
    "adapters of nothing": (
        {"task": "hybrid", "lora": 4}, "evaluate.mine.lora: value 4: a resnet has no linear layers; allowed: top",
    ),
    "layers without order": (
        {"task": "finetune", "backbone": "text"},
        "evaluate.mine.layer_decay: value 0.75: the layers of albert share their weights; allowed: layer_decay=1",
    ),
    "the last of them": (
        {"task": "hybrid", "backbone": "text"},
        "evaluate.mine.top: value None: the layers of albert share their weights; allowed: lora",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_not_run_is_refused(case: str, towers: dict[str, Tower]) -> None:
    fields, said = REFUSED[case]
    section = demo(**fields)
    with pytest.raises(ConfigError, match=said) as caught:
        section.check(Checked("evaluate.mine", section, towers, {}))
    assert "\n" not in str(caught.value)


def test_adapters_without_peft_are_refused(towers: dict[str, Tower], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    section = demo("hybrid", backbone="text", lora=4)
    with pytest.raises(ConfigError, match=r"evaluate.mine.lora: value 4: adapters need peft; run: pip install 'bigssl"):
        section.check(Checked("evaluate.mine", section, towers, {}))


@pytest.mark.parametrize("fields, said", [
    ({"fractions": [1.0, 0.1]}, "needed are ascending shares, each once, as in [0.1, 1.0]"),
    ({"fractions": [0.1, 0.1]}, "as in [0.1]"),
    ({"fractions": [0.0, 1.0]}, "greater than 0"),
    ({"fractions": []}, "at least 1 item"),
    ({"task": "hybrid", "top": 1, "lora": 2}, "top 1 and lora 2; allowed: one of them"),
])  # fmt: skip
def test_values_that_make_no_sense_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        demo(**{"task": "linear", **fields})
    assert said in str(caught.value)


def test_what_trains_networks_itself_is_no_probe() -> None:
    knn = {"task": "knn", "bank": "x", "queries": "y"}
    section = demo("finetune").model_dump(exclude_unset=True)
    model = probe_model(evaluation_union())
    with pytest.raises(ValidationError, match="mine: trains networks itself, which is no probe; allowed: in `ev"):
        model.model_validate({"every": 5, "mine": section, "near": knn})
    assert set(model.model_validate({"every": 5, "near": knn}).sections) == {"near"}
