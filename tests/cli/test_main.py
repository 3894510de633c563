"""The `bigssl` command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from inspect import getdoc
from pathlib import Path

import pytest
import yaml

from bigssl.cli.main import COMMANDS, GROUPS, main

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_help_is_there_at_once() -> None:
    """No command's own imports: torch and transformers take seconds."""
    code = "import sys; from bigssl.cli.main import main; main(['--help']); main(['shards', '--help'])"
    code += "; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Score a trained run or any network" in shown and "Sizes, lengths, duplicates" in shown
    assert not {"torch", "transformers", "deepspeed", "numpy", "webdataset", "fsspec"} & set(shown.split())


def test_a_rank_does_not_import_what_it_may_never_use() -> None:
    """A tenth of its start: figures and the tests of statistics."""
    code = "import sys, bigssl.train as t; t.config_union(); t.evaluation_union(); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(shown.split())
    assert "bigssl.transfer.steps.detectors" in loaded
    assert not {"matplotlib", "scipy.stats", "scipy.signal"} & loaded


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_has_help(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*path.split(), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Usage: bigssl {path}" in shown and COMMANDS[path][1].split(".")[0][:30] in shown
    file, name = COMMANDS[path][0].split(":")
    said = getdoc(getattr(import_module(f"bigssl.cli.{file}"), name)) or ""
    assert " ".join(said.partition("Args:")[0].split()) in shown, "what the function says, in full"


@pytest.mark.parametrize("words", [[], *([name] for name in GROUPS)], ids=str)
def test_without_a_command_they_are_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    shown, said = capsys.readouterr()
    below = {path.split()[len(words)] for path in COMMANDS if path.split()[: len(words)] == words}
    assert not shown and set(re.findall(r"\w+", said.split("allowed: ")[1].split(".")[0])) == below
    assert said.endswith(f"See {' '.join(['bigssl', *words, '--help'])}\n") and said.count("\n") == 1


@pytest.mark.parametrize("text", ["1.5", "2.0", "0x10", "1e3", "none", "two", ""])
@pytest.mark.parametrize("command", [
    "plan --config x --world", "plan --config x --world 2 --ranks-per-node", "config check x --world",
    "shards replay --steps", "shards replay --steps 1 --world", "shards replay --steps 1 --workers",
    "shards replay --steps 1 --from", "shards replay --steps 1 --batch", "shards replay --steps 1 --seed",
    "shards replay --steps 1 --lanes", "shards replay --steps 1 --window", "shards pack a b --seed",
    "shards pack a b --window", "shards pack a b --stride", "shards pack a b --jobs", "shards pack a b --shard-size",
    "shards split a b --seed", "shards stats a --min-text", "shards inspect a --samples",
    "tokenizer train a b --vocab-size",
])  # fmt: skip
def test_what_is_no_whole_number_is_not_rounded(command: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), text]) == 2
    said = capsys.readouterr().err
    assert f"Invalid value for {command.split()[-1]}: {text!r}; allowed: a whole number. See bigssl" in said


def test_an_option_that_may_be_left_out_does_not_take_none(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("plan --config x --world 2 --memory none", "shards pack a b --as none"):
        assert main(words.split()) == 2
        assert "nvalid value" in (said := capsys.readouterr().err) and "none" in said


def test_schema_lists_every_objective_with_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    mapping = schema["properties"]["objective"]["discriminator"]["mapping"]
    assert set(mapping) >= {"simclr", "mlm", "clip", "joint"}
    simclr = schema["$defs"][mapping["simclr"].rsplit("/", 1)[-1]]
    assert simclr["additionalProperties"] is False and "temperature" in simclr["properties"]


def test_check_prints_what_a_recipe_means(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "check", "launch/recipes/demo.yaml", "--world", "2", f"out={tmp_path}"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("fits: 2 ranks x 1 passes x 128 samples; samples a step: ") and out.count("\n") == 1
    assert "256 of the 3,078 of emoji" in out and not err


def test_check_names_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "check", "launch/recipes/demo.yaml", "--world", "3", f"out={tmp_path}"]) == 2
    assert "batch.size: value 256" in capsys.readouterr().err


def test_a_run_is_not_judged_on_what_it_was_trained_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Its section was edited after the run; the training data of one source is gone."""
    recipe = yaml.safe_load(Path("launch/recipes/demo.yaml").read_text())
    recipe["evaluate"]["captions"]["queries"] = "bigssl/demo/text/train"
    recipe["data"]["sources"]["captions"]["url"] = "bigssl/demo/gone"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "export" / "text").mkdir(parents=True)
    (tmp_path / "export" / "text" / "config.json").write_text('{"model_type": "bert"}')
    assert main(["evaluate", str(tmp_path)]) == 2
    gone, refused = capsys.readouterr().err.splitlines()
    assert gone.startswith("bigssl: not checked whether what is judged was trained on: data.sources.captions.url")
    for words in ("evaluate.captions.queries", "shards are trained on", "data.sources.text"):
        assert words in refused


def test_report_wants_a_run_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
