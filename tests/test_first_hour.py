"""The commands of README's "Your own data in four commands", as they stand there, typed by a newcomer who has such
data: from nothing to a scorecard, or to an early no that helps."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image, ImageDraw
from transformers import AutoModel, AutoTokenizer

from bigssl import train
from bigssl.cli.main import main
from bigssl.exits import DONE

ROOT = Path(__file__).parents[1]
SIDE = 24  # pixels
SHAPES: dict[str, Callable[..., Any]] = {
    "circles": lambda on, box, colour: on.ellipse(box, fill=colour),
    "squares": lambda on, box, colour: on.rectangle(box, fill=colour),
    "lines": lambda on, box, colour: on.line(box, fill=colour, width=3),
}


def journey(first: str) -> list[str]:
    """The commands of the block that begins with `first`."""
    text = (ROOT / "README.md").read_text()
    (part,) = re.findall(r"^## Your own data in four commands\n(.*?)(?=^## )", text, flags=re.M | re.S)
    blocks = re.findall(r"^```bash\n(.*?)^```", part, flags=re.M | re.S)
    assert len(blocks) == 4 and all(block.count("\n") <= 4 for block in blocks)
    (found,) = [block for block in blocks if block.startswith(first)]
    return found.splitlines()  # type: ignore[no-any-return]


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Walk = Callable[..., list[Answer]]


@pytest.fixture
def walk(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], ranks: Any) -> Walk:
    """walk(commands, folder, by_launcher): what each answered, typed one after the other in `folder`. Training is a
    process of the shell's, as a newcomer's, or the one rank that it would start; the others are called here, where
    their imports are paid for once."""

    def walked(commands: list[str], folder: Path, by_launcher: bool = False) -> list[Answer]:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "200")
        return [typed(each) if by_launcher and each.startswith("bigssl train ") else within(each) for each in commands]

    def within(command: str) -> Answer:
        name, *words = shlex.split(command, comments=True)
        assert name == "bigssl"
        (code,) = ranks(train.main, 1, ["--config", *words[1:]]) if words[0] == "train" else [main(words)]
        return Answer(code, *capfd.readouterr())

    return walked


def typed(command: str) -> Answer:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, f"{command}\n{done.stderr[-3000:]}"
    return Answer(done.returncode, done.stdout, done.stderr)


def scored(answers: list[Answer], run: Path) -> dict[str, Any]:
    """The tasks of the scorecard with which the training ended, the second command, which it printed as a table."""
    for answer in answers:
        assert answer.code == DONE, answer.err
    said = answers[1].out
    assert re.search(r"^task +chance +blind +random net +raw +trained +verdict$", said, flags=re.M), said
    tasks: dict[str, Any] = json.loads((run / "scorecard.json").read_text())["tasks"]
    for task in tasks.values():
        (line,) = [line for line in said.splitlines() if line.startswith(f"{task['title']}  ")]
        assert task["verdict"] in line and task["queries"] >= 10
        if task["unit"] == "share":
            shown = [numbers(task[name], task["std"].get(name)) for name in ("random_net", "raw", "trained")]
            assert re.search(" +".join(map(re.escape, shown)), line), (shown, line)
    assert f"report: runs/{run.name}/report.html" in said and (run / "report.html").stat().st_size > 9999
    return tasks


def numbers(share: float, std: float | None) -> str:
    return f"{100 * share:.1f}" + (f" ± {100 * std:.1f} %" if std is not None else " %")


def picture(shape: str, draw: random.Random) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), tuple(draw.randrange(180, 256) for _ in range(3)))
    left, top, size = draw.randrange(2, 8), draw.randrange(2, 8), draw.randrange(9, 14)
    colour = tuple(draw.randrange(150) for _ in range(3))
    SHAPES[shape](ImageDraw.Draw(image), (left, top, left + size, top + size), colour)
    return image


def test_pictures_in_class_folders_lead_to_a_few_label_curve(tmp_path: Path, walk: Walk) -> None:
    draw = random.Random(0)
    for number in range(90):
        shape = list(SHAPES)[number % 3]
        (tmp_path / "photos" / shape).mkdir(parents=True, exist_ok=True)
        picture(shape, draw).save(tmp_path / "photos" / shape / f"IMG {number:04d}.jpg")
    answers = walk(journey("bigssl init simclr photos"), tmp_path, by_launcher=True)
    tasks = scored(answers, tmp_path / "runs" / "photos-simclr")
    assert tasks["knn"]["classes"] == 3 and tasks["knn"]["bank"] + tasks["knn"]["queries"] == 90
    assert "3 classes" in answers[0].out + answers[0].err
    run = tmp_path / "runs" / "photos-simclr"
    assert AutoModel.from_pretrained(run / "export" / "image").config.model_type in (
        tmp_path / "photos-simclr.yaml").read_text()
    there, said = run / "evaluations" / "001", answers[2].out
    (row,) = json.loads((there / "scorecard.json").read_text())["tasks"].values()
    assert len(answers) == 3 and f"few labels: {row['title']}\nsamples with labels" in said
    assert [point["fraction"] for point in row["curve"]] == [0.01, 0.1, 1.0] and row["curve"][-1]["samples"] > 60
    for point in row["curve"]:
        shown = [numbers(point["means"][name], point["stds"][name]) for name in ("random_net", "raw", "trained")]
        line = rf"^{100 * point['fraction']:g} % \({point['samples']}\) +" + " +".join(map(re.escape, shown)) + "$"
        assert re.search(line, said, flags=re.M), (line, said)
    page = (there / "report.html").read_text()
    assert "<h2>Few labels</h2>" in page and f"report: runs/{run.name}/evaluations/001/report.html" in said


def test_a_table_of_pictures_and_classes(tmp_path: Path, walk: Walk) -> None:
    draw = random.Random(1)
    (tmp_path / "shop" / "images").mkdir(parents=True)
    with (tmp_path / "shop" / "items.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "file", "price", "kind"])
        for number in range(72):
            shape = list(SHAPES)[number % 3]
            picture(shape, draw).save(tmp_path / "shop" / "images" / f"{number}.png")
            table.writerow([number, f"images/{number}.png", draw.randrange(1, 99), shape])
    tasks = scored(walk(journey("bigssl init byol shop"), tmp_path), tmp_path / "runs" / "items-byol")
    assert tasks.keys() == {f"{task}_{name}" for task in ("knn", "linear") for name in ("image", "image_teacher")}
    assert all(task["classes"] == 3 for task in tasks.values())
    assert tasks["knn_image_teacher"]["bank"] + tasks["knn_image_teacher"]["queries"] == 72


def test_chinese_texts(tmp_path: Path, walk: Walk) -> None:
    draw = random.Random(2)
    what = ["房间", "早餐", "服务", "位置", "价格", "前台"]
    how = {"好": ["很干净", "特别热情", "让人满意", "非常方便"], "差": ["又脏又旧", "特别冷淡", "让人失望", "太不方便"]}
    with (tmp_path / "reviews.jsonl").open("w") as file:
        for number in range(160):
            label = list(how)[number % 2]
            parts = [draw.choice(["这家的", "我们的", "他们的", ""]) + draw.choice(what) + draw.choice(how[label])
                     for _ in range(draw.randrange(2, 5))]  # fmt: skip
            line = {"id": number, "review": "，".join(parts) + "。", "label": label}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    answers = walk(journey("bigssl init mlm reviews"), tmp_path)
    tasks = scored(answers, tmp_path / "runs" / "reviews-mlm")
    assert tasks["language"]["trained"] < tasks["language"]["blind"] < tasks["language"]["random_net"]
    assert tasks["knn"]["classes"] == 2 and tasks["knn"]["raw"] > 0.6
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "runs" / "reviews-mlm" / "export" / "text")
    assert tokenizer.unk_token_id not in tokenizer("早餐让人失望，前台特别热情。")["input_ids"]


def test_a_table_of_sensors(tmp_path: Path, walk: Walk) -> None:
    with (tmp_path / "sensors.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["time", "temperature", "load"])
        for minute in range(3000):
            time = f"2024-01-{1 + minute // 1440:02d} {minute // 60 % 24:02d}:{minute % 60:02d}"
            table.writerow([time, f"{20 + 5 * math.sin(minute / 50):.3f}", f"{abs(math.cos(minute / 90)):.3f}"])
    packed, made, trained, judged = answers = walk(journey("bigssl shards pack sensors"), tmp_path)
    assert [each.code for each in answers] == [DONE] * 4, answers[-1].err
    assert "no row on both sides" in packed.out + packed.err and "sensors/train: 29 samples" in packed.out
    assert "29 samples with series (steps 96, channels 2), 4 held out" in made.out + made.err
    (below,) = re.findall(r"loss: ([\d.]+) squared deviations below its blind line", trained.out + trained.err)
    assert float(below) > 0.5
    there = tmp_path / "runs" / "sensors-masked_series" / "evaluations" / "001"
    tasks = json.loads((there / "scorecard.json").read_text())["tasks"]
    assert tasks["ahead/mse"]["trained"] < tasks["ahead/mse"]["raws"]["last value"] and "last value" in judged.out
