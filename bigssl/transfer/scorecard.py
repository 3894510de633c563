"""What a pretrained network is worth, beside what costs no pretraining. Writes `scorecard.json` of a run:

    version, run, seed, device, seconds
    verdicts            {task or loss: passed}
    tasks               {task: {...}}; task is images.knn, images.retrieval, text.knn, zero_shot.names,
                        zero_shot.captions; each with
        title, sentence, verdict       for people
        trained, stderr                share of queries that are right (0 to 1) and its standard error
        chance, majority, random_net, raw   the same for the baselines; null where a baseline makes no sense
        raw_name                       what raw is: raw pixels (flattened) or TF-IDF bag of words
        gains                          {baseline: {difference, stderr}} of trained over it, paired by query
        trained_beats_BASELINE, raw_beats_random_net   bools, by the plain difference
        passed                         trained is above chance and every baseline
        queries, classes, bank, gallery, k   sizes and settings
    losses              {"language": {...}}: losses on held-out data, see `bigssl.transfer.language`
    health              {backbone: {trained | random_net: {std, rankme}}}, see `bigssl.transfer.collapse`
    notes               how it was measured, in sentences

The random network is the exported architecture with fresh weights from the seed of the run. Where it has BatchNorm,
its running statistics are first set from unlabelled images of the bank (the trained network keeps its own): judged with
the statistics of an untrained module it would lose for want of bookkeeping. Dense features are centred by the mean of
the bank before every cosine, alike for trained, random and raw ones.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from bigssl.config import EvalImages, EvalLanguage, EvalText, Evaluate, EvalZeroShot
from bigssl.data.index import DatasetIndex
from bigssl.transfer import export, language, tasks
from bigssl.transfer.baselines import calibrate_batch_norm, random_network
from bigssl.transfer.features import image_batches

FILE = "scorecard.json"
VERSION = 1
CALIBRATION_BATCHES = 8
COLUMNS = ("chance", "majority", "random_net", "raw", "trained")
HEADINGS = ("task", "chance", "majority", "random net", "raw", "trained", "verdict")
NOTES = {
    "pairs": "± is one standard error of the paired difference; queries that show the same item count as one.",
    "centre": "Network features and raw pixels are centred by the mean of the bank before each cosine, all alike.",
    "norm": "The random network's BatchNorm statistics were set from unlabelled images before it was judged.",
}


def score(run_folder: Path, evaluate: Evaluate, *, seed: int, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Evaluates `run_folder/export` as the recipe's `evaluate` section says; writes and returns the scorecard.

    Raises:
        DataError: an export, shard, metadata field or class that is needed is not there.
    """
    start = time.monotonic()
    judged = _Judged(Path(run_folder), evaluate, seed, device)
    if evaluate.images is not None:
        judged.images(evaluate.images)
    if evaluate.text is not None:
        judged.text(evaluate.text)
    if evaluate.language is not None:
        judged.language(evaluate.language)
    if evaluate.zero_shot is not None:
        judged.zero_shot(evaluate.zero_shot)
    card = {
        "version": VERSION, "run": Path(run_folder).resolve().name, "seed": seed, "device": str(device),
        "seconds": round(time.monotonic() - start, 1),
        "verdicts": {name: task["passed"] for name, task in (judged.tasks | judged.losses).items()},
        "tasks": judged.tasks, "losses": judged.losses, "health": judged.health, "notes": judged.notes(),
    }
    _write(Path(run_folder) / FILE, card)
    return card


def _write(path: Path, card: dict[str, Any]) -> None:
    staging = path.with_suffix(".json.tmp")
    staging.write_text(json.dumps(card, indent=1, allow_nan=False) + "\n")
    staging.replace(path)


class _Judged:
    """Collects tasks; loads each exported network, and its random counterpart, once."""

    def __init__(self, run_folder: Path, evaluate: Evaluate, seed: int, device: str | torch.device) -> None:
        export.recover(run_folder)
        self.folder = run_folder / export.FOLDER
        self.batch, self.seed, self.device = evaluate.batch, seed, device
        self.item = evaluate.images.pair if evaluate.images is not None else None
        self.tasks: dict[str, dict[str, Any]] = {}
        self.losses: dict[str, dict[str, Any]] = {}
        self.health: dict[str, dict[str, dict[str, float]]] = {}
        self.calibrated = False
        self._networks: dict[str, tasks.Networks] = {}

    def notes(self) -> list[str]:
        return [NOTES["pairs"], NOTES["centre"]] + ([NOTES["norm"]] if self.calibrated else [])

    def _pair(self, backbone: str, calibration: DatasetIndex | None = None, size: int = 0) -> tasks.Networks:
        """Trained and random network of a backbone; `calibration`: images for the latter's BatchNorm."""
        if backbone not in self._networks:
            trained = export.load_backbone(self.folder / backbone)
            fresh: PreTrainedModel = random_network(trained.config, self.seed)
            if calibration is not None:
                limit = CALIBRATION_BATCHES * self.batch
                images = image_batches(calibration, size=size, batch=self.batch, limit=limit)
                self.calibrated |= calibrate_batch_norm(fresh, (b.pixels for b in images), self.device) > 0
            self._networks[backbone] = tasks.Networks(trained, fresh, self.batch, self.device)
        return self._networks[backbone]

    def images(self, settings: EvalImages) -> None:
        networks = self._pair(settings.backbone, DatasetIndex.load(settings.bank), settings.size)
        found, self.health[settings.backbone] = tasks.images(networks, settings)
        self.tasks |= found

    def text(self, settings: EvalText) -> None:
        networks = self._pair(settings.backbone)
        found, self.health[settings.backbone] = tasks.texts(networks, self.folder / settings.backbone, settings)
        self.tasks |= found

    def language(self, settings: EvalLanguage) -> None:
        networks = self._pair(settings.backbone)
        head = export.load_heads(self.folder / "heads" / f"{settings.head}.safetensors")
        self.losses["language"] = language.masked_words(
            networks.trained, networks.random_net, self.folder / settings.backbone, head, settings,
            seed=self.seed, batch=self.batch, device=self.device,
        )  # fmt: skip

    def zero_shot(self, settings: EvalZeroShot) -> None:
        images = self._pair(settings.image_backbone, DatasetIndex.load(settings.queries), settings.size)
        heads = export.load_heads(self.folder / "heads" / f"{settings.heads}.safetensors")
        self.tasks |= tasks.zero_shot(images, self._pair(settings.text_backbone), self.folder / settings.text_backbone,
                                      heads, settings, seed=self.seed, item=self.item)


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
