"""What `bigssl plan` counts as a failure, a run refuses to start with, in the same words: place by place."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe, dump_recipe
from bigssl.engine.plan import checks, order, preflight
from bigssl.engine.plan.checks import draft
from bigssl.nets.constraint import Constraint
from bigssl.objectives.simclr import Simclr

DEMO = Path(checks.__file__).parents[2] / "demo" / "emoji"
Make = Callable[[Path, Any, pytest.MonkeyPatch], Recipe]


def begun(folder: Path, recipe: Any, manifest: str = "", step: int = 5, **stored: Any) -> Recipe:
    """Of a folder in which a run with another recipe has left a checkpoint."""
    place = folder / "run" / "checkpoints" / f"step-{step:08d}"
    place.mkdir(parents=True)
    if manifest:
        (place / "manifest.json").write_text(manifest)
    values = yaml.safe_load(dump_recipe(recipe(folder / "run", optim={"schedule": "constant"})))
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(values | stored))
    return recipe(folder / "run", optim={"schedule": "constant"})


def constrained_twice(folder: Path, recipe: Any, patch: pytest.MonkeyPatch) -> Recipe:
    patch.setattr(Simclr, "constraints", lambda self: [Constraint([next(self.parameters())] * 2, torch.relu)])
    return recipe()


def drawing_from_a_stream(folder: Path, recipe: Any, patch: pytest.MonkeyPatch) -> Recipe:
    patch.setattr(Simclr, "draws_more", True)
    tar = next((DEMO / "train").glob("*.tar.gz"))
    source = {"url": str(tar), "sequential": True, "samples": 100}
    return recipe(data={"workers": 0, "sources": {"emoji": source}})


def with_a_faulty_order(folder: Path, recipe: Any, patch: pytest.MonkeyPatch) -> Recipe:
    patch.setattr(order, "_repeats", lambda *_: 3)
    return recipe()


def on_a_small_disk(folder: Path, recipe: Any, patch: pytest.MonkeyPatch) -> Recipe:
    patch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 10}))
    return recipe()


VIEWS = {"name": "simclr", "source": "emoji", "hidden": 16, "dim": 8}
BALANCED = {"name": "joint", "parts": {"one": VIEWS, "other": VIEWS}, "balance": {"rule": "surgery"}}


def near(**changes: Any) -> dict[str, Any]:
    section = {"task": "knn", "bank": str(DEMO / "val"), "queries": str(DEMO / "val"), "label": "category"}
    return {"near": section | changes}


def source(**changes: Any) -> dict[str, Any]:
    return {"workers": 0, "sources": {"emoji": {"url": str(DEMO / "train"), **changes}}}


def file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file"


def foreign(folder: Path) -> Path:
    (folder / "project" / "src").mkdir(parents=True)
    return folder / "project"


# by the call in checks.py, what makes it fail and what is said then
PLACES: dict[str, tuple[Make, str]] = {
    "resume.taken_over": (lambda f, r, _: begun(f, r, steps="many"), "config.yaml: steps: value 'many'"),
    "split_batch": (lambda f, r, _: r(batch={"size": 8, "micro": 3}), "batch.size: value 8 is not micro 3"),
    "_checked_zero": (lambda f, r, _: r(zero={"options": {"reduce_bucket_sise": 1}}), "nearest: reduce_bucket_size"),
    "folder.check_folder": (lambda f, r, _: r(file(f) / "below"), "cannot be written to"),
    "folder.refuse_foreign": (lambda f, r, _: r(foreign(f)), "holds src, and no run; allowed: a new or empty folder"),
    "preflight.refuse_secrets": (
        lambda f, r, _: r(data=source() | {"remote": {"storage": {"s3": {"secret_key": "wJalrXUtnFEMI"}}}}),
        "data.remote.storage.s3.secret_key: a credential",
    ),
    "resume.refuse_changed_recipe": (lambda f, r, _: begun(f, r, seed=7), "seed: 7 before, 0 now"),
    "OnPaper": (lambda f, r, _: r(backbones={"image": {"type": "detr", "size": 32}}), "not for an image backbone"),
    "resume.notes_of_length": (lambda f, r, _: begun(f, r, steps="many"), "config.yaml: steps: value 'many'"),
    "check_groups": (lambda f, r, _: r(optim={"groups": [{"pattern": "^nobody"}]}), "'^nobody'"),
    "resume.refuse_changed_length": (
        lambda f, r, _: begun(f, r, "{}", steps=9, step=8), "holds a run that has made 8; allowed: >= 8"
    ),
    "check_constraints": (constrained_twice, "is constrained twice; allowed: once"),
    "_evaluation": (lambda f, r, _: r(evaluate=near(backbone="nobody")), "'nobody'"),
    "preflight.check_cache": (lambda f, r, _: r(data=source() | {"remote": {"cache": str(file(f))}}), "remote.cache"),
    "preflight.batch_sizes": (
        lambda f, r, _: r(data={"sources": source()["sources"] | {"more": {"url": "x"}}}), "data.sources.more: not read"
    ),
    "source_order": (lambda f, r, _: r(data=source(batch=100_000)), "a batch would hold one sample twice"),
    "check_cached": (
        lambda f, r, _: r(objective={"name": "byol", "source": "emoji"}, batch={"size": 8, "cached": True}),
        "batch.cached: value true, but the loss of byol",
    ),
    "check_weighing": (
        lambda f, r, _: r(objective=BALANCED, zero={"stage": 3}), "rule: value 'surgery' looks at the gradients"
    ),
    "check_passes": (lambda f, r, _: r(batch={"size": 8, "accum": 8}), "from which simclr learns nothing"),
    "preflight.check_draws": (drawing_from_a_stream, "data.sources.emoji.sequential: value true, but simclr draws"),
    "refuse_unlike_checkpoint": (
        lambda f, r, _: begun(f, r, '{"data": {"emoji": "0"}}'), "step-00000005 has data {'emoji': '0'}"
    ),
    "refuse_seen": (lambda f, r, _: r(evaluate=near(queries=str(DEMO / "train"))), "evaluate.near.queries"),
    "refuse_twice": (with_a_faulty_order, "data.sources.emoji: 3 samples come twice in an epoch"),
    "folder.check_room": (on_a_small_disk, "checkpoint.keep: 3 checkpoints of 0.00 GiB need"),
}  # fmt: skip
ELSEWHERE = {
    "looked.failures": "test_look.py",
    "too_much": "only --memory knows a device before it is there",
    "advise": "only --gpu asks for it (cards/test_advise.py)",
    "[advice.failure] if advice.failure else []": "the same",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_run_refuses_what_its_plan_fails(
    place: str, tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, words = PLACES[place]
    used = make(tmp_path, recipe, monkeypatch)
    with pytest.raises(ConfigError) as caught:
        preflight.plan(used, 1)
    failures = set(draft(used, 1, per_node=8, device_bytes=None).failures)
    assert failures == {str(caught.value)} and words in str(caught.value) and "\n" not in str(caught.value)


def test_every_place_that_adds_to_the_failures_is_tried() -> None:
    """One that comes to `draft` alone would let a run start, hours away, that was known to fail."""
    found = set()
    for node in ast.walk(ast.parse(inspect.getsource(checks))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "attempt":
                found.add(ast.unparse(node.args[0]))
            elif ast.unparse(node.func) == "paper.failures.append":
                assert isinstance(node.args[0], ast.Call)
                found.add(ast.unparse(node.args[0].func))
        elif isinstance(node, ast.AugAssign) and ast.unparse(node.target) == "paper.failures":
            found.add(ast.unparse(node.value))
    assert found == PLACES.keys() | ELSEWHERE.keys()


def test_a_run_that_is_to_wait_for_room_is_warned_of_it(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 10}))
    used = recipe(checkpoint={"every": 2, "on_full": "wait"})
    paper = draft(used, 1, per_node=8, device_bytes=None)
    assert not paper.failures and any("need" in text and "will wait for room" in text for text in paper.warnings)
    preflight.plan(used, 1)
