"""Do the contract tests find bugs? Plants some, one at a time, in a copy of the repository, and runs the tests there.

    python tests/objectives/plants.py [PART_OF_A_NAME ...]

By hand, not in CI (some minutes): only the tests of the task that has the bug, those of the contract and then its own
(`test_TASK.py`, or what OWN names), up to the first that fails. The table goes to docs/contract.md. A bug whose place
is not there, because the task was rewritten, ends the command.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from pages import write_section

ROOT = Path(__file__).parents[2]
TESTS = ("tests/objectives/test_contract.py", "tests/objectives/test_contract_runs.py")


class Plant(NamedTuple):
    """A bug: in the file of `task` (or `file`, below bigssl/), `old`, which stands there once, becomes `new`; further
    pairs in `more`."""

    bug: str
    task: str
    old: str
    new: str
    more: tuple[tuple[str, str], ...] = ()
    file: str = ""

    @property
    def path(self) -> Path:
        return Path("bigssl") / (self.file or f"objectives/{self.task}.py")


TARGET = "self.target = Ema(self.online, CosineRamp(config.momentum, 1.0))"
BYOL = [
    Plant("teacher never updated", "byol", 'return {"target": self.target}', "return {}"),
    Plant(
        "half of the teacher updated", "byol", 'return {"target": self.target}', 'return {"target": self.half}',
        ((TARGET, f"{TARGET}\n        self.half = Ema(self.online.tower, CosineRamp(config.momentum, 1.0))\n"
                  "        self.half.module = self.target.module.tower"),),
    ),
    Plant(
        "teacher follows the tensors of before ZeRO", "byol", TARGET,
        TARGET.replace("Ema(", "Early(")
        + "\n        self.target.early = [p.data for p in self.online.parameters()]",
        (("class Byol(Objective):", "class Early(Ema):\n    def _whole(self):\n        return self.early\n\n\n"
                                    "class Byol(Objective):"),),
    ),
    Plant(
        "teacher updated twice a step", "byol", TARGET, TARGET.replace("Ema(", "Twice("),
        (("class Byol(Objective):", "class Twice(Ema):\n    def update(self, at):\n        super().update(at)\n"
                                    "        super().update(at)\n\n\nclass Byol(Objective):"),),
    ),
    Plant("momentum swapped with its complement", "byol", TARGET, TARGET.replace("config.m", "1 - config.m")),
    Plant("momentum does not follow the run", "byol", TARGET,
          TARGET.replace("CosineRamp(config.momentum, 1.0)", "config.momentum")),
    Plant(
        "momentum follows a counter that a resume loses", "byol", TARGET,
        TARGET.replace("CosineRamp(config.momentum, 1.0)",
                       "lambda at: CosineRamp(config.momentum, 1.0)(Progress(min(self.passes, at.steps), at.steps))")
        + "\n        self.passes = 0",
        (("        views = torch.cat(self.views.of(batch))", "        self.passes += 1\n"
                                                             "        views = torch.cat(self.views.of(batch))"),),
    ),
    Plant("targets from the student", "byol", "self.target.module(views)", "self.online(views)"),
    Plant("predictor left out", "byol", "self.predictor(projections)", "(projections)"),
    Plant("views not swapped", "byol", "torch.cat([second, first])", "torch.cat([first, second])"),
    Plant(
        "stop-gradient missing", "byol",
        "with torch.no_grad():\n            targets", "with torch.enable_grad():\n            targets",
        ((TARGET, f"{TARGET}\n        self.target.module.requires_grad_(True)"),),
    ),
    Plant("blind line of a mean that is not there", "byol", "return (2 - 2 * squared.clamp(0, 1).sqrt()).float()",
          "return 0 * squared.float() + 2"),
    Plant("blind line of one rank's samples", "byol", "distributed.all_reduce_sum(rows.sum(0))", "rows.sum(0)"),
    Plant("loss divided by the number of ranks", "byol", ".square().sum() / len(first)",
          ".square().sum() / len(first) / distributed.world()"),
    Plant("views that ignore the generator", "byol", "self.views.prepare(image, rng)",
          "self.views.prepare(image, np.random.default_rng(0))"),
    Plant("a parameter that nothing uses", "byol", TARGET,
          f"{TARGET}\n        self.offset = nn.Parameter(torch.zeros(3))"),
    Plant("the student exported as the teacher", "byol", 'self.target.module.get_submodule("tower.model")',
          'self.online.get_submodule("tower.model")'),
]  # fmt: skip
MASKED = "masked = order[:, self.visible :]"
ORDER = "self.remaker.order(batch[SEEDS])"
REMAKER = "nets/remaking/mae.py"
MAE = [
    Plant("the hidden patches shown", "mae", "pixels, order[:, : self.visible])  #",
          "pixels, order[:, -self.visible :])  #"),
    Plant("loss on the visible patches", "mae", MASKED, "masked = order[:, : self.visible]"),
    Plant("loss on all patches", "mae", MASKED, "masked = order"),
    Plant("predictions put in other patches' places", "mae", "order.argsort(-1)", "order",
          file=REMAKER),
    Plant("targets not normalised", "mae",
          "return (patches - patches.mean(-1, keepdim=True)) / (variance + EPSILON).sqrt(), variance",
          "return patches, variance", file=REMAKER),
    Plant("mask from the global generator", "mae", ORDER, "torch.rand(len(pixels), self.patches).argsort(-1)"),
    Plant("one mask for all samples of a pass", "mae", ORDER,
          "self.remaker.order(batch[SEEDS][:1]).expand(len(pixels), -1)"),
    Plant("one mask for all samples and steps", "mae", ORDER, ORDER.replace("batch[SEEDS]", "0 * batch[SEEDS]")),
    Plant("mask by rank", "mae", ORDER, ORDER.replace("batch[SEEDS]", "batch[SEEDS] + distributed.rank()")),
    Plant("decoder without positions", "mae", "                nn.init.zeros_(module.bias)\n",
          "                nn.init.zeros_(module.bias)\n        self.decoder.decoder_pos_embed.data.zero_()\n",
          file=REMAKER),
    Plant("blind line doubled", "mae", "error = (1 - 1 / pixels) *", "error = 2 *"),
    Plant("blind line of one rank's samples", "mae", "distributed.all_reduce_sum(sums) / distributed.world()", "sums"),
    Plant("loss multiplied by the number of ranks", "mae", "rows_at(target, masked)).square().mean()",
          "rows_at(target, masked)).square().mean() * distributed.world()"),
    Plant("the share of hidden patches fixed", "mae", "int(self.patches * (1 - config.ratio) + 1e-9)",
          "int(self.patches * 0.25)"),
    Plant("the backbone goes on hiding outside the task", "mae", "        _kept = None\n", "        pass\n",
          file=REMAKER),
]  # fmt: skip
QUEUE, PROTOTYPES = "nets/heads/queue.py", "nets/heads/prototypes.py"
NO_GRAD = "    @torch.no_grad()\n    def _keys("
SLOW = "CosineRamp(config.momentum, last))"
OTHERS = [
    Plant("keys get a gradient", "moco", NO_GRAD, "    def _keys(",
          (('embeddings["keys"].detach()', 'embeddings["keys"]'),
           (SLOW, f"{SLOW}\n        self.slow.module.requires_grad_(True)"))),
    Plant("keys from the student", "moco", "_unit(self.slow.module(pixels), views)",
          "_unit(self.network(pixels), views)"),
    Plant("the queue holds one rank's keys", "moco", "distributed.gather_rows(rows.detach().float())",
          "rows.detach().float()", file=QUEUE),
    Plant("a queue that a resume loses", "moco", "torch.zeros(size, dim))", "torch.zeros(size, dim), persistent=False)",
          file=QUEUE),
    Plant("shares of one rank's samples", "swav", "distributed.all_reduce_sum((own - largest).exp())",
          "(own - largest).exp()", (("distributed.all_reduce_max(own.clone())", "own.clone()"),), PROTOTYPES),
    Plant("codes of the crop that predicts them", "swav", "loss = swapped(codes, ", "loss = swapped(codes.flip(0), "),
    Plant("prototypes of any length", "swav", "[Constraint(list(self.prototypes.parameters()), unit_rows)]", "[]"),
    Plant("standardised by one rank's samples", "barlow_twins",
          "distributed.sum_over_ranks(rows.square().sum(0)) / rows_everywhere(rows)",
          "rows.square().sum(0) / len(rows)"),
    Plant("correlations of one rank's samples", "barlow_twins", "diagonal, beside = column_products(first, second)",
          "diagonal, beside = (first * second).sum(0), (first.T @ second).square().sum()\n"
          "        beside = beside - (first * second).sum(0).square().sum()"),
    Plant("the generator learns what the discriminator does", "inpainting", "self.discriminator(filled.detach())",
          "self.discriminator(filled)"),
    Plant("the discriminator learns what the generator does", "inpainting",
          "gan.against(self.discriminator, filled)", "gan.generator_loss(self.discriminator(filled)[0])"),
    Plant("what is hidden is shown", "inpainting", 'batch["image"].masked_fill(hidden, GREY)', 'batch["image"]'),
    Plant("normality of one rank's samples", "lejepa", "distributed.sum_over_ranks(torch.stack(waves)) / count",
          "torch.stack(waves) / len(z)"),
    Plant("the same directions at each step", "lejepa", "(1,), at.step, dtype", "(1,), 0, dtype"),
    Plant("directions of each rank", "lejepa", "(1,), at.step, dtype", "(1,), at.step + distributed.rank(), dtype"),
    Plant("the decoder is shown what it is asked", "denoise", "torch.cat([start, labels[:, :-1]], 1)", "labels",
          file="nets/heads/writing.py"),
    Plant("the source without noise", "denoise", "padded(source, length", "padded(target, length"),
    Plant("padding of the source seen", "denoise", "batch[\"input_ids\"], mask, labels)",
          "batch[\"input_ids\"], mask * 0 + 1, labels)"),
    Plant("a mean of one rank's tokens", "denoise", "mean_of_step(batch, total.float(), blind, everywhere)",
          "(total.float() / (labels != IGNORE).sum(), blind)"),
    Plant("the end of a text is not asked", "denoise", "padded(target if", "padded(target[:-1] if"),
    Plant("the label of another patch", "patch_position", '"label": label}', '"label": 7 - label}'),
    Plant("a label that says nothing of the patches", "patch_position", '"label": label}',
          '"label": int(rng.integers(8))}'),
    Plant("tiles of one sample in another's place", "patch_position", "return found.unflatten(0, places.shape[:2])"
          ".transpose(0, 1)", "return found.unflatten(0, tiles.shape[:2])", file="objectives/tiled.py"),
]  # fmt: skip
MASKING, COUNTING, ROWS = "data/kinds/masking.py", "objectives/counting.py", "objectives/packing.py"
TEXTS = [
    Plant("what is masked is shown", "mlm", "masked = np.where(selected & (fate < shares[0]), mask_id, input_ids)",
          "masked = input_ids.copy()", file=MASKING),
    Plant("loss on all tokens", "mlm", "return masked, np.where(selected, input_ids, IGNORE)",
          "return masked, input_ids", file=MASKING),
    Plant("the share of the first step throughout", "mlm", "config.ratio_end, done)", "config.ratio_end, 0.0)"),
    Plant("substitutes of the vocabulary in place of other documents'", "mlm",
          "masked[swapped] = drawn if pool is None else pool[drawn]", "masked[swapped] = drawn", file=MASKING),
    Plant("a head without its activation", "mlm", "self.norm(self.activation(self.dense(hidden)))",
          "self.norm(self.dense(hidden))", file="nets/heads/base.py"),
    Plant("positions of RoBERTa from 0 in packed rows", "mlm", "position_ids=positions + first",
          "position_ids=positions", file="nets/packed.py"),
    Plant("texts of a row see each other", "mlm", 'side_by_side(rows["segments"])',
          'side_by_side((rows["segments"] > 0).long())', file=ROWS),
    Plant("all tokens of a text drop alike in packed rows", "mlm", "another(seed, torch.arange(len(ids)))",
          "another(seed, torch.zeros(len(ids), dtype=torch.int64))", file=ROWS),
    Plant("texts without a label kept out of their rows' count", "mlm", "1 - len(useful) / len(pieces)",
          "len(useful) / len(pieces)"),
    Plant("each rank's own mean", "mlm", "(batch[UNITS][name] if UNITS in batch else mine)", "mine", file=COUNTING),
    Plant("a mean over the tokens of all ranks, and over ranks again", "mlm",
          "mine = everywhere / distributed.world()", "mine = everywhere", file=COUNTING),
    Plant("units of this rank's passes only", "mlm", "distributed.all_reduce_sum(sums.to(self._device))",
          "(sums.to(self._device) * distributed.world())", file="engine/stepping/passes.py"),
    Plant("labels turned around", "next_sentence", '"label": int(not recurring)', '"label": int(recurring)'),
    Plant("the other passage out of the first document", "next_sentence",
          "drawn = more(rng, lambda sample: pairs.sentences_of(sample, rng))", "drawn = document"),
    Plant("what recurs is a negative all the same", "next_sentence", "recurring = pairs.quotes(document, other)",
          "recurring = False"),
    Plant("a label that says nothing of the order", "sentence_order", '{"label": swapped}',
          '{"label": int(rng.integers(2))}'),
    Plant("the second passage first throughout", "sentence_order", "both[swapped], both[1 - swapped]",
          "both[1], both[0]"),
    Plant("each token asked at its own place", "causal_lm", '"labels": Ragged(asked)', '"labels": Ragged(shown)'),
    Plant("the token before is asked for", "causal_lm", '"input_ids": Ragged(shown), "labels": Ragged(asked)',
          '"input_ids": Ragged(asked), "labels": Ragged(shown)'),
    Plant("texts end nowhere", "causal_lm", "end = self._end if document", "end = self._end[:0] if document"),
    Plant("no z-loss", "causal_lm", "labels, self.config.z_loss)", "labels, 0.0)"),
    Plant("texts of a row see those before them", "causal_lm", 'side_by_side(rows["segments"])',
          'side_by_side((rows["segments"] > 0).long())', file=ROWS),
    Plant("what is drawn right counts as replaced", "replaced_token", "(drawn != labels).long()", "hidden.long()"),
    Plant("padding is judged", "replaced_token", '"judged": attention_mask > 0', '"judged": attention_mask >= 0'),
    Plant("what is drawn follows from the place in the batch", "replaced_token", "another(batch[SEEDS][:, None],",
          "another(torch.arange(len(ids), device=ids.device)[:, None],"),
    Plant("the likeliest token in place of a drawn one", "replaced_token", "(logits + chance).argmax(-1)",
          "logits.argmax(-1)", file="nets/heads/replacing.py"),
    Plant("a view beside itself", "simcse", 'return {"view1": z1, "view2": z2}', 'return {"view1": z1, "view2": z1}'),
    Plant("blind line of one rank's samples", "simcse", "math.log(len(z1) * distributed.world())", "math.log(len(z1))"),
    Plant("the temperature of the paper whatever the recipe says", "simcse", "1 / self.config.temperature", "20.0"),
]
HIERARCHY = "objectives/hierarchy.py"
SERIES = [
    Plant("mean of the hidden values, too", "masked_series", "without_mean(values, visible)",
          "without_mean(values, observed)"),
    Plant("deviation of the hidden values, too", "masked_series", "window_deviation(shown, visible), asked",
          "window_deviation(shown, observed), asked"),
    Plant("missing values asked for", "masked_series", "asked = observed & hidden &", "asked = hidden &"),
    Plant("patches that hold nothing are hidden first", "masked_series", "(order < counts).repeat",
          "(order < counts)[::-1].repeat"),
    Plant("loss on all values", "masked_series", "torch.where(asked, predicted - target, 0.0).square()",
          "(predicted - target).square()"),
    Plant("the mean of the future, too", "forecast", "past, mean = without_mean(values[:length], seen)",
          "past, mean = without_mean(values, observed)\n        past = past[:length]"),
    Plant("short series filled up behind", "forecast", "rng, front=True)", "rng)"),
    Plant("the last step, observed or not", "forecast", "newest = (steps[:, None] * seen).argmax(1, keepdim=True)",
          "newest = (steps[:, None] * torch.ones_like(seen)).argmax(1, keepdim=True)"),
    Plant("forecasts of other channels", "forecast", "flatten(2)).float()  # [B, C, H]",
          "flatten(2)).float().flip(1)  # [B, C, H]"),
    Plant("windows from the first step only", "forecast", "begin = int(rng.integers(steps - length + 1))", "begin = 0",
          file="objectives/serial.py"),
    Plant("a row among its own negatives", "series_contrast", 'scores.scatter_(2, places[0], float("-inf"))', "pass",
          file=HIERARCHY),
    Plant("positives of the first rank", "series_contrast", "distributed.rank() * size, temperature)",
          "0, temperature)", file=HIERARCHY),
    Plant("other times of the first crop", "series_contrast", "first[:, self.patches - self.shared :]",
          "first[:, : self.shared]"),
    Plant("no time hidden", "series_contrast", "seen = observed & ~self._hidden(observed, rng)[:, None]",
          "seen = observed"),
    Plant("the label of the inverse permutation", "series_order", "in self.permutations[label]]",
          "in np.argsort(self.permutations[label])]"),
    Plant("segments with their level", "series_order", "without_mean(values, observed)[0]",
          "values.astype(np.float32)"),
    Plant("a place that tells the time", "series_order",
          "front = int(rng.integers(free // self.stride + 1)) * self.stride", "front = begin // 2 * 2 % (free + 1)"),
]
PLANTS = BYOL + MAE + OTHERS + TEXTS + SERIES
OWN = {  # tests of a task in files that are not called after it
    "mlm": ("mlm_packing", "masked_bodies", "substitution", "counting"), "next_sentence": ("pairs",),
    "sentence_order": ("pairs",),
}  # fmt: skip


def planted(folder: Path, plant: Plant) -> None:
    """Write the bug into the copy in `folder`."""
    path = plant.path
    text = (ROOT / path).read_text()
    for old, new in ((plant.old, plant.new), *plant.more):
        if text.count(old) != 1:
            raise SystemExit(f"plants.py: {plant.bug!r}: {path} has {text.count(old)} times, not once: {old!r}")
        text = text.replace(old, new)
    (folder / path).write_text(text)


def copied(folder: Path) -> dict[str, str]:
    """Copy what the tests need; the environment in which the copy is imported, and not the installed one."""
    for name in ("bigssl", "kernels", "tests", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    paths = folder / "paths"  # not the folder itself, in which `kernels` would become a package
    paths.mkdir()
    (paths / "bigssl").symlink_to(folder / "bigssl")
    (paths / "bigssl_kernels").symlink_to(folder / "kernels" / "bigssl_kernels")
    return {**os.environ, "PYTHONPATH": str(paths), "PYTHONDONTWRITEBYTECODE": "1"}


def first_failure(folder: Path, environment: dict[str, str], task: str) -> str:
    """Name of the first test of `task` that fails in the copy, and why; empty where all pass."""
    names = [f"tests/objectives/test_{name}.py" for name in OWN.get(task, (task,))]
    own = [name for name in names if (folder / name).exists()]
    for tests in [["-k", task, *TESTS], own] if own else [["-k", task, *TESTS]]:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            return named_failure(done)
    return ""


def named_failure(done: subprocess.CompletedProcess[str]) -> str:
    failed = re.search(r"^(?:FAILED|ERROR) \S+?::(\S+)(.*)$", done.stdout, re.MULTILINE)
    if done.returncode != 1 or failed is None:
        raise SystemExit(f"plants.py: pytest ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    print(f"    {failed[0][:300]}", flush=True)
    return failed[1]


def table(rows: list[tuple[Plant, str]]) -> str:
    lines = ["| planted in | bug | caught by |", "|---|---|---|"]
    lines += [f"| {plant.task} | {plant.bug} | {f'`{test}`' if test else '**nothing**'} |" for plant, test in rows]
    caught = sum(bool(test) for _, test in rows)
    return "\n".join([*lines, "", f"{caught} of {len(rows)} were caught."])


def main(words: list[str]) -> None:
    chosen = [p for p in PLANTS if not words or any(word in f"{p.task}: {p.bug}" for word in words)]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        environment = copied(folder)
        for task in sorted({plant.task for plant in chosen}):
            if failed := first_failure(folder, environment, task):
                raise SystemExit(f"plants.py: {task} fails {failed} as it is; mend that first")
        for plant in chosen:
            print(f"{plant.task}: {plant.bug}", flush=True)
            planted(folder, plant)
            rows.append((plant, first_failure(folder, environment, plant.task)))
            shutil.copy(ROOT / plant.path, folder / plant.path)
    print(table(rows))
    if not words:
        write_section("plants", table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
