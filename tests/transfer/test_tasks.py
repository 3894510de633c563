"""What holds for every evaluation that is found, on its own preset: `pytest tests/transfer -k NAME`."""

from __future__ import annotations

import json
import math
import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch.optim.optimizer import register_optimizer_step_post_hook

from bigssl.config.evaluate import FEW, Evaluation
from bigssl.config.recipe import BackboneConfig
from bigssl.data.kinds.text import load_tokenizer
from bigssl.engine.plan.evaluation import Checked
from bigssl.nets.heads.base import Head, MaskedLanguageHead
from bigssl.nets.heads.pooled import PooledHead
from bigssl.nets.heads.replacing import DiscriminatorHead
from bigssl.nets.remaking.autoencoder import AutoencoderRemaker
from bigssl.nets.towers import Tower
from bigssl.report.html import write_report
from bigssl.report.metrics import Measure
from bigssl.transfer.bench import Bench
from bigssl.transfer.discovery import discover_evaluations, evaluation_union
from bigssl.transfer.inputs import input_of
from bigssl.transfer.labelled import examples, trials
from bigssl.transfer.labelled.fit import FitBelow
from bigssl.transfer.labelled.section import Learning
from bigssl.transfer.labelled.trials import Trial
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.probe import LiveProbe
from bigssl.transfer.scorecard import format_table, score
from bigssl.transfer.steps import cases
from bigssl.transfer.subjects import Live, Subject
from bigssl.transfer.tasks import qa
from bigssl.transfer.team import Team
from bigssl.transfer.texts.answering import Question
from bigssl.transfer.texts.pairs import Pair
from bigssl.transfer.texts.tagging import Tagged

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


@pytest.fixture(autouse=True, scope="module")
def at_the_root() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield


@pytest.fixture(scope="module")
def towers(at_the_root: None) -> dict[str, Tower]:
    torch.manual_seed(0)
    return {name: Tower(name, section, load_tokenizer(section.tokenizer) if section.tokenizer else None)
            for name, section in SECTIONS.items()}  # fmt: skip


@pytest.fixture(scope="module")
def heads(towers: dict[str, Tower]) -> dict[str, Head]:
    words = MaskedLanguageHead(towers["text"].model.get_input_embeddings().weight)  # type: ignore[arg-type]
    own = {name: value.detach() for name, value in words.named_parameters() if name != "weight"}
    into = {f"{name}_projection": torch.randn(8, towers[name].dim) for name in ("image", "text")}
    drawn = AutoencoderRemaker(dim=towers["image"].dim, side=2, size=16, width=16)
    pair, judge = PooledHead(towers["text"].dim, 2), DiscriminatorHead(towers["text"].dim)
    of_text = {"next_sentence": pair, "replaced_token": judge}
    found = {name: Head(name, {"text": "text"}, dict(head.state_dict())) for name, head in of_text.items()}
    return found | {
        "mlm": Head("mlm", {"text": "text"}, own), "clip": Head("clip", {"image": "image", "text": "text"}, into),
        "pictures": Head(drawn.kind, {"image": "image"}, drawn.learnt(), drawn.settings),
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(towers: dict[str, Tower], heads: dict[str, Head], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    models, inputs = {n: t.model for n, t in towers.items()}, {n: input_of(t) for n, t in towers.items()}
    export_run(folder, models, inputs, heads, {})
    return folder


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
    task: str, section_of: Callable[[str], Evaluation], towers: dict[str, Tower], heads: dict[str, Head], run: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    section = section_of(task)
    section.check(Checked("evaluate.mine", section, towers, heads))
    assert {*section.metadata()} <= {"label", *(v for v in section.preset.values() if isinstance(v, str))}
    with watched() as learnt:
        card = score(run, {"mine": section}, seed=0, out=tmp_path)
    assert json.loads((tmp_path / "scorecard.json").read_text())["tasks"] == card["tasks"] != {}
    for name, row in card["tasks"].items():
        assert all(map(math.isfinite, numbers(row))) and row["queries"] > 1 and row["random_net"] is not None, name
        assert row["title"] in format_table(card) and row["title"] in write_report(run, tmp_path).read_text()
    assert section.learns_from is None or hasattr(section, section.learns_from)
    if isinstance(section, Learning):
        assert section.fractions[0] < section.fractions[-1] == 1.0, "a trial that may see some, and one that sees all"
        again = partial(score, run, {"mine": section}, seed=0, out=tmp_path)
        nothing_is_learnt_from_other_samples(section, learnt, again)
        dealt = section.model_copy(update={"permuted": True, "fractions": [1.0]})
        nothing_is_learnt_from_dealt_labels(score(run, {"mine": dealt}, seed=0, out=tmp_path))
    else:
        assert card["tasks"] == score(run, {"mine": section}, seed=0, out=tmp_path)["tasks"], "the same twice"
    if not section.probes:
        return
    subjects = [Subject(name, {"trained": tower.model.train()}, input_of(tower), tower.dim)
                for name, tower in towers.items()]  # fmt: skip
    live = Live(subjects, lambda: heads)
    probe = LiveProbe({"mine": section}, live, team=Team(), seed=0, device="cpu")
    probe.prepare()
    found = probe()
    assert probe.measures == {f"probe/{name}": Measure(row["unit"], "") for name, row in card["tasks"].items()}
    for name, row in card["tasks"].items():
        assert found[f"probe/{name}"] == pytest.approx(row["trained"], rel=1e-4), name
    assert all(map(math.isfinite, numbers(found)))


class Done(NamedTuple):
    """trial: with its rows. outcome: of it. steps: after each of an optimiser, the sum of the parameters in use."""

    trial: Trial
    outcome: Any
    steps: list[float]


class Enough(BaseException):
    """All trials that were to be repeated are."""


@contextmanager
def watched(again: Mapping[Trial, Done] | None = None) -> Iterator[dict[Trial, Done]]:
    """What is made of each trial; with `again`, of these alone, on the rows that they had, until `Enough`."""
    found: dict[Trial, Done] = {}
    steps: list[float] = []

    def done(bench: Bench, trial: Trial, work: Callable[[Trial], Any]) -> Any:
        if again is not None and trial not in again:
            return None
        steps.clear()
        mine = trial if again is None else again[trial].trial
        found[trial] = Done(mine, work(mine), list(steps))
        if again is not None and found.keys() == again.keys():
            raise Enough
        return found[trial].outcome

    def note(optimiser: torch.optim.Optimizer, *arguments: Any) -> None:
        parts = [part for group in optimiser.param_groups for part in group["params"] if part.grad is not None]
        steps.append(sum(part.detach().double().abs().sum().item() for part in parts))

    hook = register_optimizer_step_post_hook(note)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trials, "_done", done)
            yield found
    finally:
        hook.remove()


def nothing_is_learnt_from_other_samples(
    section: Learning, learnt: Mapping[Trial, Done], again: Callable[[], Any]
) -> None:
    """Those that a trial may not see stand in another order, with the targets of each other: neither what is learnt nor
    what comes of it is another, twice the same. (All targets together are as before, and with them the classes, the
    symbols, the scale.)"""
    small = {trial: each for trial, each in learnt.items() if (trial.fraction, trial.seed) == (section.fractions[0], 0)}
    rows = next(iter(small)).rows.tolist()
    count = max(len(trial.rows) for trial in learnt)
    with watched(small) as found, pytest.raises(Enough), pytest.MonkeyPatch.context() as patch:
        swapped = swap_all_but(rows, count, patch)
        again()
    assert swapped == ["targets"], "the samples of train, first of all"
    for trial, each in small.items():
        assert found[trial].steps == pytest.approx(each.steps, rel=1e-9), f"{trial}: learnt from other samples"
        assert all(one == (other if isinstance(other, str) else pytest.approx(other, rel=1e-4, abs=1e-5))
                   for one, other in zip(plain(found[trial].outcome), plain(each.outcome), strict=True)), trial


def swap_all_but(rows: Sequence[int], count: int, patch: pytest.MonkeyPatch) -> list[str]:
    """What was swapped, once it is. Where samples are what is learnt from (and no windows of them), all of a sample
    goes to another place; of what then is there, the target goes further."""
    others = np.setdiff1d(np.arange(count), rows)
    further, swapped = dict(zip(others.tolist(), np.roll(others, 1).tolist(), strict=True)), list[str]()
    whole, sample_of, case_of = Bench.numbers, examples.Examples, cases.Cases

    def numbers(bench: Bench, index: Any, limit: int | None, field: str) -> Any:
        found = whole(bench, index, limit, field)
        if field != "train" or len(found) != count:
            return found
        return [found[further.get(row, row)] for row in range(count)]

    def samples(keys: Any, targets: list[Any], *rest: Any) -> Any:
        if not swapped:
            targets = [with_target_of(own, targets[further[row]]) if row in further else own
                       for row, own in enumerate(targets)]  # fmt: skip
            swapped.append("targets")
        return sample_of(keys, targets, *rest)

    def windows(seen: Any, past: Any, future: torch.Tensor, *rest: Any) -> Any:
        if not swapped:
            future = future[[further.get(row, row) for row in range(count)]]
            swapped.append("targets")
        return case_of(seen, past, future, *rest)

    patch.setattr(Bench, "numbers", numbers)
    patch.setattr(examples, "Examples", samples)
    patch.setattr(cases, "Cases", windows)
    return swapped


def with_target_of(own: Any, other: Any) -> Any:
    """Of what holds the input as well, the own one."""
    if isinstance(own, Tagged):
        return Tagged(own.words, own.tags[::-1])
    if isinstance(own, Pair):
        return Pair(own.source, other.target)
    return qa._elsewhere(own, other) if isinstance(own, Question) else other


def plain(value: Any) -> list[Any]:
    """Tensors, arrays and tuples as one list of numbers and texts."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return list(value.ravel().tolist())
    return [each for part in value for each in plain(part)] if isinstance(value, list | tuple) else [value]


@pytest.mark.parametrize("task", [name for name, kind in discover_evaluations().items() if issubclass(kind, FitBelow)])
def test_a_backbone_moves_at_a_rate_of_its_own(
    task: str, section_of: Callable[[str], Evaluation], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is pretrained: at the rate of a fresh head it would forget what is to be judged."""
    section = section_of(task).model_copy(update={"lr": 1e-2, "backbone_lr": 1e-4, "layer_decay": 0.5})
    section = section.model_copy(update={"tune": "all"}) if hasattr(section, "tune") else section
    network, inside, rates = Bench.network, set[int](), dict[bool, set[float]]()

    def noted(bench: Bench, *arguments: Any) -> Any:
        model = network(bench, *arguments)
        inside.update(map(id, model.parameters()))
        return model

    def stop(optimiser: torch.optim.Optimizer, *arguments: Any) -> None:
        for group in optimiser.param_groups if inside else []:
            for part in group["params"]:
                rates.setdefault(id(part) in inside, set()).add(group["initial_lr"])
        if inside:
            raise Enough

    monkeypatch.setattr(Bench, "network", noted)
    hook = register_optimizer_step_post_hook(stop)
    try:
        with pytest.raises(Enough):
            score(run, {"mine": section}, seed=0, out=tmp_path)
    finally:
        hook.remove()
    assert rates[False] == {1e-2} and max(rates[True]) <= 1e-4 * 1.001 and len(rates[True]) > 1


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
