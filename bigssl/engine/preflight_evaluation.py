"""Checks of the probe and evaluation sections: they are used hours after the start."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigssl.config import Recipe
from bigssl.config_errors import ConfigError, nearest
from bigssl.data import decode
from bigssl.data.errors import DataError, display
from bigssl.data.index import DatasetIndex
from bigssl.data.stream import in_order
from bigssl.nets.towers import Tower


def load_index(url: str, field: str) -> DatasetIndex:
    """The index of a recipe's `field`; ConfigError with the nearest path where there is none."""
    try:
        return DatasetIndex.load(url)
    except (DataError, OSError, ImportError) as error:
        raise ConfigError(f"{field}: value {display(url)!r}: {error}{_nearest_path(url)}") from None


def _nearest_path(url: str) -> str:
    path = Path(url)
    if "://" in url or path.exists() or not path.parent.is_dir():
        return ""
    return nearest(path.name, sorted(p.name for p in path.parent.iterdir()))


def evaluated(recipe: Recipe) -> dict[str, Any]:
    """The probe and evaluation sections that a recipe has, by field."""
    sections: dict[str, Any] = {"probe": recipe.probe}
    if recipe.evaluate is not None:
        names = ("images", "text", "language", "zero_shot")
        sections |= {f"evaluate.{name}": getattr(recipe.evaluate, name) for name in names}
    return {where: section for where, section in sections.items() if section is not None}


def check_evaluation(recipe: Recipe, towers: Mapping[str, Tower], heads: set[str]) -> None:
    """Shards, backbones, labels, k and heads that `probe` and `evaluate` name.

    Raises:
        ConfigError: field, value, what is allowed.
    """
    for where, section in evaluated(recipe).items():
        _check_section(where, section, towers)
    for where, section in evaluated(recipe).items():
        for field in ("heads", "head"):
            name = getattr(section, field, None)
            if name is not None and name not in heads:
                allowed = ", ".join(sorted(heads)) or "none: this objective exports no heads"
                raise ConfigError(f"{where}.{field}: value {name!r}; allowed: {allowed}")


def _check_section(where: str, section: Any, towers: Mapping[str, Tower]) -> None:
    text_by_default = where in ("evaluate.text", "evaluate.language")
    for field in ("backbone", "image_backbone", "text_backbone"):
        if hasattr(section, field):
            text = text_by_default if field == "backbone" else field == "text_backbone"
            _check_backbone(f"{where}.{field}", getattr(section, field), towers, text)
    for field in ("bank", "queries", "captions"):
        if hasattr(section, field):
            _check_shards(where, field, section)
    length, text_backbone = getattr(section, "length", None), getattr(section, "text_backbone", section)
    if length is not None:
        name = text_backbone if isinstance(text_backbone, str) else section.backbone
        longest = getattr(towers[name].model.config, "max_position_embeddings", length)
        if length > longest:
            raise ConfigError(f"{where}.length: value {length}; allowed: <= {longest} (max_position_embeddings)")


def _check_backbone(field: str, name: str, towers: Mapping[str, Tower], text: bool) -> None:
    fitting = sorted(n for n, tower in towers.items() if tower.is_text == text)
    if name not in fitting:
        kind = "text" if text else "image"
        allowed = ", ".join(fitting) or f"none, there is no {kind} backbone"
        raise ConfigError(f"{field}: no {kind} backbone {name!r}; allowed: {allowed}{nearest(name, fitting)}")


def _check_shards(where: str, field: str, section: Any) -> None:
    """One sample is read: does it have the label, and can the bank answer k neighbours?"""
    url = getattr(section, field)
    index, shown = load_index(url, f"{where}.{field}"), display(url)
    if not hasattr(section, "label"):
        return
    if field == "bank" and section.k > min(len(index), getattr(section, "bank_limit", len(index))):
        raise ConfigError(f"{where}.k: value {section.k}; allowed: <= the samples of the bank, {len(index)} in {shown}")
    sample = next(in_order(index, 1))
    meta = decode.meta(decode.field(sample, ("json",)))
    for name in ("label", "pair", "view"):
        wanted = getattr(section, name, None)
        if wanted is not None and wanted not in meta:
            there = sorted(meta)
            raise ConfigError(
                f"{where}.{name}: value {wanted!r} is not in the metadata of {shown} (sample {sample.key}); allowed: "
                f"{', '.join(there)}{nearest(wanted, there)}"
            )
