"""Pretrained backbones as folders that `AutoModel.from_pretrained` loads, without bigssl.

    RUN/export/README.md                 model card
    RUN/export/BACKBONE/                 config.json, model.safetensors (float32), tokenizer or image preprocessor files
    RUN/export/heads/NAME.safetensors    projections that zero-shot evaluation needs, see `bigssl.transfer.zero_shot`
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from bigssl.data.errors import DataError
from bigssl.nets.pool import IMAGE_MEAN, IMAGE_STD

FOLDER = "export"
State = Mapping[str, Tensor]


class ExportError(DataError):
    """Weights that do not fit the architecture, or an export that is not there."""


def export_run(
    folder: Path,
    backbones: Mapping[str, PreTrainedModel],
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    heads: Mapping[str, State],
    meta: Mapping[str, Any],
    states: Mapping[str, State] | None = None,
) -> Path:
    """Writes `folder/export` (folder: the run folder) in one step and returns its path; an older export is replaced.

    Whatever happens midway, an older export stays whole.

    Args:
        backbones: bare transformers models by name; their weights are used unless `states` has the name.
        tokenizers: for text backbones, by backbone name.
        heads: float tensors of each head, by head name.
        meta: facts for the model card (any keys, JSON-like values). `image_sizes` {backbone: pixels} is also written
            into the preprocessor file of that image backbone.
        states: state dicts to export in place of the live weights (partitioned or averaged ones).
    Raises:
        ExportError: a state dict lacks tensors of the architecture or has others.
    """
    target = Path(folder) / FOLDER
    recover(folder)
    staging = target.with_name(f".{FOLDER}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    sizes = dict(meta.get("image_sizes", {}))
    for name, model in backbones.items():
        state = states[name] if states and name in states else model.state_dict()
        _write_backbone(staging / name, name, model, state)
        if name in tokenizers:
            tokenizers[name].save_pretrained(staging / name)
        if name in sizes:
            _write_json(staging / name / "preprocessor_config.json", image_preprocessor(sizes[name]))
    for name, tensors in heads.items():
        _write_head(staging / "heads" / f"{name}.safetensors", tensors)
    (staging / "README.md").write_text(model_card(Path(folder).resolve().name, backbones, heads, meta))
    _publish(staging, target)
    return target


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
    fresh.load_state_dict(tensors, strict=True, assign=True)
    with _quiet():
        fresh.save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of transformers: they would stand between the lines of ours."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _some(names: set[str]) -> str:
    first = ", ".join(sorted(names)[:3]) or "nothing"
    return first + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _portable(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).clone(memory_format=torch.contiguous_format)


def _write_head(path: Path, tensors: State) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: _portable(value) for key, value in tensors.items()}, path)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")


def image_preprocessor(size: int) -> dict[str, Any]:
    """Settings with which `AutoImageProcessor` prepares images as in evaluation: shorter side to `size`, centre crop.

    The CLIP processor is the one of transformers that does just this; the networks need not be CLIP's.
    """
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True, "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True,
        "size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size},
        "resample": 2,  # bilinear
        "rescale_factor": 1 / 255, "image_mean": [IMAGE_MEAN] * 3, "image_std": [IMAGE_STD] * 3,
    }


def model_card(run: str, backbones: Mapping[str, PreTrainedModel], heads: Mapping[str, State],
               meta: Mapping[str, Any]) -> str:
    """What is in the export and how to load it, as Markdown."""
    lines = ["---", "library_name: transformers", "tags: [self-supervised, bigssl]", "---", "", f"# {run}", "",
             "Backbones pretrained without labels by bigssl. Each folder loads without bigssl:", "", "```python",
             "from transformers import AutoModel", ""]
    lines += [f'{_identifier(name)} = AutoModel.from_pretrained("{name}")  # {type(model).__name__}, '
              f"{model.num_parameters():,} parameters" for name, model in backbones.items()]
    lines += ["```", "", "Features: the mean of `last_hidden_state`, for convolutional networks over positions, for",
              "vision transformers over patch tokens, for text networks over tokens that are not padding.",
              f"Images: pixels / 255, minus {IMAGE_MEAN}, divided by {IMAGE_STD}.", ""]
    if heads:
        lines += ["`heads/` holds projections used in pretraining, as safetensors: "
                  + "; ".join(f"`{name}` ({', '.join(sorted(tensors))})" for name, tensors in heads.items()) + ".", ""]
    lines += ["## How it was made", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in meta.items()]
    return "\n".join(lines) + "\n"


def _identifier(name: str) -> str:
    return name if name.isidentifier() else "model"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.replace("|", "\\|").replace("\n", " ")


def _previous(folder: Path) -> Path:
    return Path(folder) / f".{FOLDER}.previous"


def recover(folder: Path) -> None:
    """Finishes what a kill between the two renames of `_publish` left: the older export is put back in its place."""
    target, previous = Path(folder) / FOLDER, _previous(folder)
    if previous.exists() and not target.exists():
        previous.rename(target)
    shutil.rmtree(previous, ignore_errors=True)


def _publish(staging: Path, target: Path) -> None:
    for path in staging.rglob("*"):
        if path.is_file():
            _sync(path)
    previous = _previous(target.parent)
    if target.exists():
        target.rename(previous)  # a folder cannot be renamed over one that is not empty
    staging.rename(target)
    _sync(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _present(path: Path) -> Path:
    if not path.exists():
        beside = ", ".join(sorted(p.name for p in path.parent.iterdir())) if path.parent.is_dir() else "no such folder"
        raise ExportError(f"no export at {path}; there is: {beside}. The export is written at the end of a run: "
                          "run the same training command again")
    return path


def load_backbone(folder: Path) -> PreTrainedModel:
    """A backbone of an export folder, float32, in eval mode."""
    with _quiet():
        model: PreTrainedModel = AutoModel.from_pretrained(_present(Path(folder)), dtype=torch.float32)
    return model.eval()


def load_config(folder: Path) -> PreTrainedConfig:
    """The architecture of a backbone of an export folder."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(_present(Path(folder)))
    return config


def load_heads(file: Path) -> dict[str, Tensor]:
    """Tensors of `export/heads/NAME.safetensors`."""
    return load_file(_present(Path(file)))
