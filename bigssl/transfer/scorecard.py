"""What a pretrained network is worth, beside what costs no pretraining. Writes `scorecard.json` of a run:

    version, run, seed, device, seconds
    verdicts            {task or loss: passed}
    tasks               {task: {...}}; task is images.knn, images.retrieval, text.knn, zero_shot.names,
                        class_mean.captions; each with
        title, sentence, verdict       for people
        trained, stderr                share of queries that are right (0 to 1) and its standard error
        chance, majority, random_net, raw   the same for the baselines; null where a baseline makes no sense
        raw_name                       what raw is: raw pixels (flattened), their class means over the labelled
                                       pictures of the captions, or TF-IDF bag of words
        gains                          {baseline: {difference, stderr}} of trained over it, paired by query
        trained_beats_BASELINE, raw_beats_random_net   bools, by the plain difference
        passed                         trained is above chance and every baseline
        queries, classes, bank, gallery, k   sizes and settings
    losses              {"language": {...}}: losses on held-out data, see `bigssl.transfer.tasks.language`
    health              {backbone: {trained | random_net: {std, rankme}}}, see `bigssl.transfer.collapse`
    notes               how it was measured, in sentences

The random network is the exported architecture with fresh weights from the seed of the run. Where it has BatchNorm,
its running statistics are first set from unlabelled images of the bank (or of the captions), never of the queries; the
trained network keeps its own. Judged with the statistics of an untrained module it would lose for want of bookkeeping.
Dense features are centred by the mean of the bank before every cosine, alike for trained, random and raw ones.

All ranks take part (`bigssl.transfer.bench` says how, and what memory it takes); the main one writes.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from bigssl.config.evaluate import EvalImages, EvalLanguage, EvalText, Evaluate, EvalZeroShot
from bigssl.data.shards.index import DatasetIndex
from bigssl.files import write_atomic
from bigssl.nets.norm import has_batch_norm
from bigssl.transfer import export
from bigssl.transfer.baselines import calibrate_batch_norm, random_network
from bigssl.transfer.bench import Bench, Networks, Task
from bigssl.transfer.features import RAW_SIDE, image_batches, read_samples
from bigssl.transfer.inputs import TextInput, image_size, text_input
from bigssl.transfer.matrix import Scratch
from bigssl.transfer.tasks.images import images
from bigssl.transfer.tasks.language import masked_words
from bigssl.transfer.tasks.text import texts
from bigssl.transfer.tasks.zero_shot import zero_shot
from bigssl.transfer.team import Team

FILE = "scorecard.json"
VERSION = 1
CALIBRATION_BATCHES = 8
COLUMNS = ("chance", "majority", "random_net", "raw", "trained")
HEADINGS = ("task", "chance", "majority", "random net", "raw", "trained", "verdict")
NOTES = {
    "pairs": "± is one standard error of the paired difference; queries that show the same item count as one.",
    "centre": "Network features and raw pixels are centred by the mean of the bank before each cosine, all alike.",
    "norm": "The random network's BatchNorm statistics were set from unlabelled images that are no queries.",
    "raw": f"Raw pixels are those of pictures at most {RAW_SIDE} pixels a side.",
}


def score(
    run_folder: Path, evaluate: Evaluate, *, seed: int, device: str | torch.device = "cpu", team: Team | None = None
) -> dict[str, Any]:
    """Evaluates `run_folder/export` as the recipe's `evaluate` section says; writes and returns the scorecard.

    A collective of all ranks: each gets the same card, but for the seconds.

    Args:
        team: the ranks, where they have met before.
    Raises:
        DataError, OSError: an export, shard, metadata field or class that is needed is not there, or a file cannot be
            read or written; of several ranks, AgreedError on each.
    """
    start, folder, team = time.monotonic(), Path(run_folder), team or Team()
    team.gather(lambda: export.recover(folder) if team.rank == 0 else None)
    with Scratch(folder, team) as scratch:
        judged = _Judged(folder, evaluate, seed, Bench(team, scratch, evaluate.batch, device))
        if evaluate.images is not None:
            judged.images(evaluate.images)
        if evaluate.text is not None:
            judged.text(evaluate.text)
        if evaluate.language is not None:
            judged.language(evaluate.language)
        if evaluate.zero_shot is not None:
            judged.zero_shot(evaluate.zero_shot)
    card = {
        "version": VERSION, "run": folder.resolve().name, "seed": seed, "device": str(device),
        "seconds": round(time.monotonic() - start, 1),
        "verdicts": {name: task["passed"] for name, task in (judged.tasks | judged.losses).items()},
        "tasks": judged.tasks, "losses": judged.losses, "health": judged.health, "notes": judged.notes(),
    }
    team.gather(lambda: _write(folder / FILE, card) if team.rank == 0 else None)
    return card


def _write(path: Path, card: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(card, indent=1, allow_nan=False) + "\n").encode())


class _Judged:
    """Collects tasks; loads each exported network, and its random counterpart, once."""

    def __init__(self, run_folder: Path, evaluate: Evaluate, seed: int, bench: Bench) -> None:
        self.folder = run_folder / export.FOLDER
        self.evaluate, self.seed, self.bench = evaluate, seed, bench
        self.tasks: dict[str, Task] = {}
        self.losses: dict[str, Task] = {}
        self.health: dict[str, dict[str, dict[str, float]]] = {}
        self.shown = ["pairs", "centre"]
        self._networks: dict[str, Networks] = {}

    def notes(self) -> list[str]:
        return [NOTES[name] for name in self.shown] + self.bench.notes

    def _pair(self, backbone: str, pictures: str | None = None) -> Networks:
        """Trained and random network of a backbone; `pictures`: shards for the latter's BatchNorm, no queries."""
        if backbone not in self._networks:
            self._networks[backbone] = self.bench.team.each(lambda: self._load(backbone, pictures))
        return self._networks[backbone]

    def _load(self, backbone: str, pictures: str | None) -> Networks:
        trained = export.load_backbone(self.folder / backbone)
        fresh = random_network(trained.config, self.seed)
        if pictures is not None and has_batch_norm(fresh):
            size, batch = image_size(self.folder / backbone), self.evaluate.batch
            samples = read_samples(DatasetIndex.load(pictures), CALIBRATION_BATCHES * batch)
            calibration = (each.pixels for each in image_batches(samples, size=size, batch=batch))
            calibrate_batch_norm(fresh, calibration, self.bench.device)
            self.shown.append("norm")
        return Networks(trained, fresh)

    def _size(self, backbone: str) -> int:
        return self.bench.team.each(lambda: image_size(self.folder / backbone))

    def _words(self, backbone: str) -> TextInput:
        return self.bench.team.each(lambda: text_input(self.folder / backbone))

    def _head(self, name: str) -> dict[str, torch.Tensor]:
        return self.bench.team.each(lambda: export.load_heads(self.folder / "heads" / f"{name}.safetensors"))

    def images(self, settings: EvalImages) -> None:
        networks = self._pair(settings.backbone, settings.bank)
        size = self._size(settings.backbone)
        self.shown += ["raw"] if size > RAW_SIDE else []
        found, self.health[settings.backbone] = images(self.bench, networks, size, settings)
        self.tasks |= found

    def text(self, settings: EvalText) -> None:
        networks, words = self._pair(settings.backbone), self._words(settings.backbone)
        found, self.health[settings.backbone] = texts(self.bench, networks, words, settings)
        self.tasks |= found

    def language(self, settings: EvalLanguage) -> None:
        networks, words = self._pair(settings.backbone), self._words(settings.backbone)
        head = self._head(settings.head)
        self.losses["language"] = masked_words(self.bench, networks, words, head, settings, seed=self.seed)

    def zero_shot(self, settings: EvalZeroShot) -> None:
        pictures = self._pair(settings.image_backbone, settings.captions)
        known = self.evaluate.images
        item = known.pair if known is not None and known.queries == settings.queries else None
        self.tasks |= zero_shot(
            self.bench, pictures, self._pair(settings.text_backbone), self._size(settings.image_backbone),
            self._words(settings.text_backbone), self._head(settings.heads), settings, seed=self.seed, item=item,
        )  # fmt: skip


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def format_table(card: dict[str, Any]) -> str:
    """The scorecard as aligned plain text, one row per task, and the notes below it."""
    rows = [HEADINGS]
    rows += [(task["title"], *(_percent(task[name]) for name in COLUMNS), task["verdict"])
             for task in card["tasks"].values()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    last = len(HEADINGS) - 1
    lines = ["  ".join(cell.ljust(width) if i in (0, last) else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([*lines, *(loss["sentence"] for loss in card["losses"].values()), *card["notes"]])
