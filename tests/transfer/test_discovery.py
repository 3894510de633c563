"""An evaluation is one file: nothing else knows of it, and recipe, check, scorecard, report and probe take it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe, load_recipe, recipe_model
from bigssl.engine.plan import preflight
from bigssl.objectives.base import config_union
from bigssl.report.html import write_report
from bigssl.transfer import tasks
from bigssl.transfer.discovery import discover_evaluations, evaluation_union
from bigssl.transfer.inputs import ImageInput
from bigssl.transfer.probe import LiveProbe
from bigssl.transfer.scorecard import format_table, score
from bigssl.transfer.subjects import Live, Subject
from bigssl.transfer.team import Team

ROOT = Path(__file__).parents[2]
FILE = '''
"""How far features are from those of their own mean."""
from bigssl.config.evaluate import Evaluation, Metadata
from bigssl.transfer.scores import Score

class Spread(Evaluation):
    """Squared distance from the mean."""
    backbone: str = "image"
    label: Metadata

    def check(self, seen):
        seen.samples("queries", seen.backbone("backbone", "image"), "label")

    def run(self, bench):
        found = bench.encode(bench.subject(self.backbone), self.queries, limit=self.query_limit, field="queries",
                             columns=self.metadata())
        means = bench.means(found.matrices)
        rows = bench.team.share(len(found))
        def far(name):
            pieces = [piece for _, piece in found.matrices[name].pieces(rows)]
            return (pieces[0] - means[name]).square().mean(1)
        values = {name: bench.hits(lambda: far(name)) for name in found.matrices}
        return [Score(f"spread {row}", "from the mean", values, found.column(self.label), unit="squares",
                      higher_is_better=row == "up", row=row) for row in ("up", "down")]
'''


@pytest.fixture
def new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "spread.py").write_text(FILE)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path / "more")])
    discover_evaluations.cache_clear()
    yield
    discover_evaluations.cache_clear()
    sys.modules.pop("bigssl.transfer.tasks.spread", None)


@pytest.mark.parametrize("shared", ["Base", "_Base"])
def test_a_file_defines_one_evaluation(shared: str, new_file: None, tmp_path: Path) -> None:
    """Of two the last would win, without a word."""
    path = tmp_path / "more" / "spread.py"
    path.write_text(FILE.replace("class Spread(Evaluation)", f"class {shared}(Evaluation):\n    pass\n\n"
                                                             f"class Spread({shared})"))  # fmt: skip
    if shared == "_Base":
        assert discover_evaluations()["spread"].__name__ == "Spread"
    else:
        with pytest.raises(ValueError, match=r"spread.py: 2 classes of Evaluation, Base, Spread; allowed: one, and"):
            discover_evaluations()


def recipe(*overrides: str) -> Recipe:
    model = recipe_model(config_union(), evaluation_union())
    return load_recipe(ROOT / "launch/recipes/demo.yaml", ["out=no/run/there", *overrides], model)


def test_a_new_file_is_all(
    new_file: None, run: Path, shards: Path, make_model: Callable[..., PreTrainedModel], monkeypatch: Any
) -> None:
    monkeypatch.chdir(ROOT)
    section = "{task: spread, queries: bigssl/demo/emoji/val, label: categry}"
    for place in (f"evaluate.far={section}", f"probe.far={section}"):
        with pytest.raises(ConfigError, match="far.label: value 'categry' is not in .*; nearest: category"):
            preflight.plan(recipe(place), 1)
    asked = {"far": recipe(f"evaluate.far={section}").evaluate["far"].model_copy(  # type: ignore[index]
        update={"queries": str(shards / "val"), "label": "category"})}  # fmt: skip
    card = score(run, asked, seed=0)
    up, down = card["tasks"]["far/up"], card["tasks"]["far/down"]
    assert up["trained"] == down["trained"] > 0 and up["trained_beats_raw"] != down["trained_beats_raw"]
    assert "squares" in format_table(card) and "spread down" in write_report(run).read_text()
    live = Live([Subject("image", {"trained": make_model("resnet")}, ImageInput(32), 16)])
    probe = LiveProbe(asked, live, team=Team(), seed=0, device="cpu")
    probe.prepare()
    found = {name: value for name, value in probe().items() if name.startswith("probe/")}
    assert found == pytest.approx({"probe/far/up": up["trained"], "probe/far/down": up["trained"]}, rel=1e-4)
