"""Pretrained backbones as folders that `AutoModel.from_pretrained` loads, without bigssl.

    RUN/export/README.md                 model card
    RUN/export/BACKBONE/                 config.json, model.safetensors (float32), tokenizer or image preprocessor files
    RUN/export/heads/NAME.safetensors    what evaluations need that is no network, each says what it is: projections
                                         (`bigssl.transfer.zero_shot`), decoders of pictures (`bigssl.nets.remaking`)
    RUN/export/objective.safetensors     what else a run needs that begins with it, see `bigssl.objectives.exported`
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging

from bigssl.data.errors import DataError
from bigssl.files import fsync, writing
from bigssl.nets.heads.base import Head
from bigssl.nets.modality.kinds import unused_parameters
from bigssl.transfer.inputs import Input
from bigssl.transfer.leaving.card import model_card

FOLDER = "export"
State = Mapping[str, Tensor]


class ExportError(DataError):
    """Weights that do not fit the architecture, or an export that is not there."""


def export_run(
    folder: Path,
    backbones: Mapping[str, PreTrainedModel],
    inputs: Mapping[str, Input],
    heads: Mapping[str, Head],
    meta: Mapping[str, Any],
    states: Mapping[str, State] | None = None,
    rest: tuple[str, State, dict[str, str]] | None = None,
) -> Path:
    """Writes `folder/export` (folder: the run folder) in one step and returns its path; an older export is replaced.

    Whatever happens midway, an older export stays whole. Frozen parameters that features do not pass through (a
    pooler) are left out: they have learnt nothing, and transformers says so of what it does not find.

    Args:
        backbones: bare transformers models by name; their weights are used unless `states` has the name.
        inputs: what each backbone takes, by the same names.
        heads: by name.
        meta: facts for the model card (any keys, JSON-like values).
        states: state dicts to export in place of the live weights (partitioned or averaged ones).
        rest: a further safetensors file: its name, tensors of any dtype, metadata.
    Raises:
        ExportError: a state dict lacks tensors of the architecture or has others.
        DiskFull: it does not fit.
    """
    target = Path(folder) / FOLDER
    recover(folder)
    staging = target.with_name(f".{FOLDER}.staging")
    shutil.rmtree(staging, ignore_errors=True)  # of one that was killed
    staging.mkdir(parents=True)
    try:
        with writing(target, _bytes(backbones, heads, rest), staging):
            for name, model in backbones.items():
                state = states[name] if states and name in states else model.state_dict()
                _write_backbone(staging / name, name, model, state)
                inputs[name].write(staging / name)
            for name, head in heads.items():
                head.write(staging / "heads" / f"{name}.safetensors")
            if rest is not None:
                save_file(dict(rest[1]), staging / rest[0], metadata=rest[2])
            card = staging / "README.md"
            card.write_text(model_card(Path(folder).resolve().name, backbones, inputs, heads, meta))
            made_readable(staging, card.stat().st_mode)
            publish(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return target


def _bytes(
    backbones: Mapping[str, PreTrainedModel], heads: Mapping[str, Head], rest: tuple[str, State, dict[str, str]] | None
) -> int:
    """Of the export, nearly all of which are weights in float32. (Of ZeRO-3, a parameter knows its whole size.)"""
    networks = sum(getattr(p, "ds_numel", p.numel()) for model in backbones.values() for p in model.parameters())
    further = sum(value.nbytes for value in rest[1].values()) if rest is not None else 0
    return 4 * (networks + sum(value.numel() for head in heads.values() for value in head.tensors.values())) + further


def _write_backbone(folder: Path, name: str, model: PreTrainedModel, state: State) -> None:
    """Through a fresh model, so that names are checked and the live one (wrapped, partitioned, bf16) is not touched."""
    config = copy.deepcopy(model.config)
    config.dtype = torch.float32  # from_pretrained loads in what config.json says
    with torch.device("meta"):
        fresh: PreTrainedModel = AutoModel.from_config(config)
    tensors = {key: _portable(value) for key, value in state.items()}
    lacking, strange = fresh.state_dict().keys() - tensors.keys(), tensors.keys() - fresh.state_dict().keys()
    if lacking or strange:
        raise ExportError(f"backbone {name!r}: weights do not fit {type(fresh).__name__}: "
                          f"lacking {_some(lacking)}; not part of it {_some(strange)}")
    untrained = {key for key in unused_parameters(model) if not model.get_parameter(key).requires_grad}
    fresh.load_state_dict(tensors, strict=True, assign=True)
    with hushed():
        fresh.save_pretrained(folder, state_dict={key: value for key, value in tensors.items() if key not in untrained})


def made_readable(staging: Path, mode: int) -> None:
    """safetensors writes for the owner's eyes alone; everybody whom the umask lets see `mode` is to load the export."""
    for path in staging.rglob("*"):
        if path.is_file():
            path.chmod(mode)


@contextmanager
def hushed() -> Iterator[None]:
    """No progress bars and reports of transformers: they would stand between the lines of ours."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _some(names: set[str]) -> str:
    first = ", ".join(sorted(names)[:3]) or "nothing"
    return first + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _portable(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).clone(memory_format=torch.contiguous_format)


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def recover(folder: Path) -> None:
    """Finishes what a kill between two renames of an export of the run folder left: the older one is put back."""
    put_back(Path(folder) / FOLDER)


def put_back(target: Path) -> None:
    """Finishes what a kill between the two renames of `publish` left: the older folder is put back in its place."""
    previous = _previous(target)
    if previous.exists() and not target.exists():
        previous.rename(target)
    shutil.rmtree(previous, ignore_errors=True)


def publish(staging: Path, target: Path) -> None:
    """The folder `staging` becomes `target` in one step, in place of an older one, which `put_back` brings back after a
    kill midway."""
    for path in staging.rglob("*"):
        if path.is_file():
            fsync(path)
    previous = _previous(target)
    if target.exists():
        target.rename(previous)  # a folder cannot be renamed over one that is not empty
    staging.rename(target)
    fsync(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _present(path: Path) -> Path:
    if not path.exists():
        beside = ", ".join(sorted(p.name for p in path.parent.iterdir())) if path.parent.is_dir() else "no such folder"
        raise ExportError(f"no export at {path}; there is: {beside}. The export is written at the end of a run: "
                          "run the same training command again")
    return path


def load_backbone(folder: Path) -> PreTrainedModel:
    """A backbone of an export folder, float32, in eval mode. ExportError where weights lack that features need."""
    with hushed():
        model, report = AutoModel.from_pretrained(_present(Path(folder)), dtype=torch.float32, output_loading_info=True)
    lacking = set(report["missing_keys"]) - unused_parameters(model)
    if lacking:
        raise ExportError(f"{folder}: weights lacking: {_some(lacking)}; run the training command again")
    loaded: PreTrainedModel = model.eval()
    return loaded


def load_head(file: Path) -> Head:
    """Of `export/heads/NAME.safetensors`. ExportError where there is none."""
    try:
        return Head.read(_present(Path(file)))
    except SafetensorError as error:
        raise ExportError(f"{file}: not whole: {error}; run the training command again") from None
