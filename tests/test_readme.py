"""What the README says is so: exit codes, the smallest recipes, where relative paths begin."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigssl import exits, train
from bigssl.cli.main import main
from bigssl.objectives.base import discover
from bigssl.transfer.discovery import discover_evaluations

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    """What stands below a heading."""
    (found,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## )", README, flags=re.M | re.S)
    return found  # type: ignore[no-any-return]


def smallest() -> dict[str, dict[str, Any]]:
    """The recipes of the README by objective: the first, and the others, which change lines of it."""
    first, others = re.findall(r"^```yaml\n(.*?)^```", section("A run of your own"), flags=re.M | re.S)
    base = yaml.safe_load(first)
    changed = [base, *(base | lines for lines in yaml.safe_load_all(others))]
    found = {recipe["objective"]["name"]: recipe for recipe in changed}
    (said,) = re.findall(r"^(In the place of .*?)\.$", section("A run of your own"), flags=re.M | re.S)
    for of, names in re.findall(r"that of `(\w+)`: (.*?)(?:;|$)", said.replace("the place", "that", 1), flags=re.S):
        found |= {name: found[of] | {"objective": found[of]["objective"] | {"name": name}}
                  for name in re.findall(r"`(\w+)`", names)}  # fmt: skip
    return found


def test_there_is_a_smallest_recipe_of_every_objective() -> None:
    assert smallest().keys() == discover().keys()


@pytest.mark.parametrize("objective", smallest())
def test_the_smallest_recipes_can_be_run(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every check of the pre-flight, with networks that have shapes only; of the first of them with numbers, too."""
    monkeypatch.chdir(ROOT)
    path, out = tmp_path / "first.yaml", f"out={tmp_path / 'run'}"
    path.write_text(yaml.safe_dump(smallest()[objective]))
    assert main(["plan", "--config", str(path), "--world", "1", out]) == exits.DONE, capsys.readouterr()
    if objective == next(iter(smallest())):
        assert main(["config", "check", str(path), out]) == exits.DONE, capsys.readouterr().err


def test_the_table_of_tasks_has_every_evaluation_with_its_fields() -> None:
    """docs/transfer.md: those of its own in its row, those of all and of the repeated above the table."""
    above, below = (ROOT / "docs" / "transfer.md").read_text().split("## Tasks")[1].split("| task |")
    lines = [line.strip("| ").split(" | ") for line in below.split("\n\n")[0].splitlines() if line.startswith("| `")]
    rows = {re.findall(r"`(\w+)`", cells[0])[0]: cells for cells in lines}
    assert rows.keys() == discover_evaluations().keys()
    everyone = set(re.findall(r"`(\w+)[`=]", above))
    for name, kind in discover_evaluations().items():
        own, repeated = set(re.findall(r"`(\w+)`", rows[name][2])), rows[name][0].endswith("*")
        fields = kind.model_fields.keys() - {"task"}
        assert own <= fields <= own | everyone | {"bank_limit", "caption_limit"}, (name, fields - own - everyone)
        assert repeated == ("fractions" in fields), name


def test_the_table_of_exit_codes_is_that_of_the_code() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section("Exit codes").splitlines()
            if re.match(r"\| *\d", line)]  # fmt: skip
    assert {int(code): meaning for code, meaning, _ in rows} == exits.MEANINGS


def test_commands_and_runs_answer_by_these_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """75 and 130 are in tests/test_train.py and tests/cli/test_pack.py, which need processes."""
    monkeypatch.chdir(tmp_path)
    recipe = smallest()["simclr"]
    recipe["data"]["sources"]["pictures"]["url"] = "data/train"
    Path("first.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["config", "check", "first.yaml"]) == exits.REFUSED and "data/train" in capsys.readouterr().err
    assert train.main(["--config", "first.yaml"]) == exits.REFUSED and not Path("runs").exists()
    assert main(["plan", "--config", "first.yaml", "--world", "1"]) == exits.FAILED
    Path("data").symlink_to(ROOT / "bigssl" / "demo" / "emoji")  # relative paths begin in the working directory
    assert main(["plan", "--config", "first.yaml", "--world", "1"]) == exits.DONE


@pytest.mark.parametrize(
    "command",
    [["config", "check", "first.yaml"], ["config", "check", "../first.yaml"], ["shards", "pack", "pictures", "out"],
     ["shards", "stats", "data/train"], ["init", "simclr", "pictures"], ["evaluate", "runs/first"],
     ["tokenizer", "train", "data/train", "tokenizer.json"]],
    ids=" ".join,
)  # fmt: skip
def test_what_is_not_there_is_said_with_the_folder_in_which_it_was_looked_for(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(smallest()["simclr"]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(command) == exits.REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert f" in {tmp_path}/elsewhere" in line and "shards index" not in line
