"""Checks of the probe and evaluation sections: they are used hours after the start."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bigssl.config.errors import ConfigError, nearest
from bigssl.config.recipe import Recipe
from bigssl.data.errors import DataError, display
from bigssl.data.kinds import decode
from bigssl.data.order.stream import read_in_order
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex, ShardInfo
from bigssl.nets.norm import has_batch_norm
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Head

# Evaluations with a head: the field that names it, its kind, and the field of the backbone in each of its roles.
HEADS = {
    "evaluate.language": ("head", "mlm", {"text": "backbone"}),
    "evaluate.zero_shot": ("heads", "clip", {"image": "image_backbone", "text": "text_backbone"}),
}


def load_index(url: str, field: str) -> DatasetIndex:
    """The index of a recipe's `field`; ConfigError with the nearest path where there is none."""
    try:
        return DatasetIndex.load(url)
    except (DataError, OSError, ImportError) as error:
        raise ConfigError(f"{field}: value {display(url)!r}: {error}{_nearest_path(url)}") from None


@contextmanager
def _reading(field: str, url: str) -> Iterator[None]:
    """What is wrong with the data that is read here is wrong with the value of `field`."""
    try:
        yield
    except (DataError, OSError) as error:
        raise ConfigError(f"{field}: value {display(url)!r}: {error}") from None


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


def check_evaluation(recipe: Recipe, towers: Mapping[str, Tower], heads: Mapping[str, Head]) -> None:
    """Shards, backbones, labels, k and heads that `probe` and `evaluate` name.

    Raises:
        ConfigError: field, value, what is allowed.
    """
    for where, section in evaluated(recipe).items():
        _check_section(where, section, towers)
        if where in HEADS:
            _check_head(where, section, heads)
    zero_shot = recipe.evaluate.zero_shot if recipe.evaluate else None
    if zero_shot is None:
        return
    images = recipe.evaluate.images if recipe.evaluate else None
    calibrated = images is not None and images.backbone == zero_shot.image_backbone
    if not calibrated and has_batch_norm(towers[zero_shot.image_backbone].model):
        need = "the random network's BatchNorm is set from them, or from evaluate.images.bank for the same backbone"
        field = "evaluate.zero_shot.captions"
        with _reading(field, zero_shot.captions):
            sample = next(read_in_order(load_index(zero_shot.captions, field), 1))
        _check_field(field, zero_shot.captions, sample, decode.IMAGES, need)


def _check_head(where: str, section: Any, heads: Mapping[str, Head]) -> None:
    """Does this objective export such a head, and is it that of the backbones that are judged with it?"""
    field, kind, roles = HEADS[where]
    name, fitting = getattr(section, field), sorted(n for n, head in heads.items() if head.kind == kind)
    if name not in fitting:
        allowed = ", ".join(fitting) or f"none: this objective exports no head of the kind {kind}"
        raise ConfigError(f"{where}.{field}: value {name!r}; allowed: {allowed}{nearest(name, fitting)}")
    for role, backbone in roles.items():
        given, own = getattr(section, backbone), heads[name].backbones[role]
        if given != own:
            raise ConfigError(f"{where}.{backbone}: value {given!r}; allowed: {own}, on which head {name!r} is trained")


def refuse_seen(recipe: Recipe, indexes: Mapping[str, Iterable[DatasetIndex]]) -> None:
    """Training on what is judged would flatter the run.

    Args:
        indexes: the datasets of each source.
    Raises:
        ConfigError: shards of a `queries` field are, by checksum or by place, among those of the sources.
    """
    trained: dict[str, str] = {}
    for source, datasets in indexes.items():
        for index in datasets:
            trained |= {mark: source for shard in index.shards for mark in _marks(shard)}
    for where, section in evaluated(recipe).items():
        shards = load_index(section.queries, f"{where}.queries").shards
        seen = {shard.name: trained[mark] for shard in shards for mark in _marks(shard) if mark in trained}
        if seen:
            name, source = next(iter(seen.items()))
            raise ConfigError(
                f"{where}.queries: value {display(section.queries)!r}: {len(seen)} of {len(shards)} shards are trained "
                f"on ({name} in data.sources.{source}); allowed: shards that no source reads (`bigssl shards split` "
                "makes such parts)"
            )


def _marks(shard: ShardInfo) -> list[str]:
    """What two shards that hold the same have in common; a sequential source has no checksums."""
    place = shard.url if "://" in shard.url else os.path.realpath(shard.url)
    return [mark for mark in (shard.checksum, place) if mark]


def _check_section(where: str, section: Any, towers: Mapping[str, Tower]) -> None:
    text_by_default = where in ("evaluate.text", "evaluate.language")
    for field in ("backbone", "image_backbone", "text_backbone"):
        if hasattr(section, field):
            text = text_by_default if field == "backbone" else field == "text_backbone"
            _check_backbone(f"{where}.{field}", getattr(section, field), towers, text)
    for field in ("bank", "queries", "captions"):
        if hasattr(section, field):
            _check_shards(where, field, section)


def _check_backbone(field: str, name: str, towers: Mapping[str, Tower], text: bool) -> None:
    kind = "text" if text else "image"
    fitting = sorted(n for n, tower in towers.items() if tower.modality == kind)
    if name not in fitting:
        allowed = ", ".join(fitting) or f"none, there is no {kind} backbone"
        raise ConfigError(f"{field}: no {kind} backbone {name!r}; allowed: {allowed}{nearest(name, fitting)}")


def _check_shards(where: str, field: str, section: Any) -> None:
    """One sample is read: does it have what is judged and the label, and can the bank answer k neighbours?"""
    url = getattr(section, field)
    index, shown = load_index(url, f"{where}.{field}"), display(url)
    if field == "bank" and hasattr(section, "k"):
        most = min(len(index), section.bank_limit or len(index))
        if section.k > most:
            what = f"the samples of the bank, {len(index)} in {shown}" if most == len(index) else f"bank_limit, {most}"
            raise ConfigError(f"{where}.k: value {section.k}; allowed: <= {what}")
    with _reading(f"{where}.{field}", url):
        sample = next(read_in_order(index, 1))
        if where == "evaluate.language":
            decode.running_text(sample)  # raises where there is none
            return
    kinds = ("txt",) if where == "evaluate.text" or field == "captions" else decode.IMAGES
    _check_field(f"{where}.{field}", url, sample, kinds, "that is what is judged")
    with _reading(f"{where}.{field}", url):
        meta = decode.meta(decode.field(sample, ("json",)))
    for name in ("label", "pair", "view") if field == "queries" and getattr(section, "pair", None) else ("label",):
        wanted = getattr(section, name, None)
        if wanted is not None and wanted not in meta:
            there = sorted(meta)
            raise ConfigError(
                f"{where}.{name}: value {wanted!r} is not in the metadata of {shown} (sample {sample.key}); allowed: "
                f"{', '.join(there)}{nearest(wanted, there)}"
            )


def _check_field(field: str, url: str, sample: Sample, kinds: Sequence[str], why: str) -> None:
    if not any(kind in sample.fields for kind in kinds):
        there = ", ".join(sorted(sample.fields)) or "nothing"
        raise ConfigError(
            f"{field}: value {display(url)!r}: sample {sample.key} has {there}; allowed: shards with "
            f"{' or '.join(kinds)} ({why})"
        )
