"""A first try without a checkpoint blocks nothing and leaves nothing behind; what is no run is not written into."""

from __future__ import annotations

import resource
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe, dump_recipe
from bigssl.engine import guards, resume
from bigssl.engine.guards import NotSaved
from bigssl.engine.plan import folder, preflight
from bigssl.objectives import simclr
from bigssl.report import environment
from bigssl_kernels import nt_xent

DEMO = Path(preflight.__file__).parents[2] / "demo" / "emoji" / "train"
DATA = {"workers": 0, "ledger": True, "sources": {"emoji": {"url": str(DEMO)}}}


def names(place: Path) -> list[str]:
    found = sorted(path.relative_to(place) for path in place.rglob("*") if path.is_file())
    return [str(path) for path in found if path.parts[0] not in ("tensorboard", "checkpoints", "first-try-1")]


def failed(train: Any, recipe: Any) -> None:
    """A loss that is no number in the third step: metrics, ledger, events and a note are there, and no checkpoint."""
    passes = iter(range(100))

    def poisoned(first: Any, *others: Any, **options: Any) -> Any:
        return nt_xent(first, *others, **options) * (float("nan") if next(passes) == 2 else 1.0)

    simclr.nt_xent = poisoned
    with pytest.raises(guards.NonFiniteLoss):
        train(recipe)


def test_a_corrected_recipe_begins_anew_where_the_first_try_failed(
    tmp_path: Path, ranks: Any, recipe: Any, train: Any, curve: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    first = recipe(run, data=DATA, optim={"lr": 0.5}, batch={"size": 16}, checkpoint={"every": 6})
    ranks(failed, 1, train, first)
    assert {"metrics.jsonl", "ledger-rank0.jsonl", "nonfinite-rank0.txt", "config.yaml"} <= set(names(run))
    (run / "checkpoints" / "step-00000003.tmp" / "state").mkdir(parents=True)  # a kill while it saved
    (run / "report.html").write_text("of the first try")
    (run / "skipped.jsonl").write_text('{"step": 1, "source": "emoji", "sample": "1", "cause": "bad"}\n')
    (run / "mine.txt").write_text("a note of the user")
    corrected = {"data": DATA, "steps": 3, "optim": {"lr": 0.01, "warmup": 2}, "batch": {"size": 8}}
    ranks(train, 1, recipe(run, **corrected))
    said = capfd.readouterr().err
    assert f"begins anew: {run} held no checkpoint; moved to first-try-1: config.yaml, environment.json, " in said
    aside = run / "first-try-1"
    assert {"metrics.jsonl", "ledger-rank0.jsonl", "nonfinite-rank0.txt", "config.yaml"} <= set(names(aside))
    assert (aside / "report.html").read_text() == "of the first try", "nothing is lost"
    last = (run / "checkpoints" / "latest").read_text()
    assert last == "step-00000003\n", "the final one is written, though none is due"
    ranks(train, 1, recipe(tmp_path / "fresh", **corrected))
    assert "begins anew" not in capfd.readouterr().err
    assert curve(run) == curve(tmp_path / "fresh")
    for name in ("ledger-rank0.jsonl", "losses.json"):
        assert (run / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    assert names(run) == sorted([*names(tmp_path / "fresh"), "mine.txt"])
    assert len(list((run / "tensorboard").iterdir())) == 1 and not list(run.rglob("*.tmp"))
    with pytest.raises(ConfigError, match="holds a run with another recipe"):
        preflight.plan(first, 1)


def test_what_a_run_writes_is_known_by_name(tmp_path: Path, ranks: Any, recipe: Any, train: Any) -> None:
    """A new file of a run must not outlive a first try of it."""
    ranks(failed, 1, train, recipe(tmp_path / "run", data=DATA, checkpoint={"every": 6}))
    assert folder.clear(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"first-try-1", ".lock"}
    folder.refuse_foreign(recipe(tmp_path / "run"))


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ("src/main.py", r"holds src, and no run; allowed: a new or empty folder, for example out=\S+/run/tiny"),
        ("checkpoints/model.pt", "holds checkpoints, and no run"),
        ("picture.png", "holds picture.png, and no run"),
        ("config.yaml", "holds config.yaml, and no run"),  # a recipe, too
        ("environment.json", "holds environment.json, and no run"),
        ("export/image/config.json", "holds export of a run whose checkpoints are gone, which this run would write"),
        ("scorecard.json", "holds scorecard.json of a run whose checkpoints are gone"),
        ("run.log", ""),
        ("my.yaml", ""),
        (".gitkeep", ""),
    ],
)
def test_what_is_no_first_try_is_not_written_into(there: str, words: str, tmp_path: Path, recipe: Any) -> None:
    """An export also not where the recipe is the one that made it."""
    path = tmp_path / "run" / there
    path.parent.mkdir(parents=True)
    used = recipe(tmp_path / "run")
    path.write_text(dump_recipe(used) if there == "config.yaml" else "{}")
    if words:
        assert not folder.clear(tmp_path / "run") and path.exists()
    if not words:
        folder.refuse_foreign(used)
        return
    with pytest.raises(ConfigError, match=words):
        folder.refuse_foreign(used)


def recorded(recipe: Recipe, steps: int) -> Path:
    """The folder of a run that has logged `steps` steps."""
    environment.record(recipe.folder)
    (recipe.folder / "config.yaml").write_text(dump_recipe(recipe))
    (recipe.folder / "metrics.jsonl").write_text("".join(f'{{"step": {n + 1}, "loss": 1.0}}\n' for n in range(steps)))
    return recipe.folder


def test_checkpoints_out_of_reach_are_no_first_try(tmp_path: Path, recipe: Any) -> None:
    """A disk that is not mounted, a folder that was moved: not one byte is touched, whatever the recipe is now."""
    run = recipe(tmp_path / "run", checkpoint={"every": 4})
    now = recipe(tmp_path / "run", checkpoint={"every": 1000})
    place = recorded(run, 3) / "checkpoints"
    folder.refuse_foreign(now)
    recorded(run, 4)
    with pytest.raises(ConfigError, match="holds none, but .* reaches step 4, and the first was due after 4"):
        folder.refuse_foreign(now)
    place.mkdir()  # by an attempt to save that failed
    folder.refuse_foreign(now)
    recorded(run, 5)
    with pytest.raises(ConfigError, match="holds none, but .* reaches step 5.* allowed: the same folder with them"):
        folder.refuse_foreign(now)
    place.rmdir()
    recorded(run, 0)
    place.symlink_to(tmp_path / "not-mounted")
    with pytest.raises(ConfigError, match="checkpoints is no folder .a link that leads nowhere"):
        folder.refuse_foreign(now)


def test_a_disk_without_room_for_the_recipe_is_one_line_and_blocks_nothing(
    tmp_path: Path, ranks: Any, recipe: Any, train: Any
) -> None:
    (said,) = ranks(refused, 1, train, recipe(tmp_path / "run", steps=2, optim={"lr": 0.01}))
    run = tmp_path / "run"
    assert said.startswith(f"out: {run} cannot be written to (disk full: {run}/environment.json, needs ")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    ranks(train, 1, recipe(tmp_path / "run", steps=2, optim={"lr": 0.02}))


def refused(train: Any, recipe: Any) -> str:
    """What the run ends with where the system lets no file of it grow beyond 100 bytes."""
    clear = resume.clear

    def full(place: Path) -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        return clear(place)

    resume.clear = full
    try:
        with pytest.raises(NotSaved) as caught:
            train(recipe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return str(caught.value)


def test_checkpoints_that_are_there_take_no_new_room(
    tmp_path: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fitted when it began goes on; one that is done needs nothing more."""
    objective = preflight.plan(recipe(), 1).objective
    size = folder.room(objective, recipe())["checkpoint"]
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(size + 1000))
    run = recipe(tmp_path / "run")  # keeps 2, a third while it is written
    with pytest.raises(ConfigError, match=r"checkpoint.keep: 3 checkpoints .*; smallest change: out=FOLDER"):
        folder.check_room(run, folder.room(objective, run))
    for step in (2, 4):
        place = tmp_path / "run" / "checkpoints" / f"step-{step:08d}"
        place.mkdir(parents=True)
        (place / "state").write_bytes(bytes(size))
    folder.check_room(run, folder.room(objective, run))
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0))
    with pytest.raises(ConfigError, match="has 0.00 free and .* in those of this run"):
        folder.check_room(run, folder.room(objective, run))
    place.rename(place.with_name("step-00000006"))
    folder.check_room(run, folder.room(objective, run))
