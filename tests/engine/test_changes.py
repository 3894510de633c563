"""A run that goes on with another recipe on purpose: what is trained, what is written down, what is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from byol_runs import BYOL, assert_same_state, state_by_hand, state_of, steps_by_hand
from torch import Tensor

from bigssl import distributed
from bigssl.config.changes import never
from bigssl.config.errors import ConfigError
from bigssl.config.places import CONFIG
from bigssl.config.recipe import Recipe, load_recipe, recipe_model
from bigssl.engine import loop, zero
from bigssl.engine.guards import NotSaved
from bigssl.engine.optim import build_optimizer
from bigssl.engine.plan import preflight
from bigssl.engine.plan.changes import adjustable_fields
from bigssl.engine.plan.checks import draft
from bigssl.engine.resume import flat, may_change, refuse_changed_recipe, settle_folder, settled
from bigssl.nets.progress import CosineRamp
from bigssl.objectives.base import config_union
from bigssl.report.changes import Change, read_changes

# A large eps keeps an update proportional to its gradient: rounding errors stay what they are.
FIRST: dict[str, Any] = {"steps": 4, "objective": BYOL, "optim": {"lr": 0.01, "warmup": 2, "eps": 1e-2}}
SECOND: dict[str, Any] = {
    "steps": 8, "objective": BYOL | {"momentum": 0.5},
    "optim": {"lr": 0.05, "warmup": 6, "eps": 2e-2, "betas": [0.5, 0.9], "weight_decay": 0.2, "clip": 0.3,
              "schedule": "wsd", "decay": 0.25, "final": 0.1, "no_decay": ["target|projector"],
              "groups": [{"pattern": "^predictor", "lr": 2.0, "weight_decay": 0.4}]},
}  # fmt: skip
CHANGE = ["steps", "objective.momentum", "optim"]


def driven(first: str, second: str) -> None:
    """A run of the first recipe (JSON) to its end, which then goes on with the second: a try that dies before its first
    checkpoint, and another, which needs not be told again what changes. Collective."""
    device, model = zero.start(), recipe_model(config_union())

    def die(self: Any, step: int, passes: Any) -> Any:
        if step == 5:
            raise RuntimeError("died")
        return update(self, step, passes)

    update = loop._Run._update
    for text, change, dies in ((first, [], False), (second, CHANGE, True), (second, [], False)):
        recipe = model.model_validate_json(text)
        plan = preflight.plan(recipe, distributed.world(), change)
        with mock.patch.object(loop._Run, "_update", die if dies else update), contextlib.suppress(RuntimeError):
            loop.train(recipe, plan, device, None)


def by_hand(first: Recipe, second: Recipe) -> dict[str, Tensor]:
    """The same in one process by PyTorch alone: after 4 steps, an AdamW of the new settings over the old state."""
    plan = preflight.plan(first, 1)
    task, old = plan.objective, build_optimizer(plan.objective, first.optim)
    steps_by_hand(task, old, plan, first, range(first.steps))
    new = build_optimizer(task, second.optim)
    new.state.update(old.state)
    task.target.momentum = CosineRamp(0.5, 1.0)
    steps_by_hand(task, new, plan, second, range(first.steps, second.steps))
    return state_by_hand(task, new)


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, Tensor]]:
    return {}


@pytest.mark.distributed
@pytest.mark.parametrize(("stage", "world"), [(0, 2), (1, 1), (2, 2), (3, 2)])
def test_a_finished_run_trains_on_with_other_settings(
    stage: int, world: int, tmp_path: Path, recipe: Any, crew: Any, expected: dict[str, Any]
) -> None:
    """Weights, buffers, teacher and AdamW's state after 4 steps of one recipe and 4 of another: rate, schedule,
    warm-up, betas, eps, decay, clipping, groups and a teacher's momentum are the new ones from step 5 on."""
    options = {"stage3_param_persistence_threshold": 0, "sub_group_size": 200} if stage == 3 else {}
    shape = {"out": tmp_path / "run", "zero": {"stage": stage, "options": options}, "checkpoint": {"every": 4}}
    first, second = recipe(**shape, **FIRST), recipe(**shape, **SECOND)
    if not expected:
        one = [each.model_copy(update={"out": "unused", "zero": recipe().zero}) for each in (first, second)]
        expected |= by_hand(*one)
    crew(driven, world, first.model_dump_json(), second.model_dump_json())
    got = state_of(tmp_path / "run")
    assert_same_state(got, expected)
    assert all(value == 8 for name, value in got.items() if name.startswith("step "))
    stored = load_recipe(tmp_path / "run" / CONFIG, [], type(second))
    assert stored.optim == second.optim and stored.steps == 8
    assert {change.step for change in read_changes(tmp_path / "run")} == {4}
    assert Change(4, "optim.lr", 0.01, 0.05) in read_changes(tmp_path / "run")


def begun(recipe: Recipe, step: int) -> Recipe:
    """The folder of a run of `recipe` whose newest checkpoint is of `step`; the recipe as it is stored."""
    resolved = settled(recipe, {}, accum=1, bf16=False)
    (recipe.folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True, exist_ok=True)
    (recipe.folder / "checkpoints" / f"step-{step:08d}" / "manifest.json").write_text("{}")
    settle_folder(resolved, step)
    return resolved


@pytest.fixture
def fixed(recipe: Any) -> Any:
    """`fixed(out, lr=..., ...)`: the tiny recipe with its attention named, which `settled` needs no network for."""
    def make(out: Path, *, steps: int = 8, **optim: Any) -> Recipe:
        image = recipe().backbones["image"].model_dump() | {"attention": "eager"}
        return recipe(out, steps=steps, optim={"lr": 0.01, **optim}, backbones={"image": image})  # type: ignore[no-any-return]

    return make


def test_what_is_written_down_is_what_was_trained(tmp_path: Path, fixed: Any) -> None:
    """A change that was killed before its first checkpoint goes on by the same command, can be taken back, and counts
    from where the run really went on."""
    out = tmp_path / "run"
    one, two, three = (fixed(out, lr=lr) for lr in (0.01, 0.02, 0.03))
    begun(one, 4)
    assert read_changes(out) == []
    with pytest.raises(ConfigError, match=r"optim.lr: 0.01 before, 0.02 now.*`--change optim.lr` to go on"):
        refuse_changed_recipe(two)
    refuse_changed_recipe(two, ["optim.lr"])
    begun(two, 4)
    assert read_changes(out) == [Change(4, "optim.lr", 0.01, 0.02)]
    for change in ([], ["optim.lr"]):  # the same command, and the new recipe alone
        refuse_changed_recipe(two, change)
    begun(two, 4)  # killed before step 5 was saved, and begun again
    assert read_changes(out) == [Change(4, "optim.lr", 0.01, 0.02)]
    with pytest.raises(ConfigError, match="optim.lr: 0.02 before, 0.01 now"):
        refuse_changed_recipe(one)
    refuse_changed_recipe(one, ["optim"])
    begun(one, 4)  # no step was trained with the change: there was none
    assert read_changes(out) == []
    begun(two, 4)
    begun(three, 6)
    assert read_changes(out) == [Change(4, "optim.lr", 0.01, 0.02), Change(6, "optim.lr", 0.02, 0.03)]
    begun(three, 8)  # nothing changes here
    assert [change.step for change in read_changes(out)] == [4, 6]
    begun(three, 5)  # the checkpoints behind it are damaged
    assert read_changes(out) == [Change(4, "optim.lr", 0.01, 0.02), Change(5, "optim.lr", 0.02, 0.03)]
    begun(three, 2)
    assert read_changes(out) == [Change(2, "optim.lr", 0.01, 0.03)]
    assert load_recipe(out / CONFIG, [], type(three)).optim.lr == 0.03


def test_a_kill_between_the_record_and_the_recipe_loses_neither(
    tmp_path: Path, fixed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    begun(fixed(out), 4)
    with monkeypatch.context() as patched:
        patched.setattr("bigssl.engine.resume.dump_recipe", lambda recipe: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            begun(fixed(out, lr=0.02), 4)
    refuse_changed_recipe(fixed(out))  # what config.yaml says
    refuse_changed_recipe(fixed(out, lr=0.02), ["optim.lr"])
    begun(fixed(out, lr=0.02), 4)
    assert read_changes(out) == [Change(4, "optim.lr", 0.01, 0.02)]


def test_the_same_command_comes_again_also_where_what_it_names_may_change_unasked(tmp_path: Path, fixed: Any) -> None:
    """A scheduler starts it again after each stop."""
    begun(fixed(tmp_path / "run"), 4)
    changed = fixed(tmp_path / "run", lr=0.02).model_copy(update={"log_every": 7})
    for step in (4, 6):
        refuse_changed_recipe(changed, ["log_every", "optim.lr", "data.workers"])
        begun(changed, step)


def test_another_export_to_begin_with_than_the_run_had_is_refused(tmp_path: Path, fixed: Any) -> None:
    """It would not be read: the checkpoint goes on."""
    plain = fixed(tmp_path / "run")
    one, other = (plain.model_copy(update={"start_from": str(tmp_path / name)}) for name in ("one", "other"))
    begun(one, 4)
    refuse_changed_recipe(one)
    with pytest.raises(ConfigError, match=f"run that goes on from step 4; allowed: start_from={tmp_path}/one, "):
        refuse_changed_recipe(other)
    begun(plain, 4)
    with pytest.raises(ConfigError, match=f"start_from: value '{tmp_path}/one'.*: without .* out={tmp_path}/run-2"):
        refuse_changed_recipe(one)


def damaged(recipe: Recipe) -> str:
    """What every rank ends with where rank 0 cannot read the record of changes. Collective."""
    zero.start()
    with pytest.raises(NotSaved) as caught:
        settle_folder(recipe, 4)
    return str(caught.value)


@pytest.mark.distributed
def test_what_rank_0_cannot_read_ends_every_rank_in_a_line(tmp_path: Path, fixed: Any, ranks: Any) -> None:
    resolved = begun(fixed(tmp_path / "run"), 4)
    (tmp_path / "run" / "changes.jsonl").write_text('{"step": 4, "fie')
    with pytest.raises(ConfigError, match="changes.jsonl: line 1 is no change of a run"):
        refuse_changed_recipe(resolved)
    one, other = ranks(damaged, 2, resolved)
    assert one == other and "changes.jsonl: line 1 is no change of a run" in one


def test_names_that_stand_for_nothing_are_refused(tmp_path: Path, fixed: Any) -> None:
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="--change: .*holds no checkpoint of a run .*; allowed: without"):
        refuse_changed_recipe(fixed(out), ["optim.lr"])
    begun(fixed(out), 4)
    changed = fixed(out, lr=0.02)
    for change, words in {
        "optim.rl": "no field 'optim.rl' in the recipe; allowed: .*; nearest: optim.lr",
        "optim.clip": "optim.clip is what it was in the run .*; what differs: optim.lr",
    }.items():
        with pytest.raises(ConfigError, match=f"--change: {words}"):
            refuse_changed_recipe(changed, ["optim.lr", change])
    with pytest.raises(ConfigError, match=r"optim.warmup: 0 before, 3 now\).*--change optim.warmup"):
        refuse_changed_recipe(fixed(out, lr=0.02, warmup=3), ["optim.lr"])
    shutil.rmtree(out / "checkpoints")
    (out / "export").mkdir()
    with pytest.raises(ConfigError, match=f"holds no checkpoint .* out={out}-2 start_from={out}/export"):
        refuse_changed_recipe(changed, ["optim.lr"])


def test_every_field_is_asked_for_or_refused_with_a_reason(recipe: Any) -> None:
    """Of a run, these may change on purpose, those unasked, and no other."""
    now = recipe("unused")
    keys = flat(json.loads(now.model_dump_json())).keys()
    asked = {key for key in keys if not never(key, adjustable_fields(now), "adamw") and not may_change(key, now)}
    optim = {key for key in keys if key.startswith("optim.")} - {"optim.name"}
    of_source = {f"data.sources.emoji.{field}" for field in ("min_shards", "rates")}
    assert asked == {"name", "steps", "precision"} | of_source | optim | {
        *(f"backbones.image.{field}" for field in ("attention", "activation_checkpointing", "compile")),
        *(key for key in keys if key == "objective.temperature" or key.startswith("objective.augment.")),
    }
    reasons = {"seed": "samples would come twice", "batch.size": "places in the data", "batch.accum": "BatchNorm",
               "data.sources.emoji.batch": "places in the data", "data.lanes": "order of samples",
               "backbones.image.size": "weights", "objective.dim": "shapes it", "objective.source": "names",
               "optim.name": "optimizer's state"}  # fmt: skip
    for key, words in reasons.items():
        assert words in never(key, adjustable_fields(now), "adamw"), key
    assert "muon" in never("optim.no_decay", [], "muon")
    assert "what the run is" in never("a.field.of.tomorrow", [], "adamw")


def test_parts_of_a_joint_run_change_weight_and_what_their_task_allows(recipe: Any, joint: Any) -> None:
    allowed = adjustable_fields(recipe(**joint))
    for key in ("parts.words.weight", "parts.views.temperature", "parts.captions.flip", "parts.words.masking"):
        assert not never(f"objective.{key}", allowed, "adamw"), key
    for key in ("parts.views.dim", "parts.words.temperature", "parts.more.weight.x", "parts.views.name"):
        assert never(f"objective.{key}", allowed, "adamw") or key == "parts.more.weight.x", key


def test_what_never_changes_is_refused_with_the_flag_too(tmp_path: Path, fixed: Any) -> None:
    """By `bigssl plan`, too, in the same words; nor are steps taken back that were made."""
    out = tmp_path / "run"
    begun(fixed(out), 4)
    changed = fixed(out, lr=0.02).model_copy(update={"seed": 1})
    with pytest.raises(ConfigError, match=r"seed: 0 before, 1 now\).*seed never changes in a run: the order") as caught:
        preflight.plan(changed, 1, ["seed", "optim.lr"])
    failures = draft(changed, 1, per_node=8, device_bytes=None, change=["seed", "optim.lr"]).failures
    assert failures == [str(caught.value)]
    with pytest.raises(ConfigError, match="steps: value 3, but .* holds a run that has made 4; allowed: >= 4"):
        preflight.plan(fixed(out, steps=3), 1, ["steps"])


def test_a_scheduled_task_is_made_longer_when_asked_for(tmp_path: Path, recipe: Any) -> None:
    """And says what that means; unasked it is refused, whatever the schedule of the rate."""
    shape: dict[str, Any] = {"objective": BYOL, "optim": {"schedule": "constant"}}
    plan = preflight.plan(recipe(tmp_path / "run", steps=4, **shape), 1)
    attention = plan.backbones["image"].model.config._attn_implementation
    image = recipe().backbones["image"].model_dump() | {"attention": attention}
    shape["backbones"] = {"image": image}
    begun(recipe(tmp_path / "run", steps=4, **shape), 4)
    longer = recipe(tmp_path / "run", steps=8, **shape)
    with pytest.raises(ConfigError, match="steps: value 8, .*byol changes its loss .*`--change steps`") as caught:
        preflight.plan(longer, 1)
    assert draft(longer, 1, per_node=8, device_bytes=None).failures == [str(caught.value)]
    (note,) = preflight.plan(longer, 1, ["steps"]).notes
    assert "after step 4 of 8, where it was as after step 4 of 4" in note
    assert note in draft(longer, 1, per_node=8, device_bytes=None, change=["steps"]).notes
