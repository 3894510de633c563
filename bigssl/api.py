"""`bigssl.load` and `bigssl.pretrain`: what the command line does, from Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from bigssl import exits
from bigssl.config.errors import ConfigError
from bigssl.config.places import EXPORT

if TYPE_CHECKING:
    import torch

    from bigssl.transfer.vectors.encoder import Encoder


@dataclass(frozen=True)
class Run:
    """A finished run. folder: with report.html, metrics.jsonl, checkpoints/ ..."""

    folder: Path

    @property
    def export(self) -> Path:
        """Networks, each in a folder of its name: what `bigssl.load` and `AutoModel.from_pretrained` take."""
        return self.folder / EXPORT

    @cached_property
    def scorecard(self) -> dict[str, Any] | None:
        """What `bigssl.transfer.scorecard` describes; None where nothing was held out to judge by."""
        path = self.folder / "scorecard.json"
        return json.loads(path.read_text()) if path.is_file() else None


class RunError(RuntimeError):
    """A training that did not come to its end. code: one of `bigssl/exits.py`."""

    def __init__(self, folder: Path, code: int) -> None:
        super().__init__(f"{folder}: the training ended with exit status {code}, see above; the same call goes on")
        self.code = code


def load(
    path: str | os.PathLike[str], backbone: str | None = None, device: str | torch.device | None = None
) -> Encoder:
    """The network of a run folder, of an export, or of a folder that transformers wrote, with its preprocessing:
    `load(path).embed(pictures)` are its vectors.

    Args:
        backbone: its name, where there are several.
        device: default: cuda where there is one, else cpu.
    Raises:
        ConfigError: there is none, or several.
    Warns:
        UserWarning: it has learnt from pictures of another normalisation than they get here.
    """
    from bigssl.transfer.arriving.sizes import prepared_otherwise
    from bigssl.transfer.vectors.encoder import encoder_at

    encoder = encoder_at(Path(path), backbone, device)
    if said := prepared_otherwise(encoder.folder):
        warnings.warn(said, stacklevel=2)
    return encoder


def pretrain(
    data: str | os.PathLike[str], objective: str = "simclr", out: str | os.PathLike[str] | None = None,
    ranks: int | None = None, **overrides: Any,
) -> Run:  # fmt: skip
    """Trains a network on a folder of files, a table, texts or shards: `bigssl init OBJECTIVE DATA`, `bigssl train`.
    The recipe, `OUT.yaml`, and shards that are made stay; the same call goes on with a run, or gives a finished one.

    Args:
        out: the run folder (default: runs/DATA-OBJECTIVE).
        ranks: processes (default: one per GPU, one without GPUs).
        overrides: fields of the recipe: steps=200, or **{"optim.lr": 1e-3}.
    Raises:
        ConfigError, DataError: of the arguments or the data, in one line.
        RunError: the training did not end well, or was told to stop (Ctrl-C, after its checkpoint: status 75).
    """
    from bigssl.cli.init import init
    from bigssl.cli.train import refuse_unreadable

    name = f"{Path(data).resolve().stem}-{objective}"
    folder = Path(out) if out is not None else Path("runs") / name
    recipe = folder.with_name(f"{folder.name}.yaml")
    words = f"bigssl init {objective} {quote(str(data))} "
    if not recipe.exists():
        recipe.parent.mkdir(parents=True, exist_ok=True)
        init(objective, os.fspath(data), out=str(recipe))
    elif words not in recipe.read_text():
        raise ConfigError(f"{recipe} exists and was not made by `{words.strip()}`; allowed: out= with another folder")
    fields = [f"{field}={value if isinstance(value, str) else json.dumps(value)}" for field, value in overrides.items()]
    refuse_unreadable(recipe, fields)
    code = _train([str(recipe), f"out={folder}", *fields, *([] if ranks is None else ["--ranks", str(ranks)])])
    if code != exits.DONE:
        raise RunError(folder, code)
    return Run(folder)


def _train(words: list[str]) -> int:
    """The exit code of `bigssl train`. A process of its own: that waits for whatever is below it, where here other
    children may have others to wait for them. What tells this process to stop tells that one."""
    from bigssl.engine.stopping import heard, hearing

    process = subprocess.Popen([sys.executable, "-m", "bigssl", "train", *words])
    with hearing(dict.fromkeys(heard(), lambda number, frame: process.send_signal(number))):
        return process.wait()
