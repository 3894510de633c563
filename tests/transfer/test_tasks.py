"""What holds for every evaluation that is found, on its own preset: `pytest tests/transfer -k NAME`."""

from __future__ import annotations

import json
import math
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from bigssl.config.evaluate import FEW, Evaluation
from bigssl.config.recipe import BackboneConfig
from bigssl.data.kinds.text import load_tokenizer
from bigssl.engine.plan.evaluation import Checked
from bigssl.nets.heads import MaskedLanguageHead
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head
from bigssl.report.html import write_report
from bigssl.report.metrics import Measure
from bigssl.transfer.discovery import discover_evaluations, evaluation_union
from bigssl.transfer.inputs import input_of
from bigssl.transfer.labelled.section import Learning
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.probe import LiveProbe
from bigssl.transfer.scorecard import format_table, score
from bigssl.transfer.subjects import Live, Subject
from bigssl.transfer.team import Team

ROOT = Path(__file__).parents[2]
MADE = Path(__file__).parent / "made"
LIMITS = [*FEW, "train_limit"]
SMALL = 120  # samples, where a preset has no limit
parse: Callable[[Any], Evaluation] = TypeAdapter(evaluation_union()).validate_python
SECTIONS = {
    "image": BackboneConfig(type="resnet", size=16, config={
        "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}),
    "text": BackboneConfig(type="bert", tokenizer="bigssl/demo/tokenizer.json", length=16, config={
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 16}),
    "series": BackboneConfig(type="patchtst", channels=6, length=40, config={
        "d_model": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 32, "patch_length": 8,
        "patch_stride": 8}),
    "audio": BackboneConfig(type="wav2vec2", rate=1000, length=1000, config={
        "conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "num_feat_extract_layers": 2,
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def towers(at_the_root: None) -> dict[str, Tower]:
    torch.manual_seed(0)
    return {name: Tower(name, section, load_tokenizer(section.tokenizer) if section.tokenizer else None)
            for name, section in SECTIONS.items()}  # fmt: skip


@pytest.fixture
def heads(towers: dict[str, Tower]) -> dict[str, Head]:
    words = MaskedLanguageHead(towers["text"].model.get_input_embeddings().weight)  # type: ignore[arg-type]
    own = {name: value.detach() for name, value in words.named_parameters() if name != "weight"}
    into = {f"{name}_projection": torch.randn(8, towers[name].dim) for name in ("image", "text")}
    return {"mlm": Head("mlm", {"text": "text"}, own), "clip": Head("clip", {"image": "image", "text": "text"}, into)}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Any]:
    """made(value): of a preset, with the data of "made/NAME/..." written where the value then leads."""
    root = tmp_path_factory.mktemp("made")

    def lead(value: Any) -> Any:
        if not isinstance(value, str) or not value.startswith("made/"):
            return value
        _, name, part = value.split("/")
        if not (root / name).exists():
            (root / name).mkdir()
            runpy.run_path(str(MADE / f"{name}.py"))["make"](root / name)
        return str(root / name / part)

    return lead


@pytest.fixture
def section_of(made: Callable[[Any], Any]) -> Callable[[str], Evaluation]:
    def section(task: str) -> Evaluation:
        preset = {name: made(value) for name, value in discover_evaluations()[task].preset.items()}
        found = parse(preset | {"task": task})
        return found.model_copy(update={name: SMALL for name in LIMITS if getattr(found, name, 0) is None})

    return section


def numbers(value: Any) -> Iterator[float]:
    for each in value.values() if isinstance(value, dict) else [value]:
        yield from numbers(each) if isinstance(each, dict) else [each] if isinstance(each, float) else []


@pytest.mark.parametrize("task", discover_evaluations())
def test_an_evaluation_is_checked_run_and_probed(
    task: str, section_of: Callable[[str], Evaluation], towers: dict[str, Tower], heads: dict[str, Head], tmp_path: Path
) -> None:
    section = section_of(task)
    section.check(Checked("evaluate.mine", section, towers, heads))
    assert {*section.metadata()} <= {"label", *(v for v in section.preset.values() if isinstance(v, str))}
    models, inputs = {n: t.model for n, t in towers.items()}, {n: input_of(t) for n, t in towers.items()}
    tensors = {name: head.tensors for name, head in heads.items()}
    export_run(tmp_path, models, inputs, tensors, {})
    card = score(tmp_path, {"mine": section}, seed=0)
    assert card["tasks"] == score(tmp_path, {"mine": section}, seed=0)["tasks"], "the same twice"
    assert json.loads((tmp_path / "scorecard.json").read_text())["tasks"] == card["tasks"] != {}
    for name, row in card["tasks"].items():
        assert all(map(math.isfinite, numbers(row))) and row["queries"] > 1 and row["random_net"] is not None, name
        assert row["title"] in format_table(card) and row["title"] in write_report(tmp_path).read_text()
    assert section.learns_from is None or hasattr(section, section.learns_from)
    if isinstance(section, Learning):
        nothing_is_learnt_from_dealt_labels(score(tmp_path, {"mine": section.model_copy(update={"permuted": True})},
                                                  seed=0))  # fmt: skip
    if not section.probes:
        return
    subjects = [Subject(name, {"trained": tower.model.train()}, inputs[name], tower.dim)
                for name, tower in towers.items()]  # fmt: skip
    live = Live(subjects, lambda: tensors)
    probe = LiveProbe({"mine": section}, live, team=Team(), seed=0, device="cpu")
    probe.prepare()
    found = probe()
    assert probe.measures == {f"probe/{name}": Measure(row["unit"], "") for name, row in card["tasks"].items()}
    for name, row in card["tasks"].items():
        assert found[f"probe/{name}"] == pytest.approx(row["trained"], rel=1e-4), name
    assert all(map(math.isfinite, numbers(found)))


def nothing_is_learnt_from_dealt_labels(card: dict[str, Any]) -> None:
    """What is then ahead of a guess knows the labels of the queries."""
    for name, row in card["tasks"].items():
        sign = 1 if row["higher_is_better"] else -1
        blind = [sign * row[each] for each in ("chance", "majority", "blind") if row[each] is not None]
        assert blind, f"{name}: no guess that does not see the input"
        assert sign * row["trained"] - max(blind) < 3 * (row["stderr"] or 0.0) + 0.1, name


@pytest.mark.parametrize("task", discover_evaluations())
def test_a_section_is_read_as_it_was_written(task: str, section_of: Callable[[str], Evaluation]) -> None:
    section = section_of(task)
    assert parse(json.loads(section.model_dump_json())) == section
    few = parse(section.preset | {"task": task}).few()
    assert [getattr(few, name) for name in FEW if hasattr(few, name)].count(None) == 0
