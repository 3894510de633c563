"""A trained network with its preprocessing: what a program holds in, vectors out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.config.errors import ConfigError, nearest
from bigssl.data.errors import DataError
from bigssl.data.loading.collate import collate
from bigssl.transfer.arriving.folders import networks_at
from bigssl.transfer.features import Views, ahead, encoder
from bigssl.transfer.inputs import Input, exported_input
from bigssl.transfer.leaving.export import load_backbone
from bigssl.transfer.vectors.given import given_view, load_once


@dataclass(frozen=True)
class Encoder:
    """A network on a device, in eval mode.

    Attributes:
        folder: of the network.
        takes: what it takes, with the size of a view: `takes.modality`, and `size`, `length`, `channels` or `rate`.
    """

    folder: Path
    model: PreTrainedModel
    takes: Input
    device: torch.device

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def _encode(self) -> Any:
        return encoder(self.model, self.device)

    def of(self, views: Views) -> Tensor:
        """float32 [B, D], on the CPU, of collated views."""
        found: Tensor = self._encode(views.arrays)
        return found

    def embed(self, items: Sequence[Any], batch: int = 64) -> np.ndarray:
        """float32 [N, D]: the vector of each item, in the order of a loop over them, prepared as evaluation and
        `bigssl embed` do.

        Args:
            items: for pictures: PIL images of any mode (RGB is made of them, upright, transparent on white), paths, or
                arrays uint8 [H, W, 3] or [H, W]; for texts: strings, or `Path`s of files; for series: arrays [T, C] or
                paths of .npy; for sounds: float arrays [T] at `takes.rate`, or paths.
            batch: items of a forward pass.
        Raises:
            DataError: an item that is no such thing, by its number; one item in place of a list of them; what has no
                order, or can be gone through once only; none at all.
        """
        _refuse_no_list(items)
        if batch < 1 or not len(items):
            raise DataError(f"embed: {len(items)} items, batch {batch}; allowed: 1 or more of both")
        return np.concatenate([self.of(views).numpy() for views in ahead(lambda: self._views(items, batch))])

    def _views(self, items: Sequence[Any], batch: int) -> Iterator[Views]:
        """Items as a loop over them gives them: what tables call columns answer `items[0]` by a label of their own."""
        numbered = enumerate(items)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            while part := list(islice(numbered, batch)):
                for _, item in part:
                    load_once(item)
                made = pool.map(lambda each: given_view(self.takes, each[1], each[0]), part)
                yield Views(collate(list(made)), [str(number) for number, _ in part], [])

    @property
    def mark(self) -> str:
        """Which weights, and which preprocessing: a hash of the files beside them."""
        digest = hashlib.blake2b(digest_size=16)
        for path in sorted(path for path in self.folder.iterdir() if path.is_file() and path.name != "README.md"):
            digest.update(f"{path.name}:{path.stat().st_size}:".encode())
            with path.open("rb") as file:
                while part := file.read(1 << 24):
                    digest.update(part)
        return digest.hexdigest()


def _refuse_no_list(items: Any) -> None:
    """Raises DataError for what does not say which vector is whose."""
    what = f"embed: a {type(items).__name__} in place of a list of items"
    if isinstance(items, Set):
        raise DataError(f"{what}: it has no order; write sorted(items)")
    if hasattr(items, "keys") and getattr(items, "ndim", 2) != 1:  # dicts and tables: a loop gives their names
        raise DataError(f"{what}: it gives names; write the list of its values, or the column")
    if isinstance(items, Iterator):
        raise DataError(f"{what}: it can be gone through once only; write list(items)")
    if isinstance(items, str | bytes | os.PathLike) or not hasattr(items, "__len__") or getattr(items, "ndim", 1) == 0:
        raise DataError(f"{what}; write [item]")


def encoder_at(
    path: Path, backbone: str | None = None, device: str | torch.device | None = None,
    modalities: Collection[str] | None = None,
) -> Encoder:  # fmt: skip
    """A network of a run folder, of an export, or by itself.

    Args:
        backbone: its name; it may be left out where there is one, or one that takes one of `modalities`.
        device: default: cuda where there is one, else cpu.
    Raises:
        ConfigError: nothing there, no such network, several, no such device.
    """
    networks = networks_at(path)
    if backbone is not None and backbone not in networks.names:
        raise ConfigError(f"--backbone: value {backbone!r}; allowed: {', '.join(networks.names)}"
                          f"{nearest(backbone, networks.names)}")  # fmt: skip
    chosen = networks.names if backbone is None else [backbone]
    inputs = {name: exported_input(networks.folder / name) for name in chosen}
    fits = [name for name, takes in inputs.items() if modalities is None or takes.modality in modalities]
    if len(fits) != 1:
        there = ", ".join(f"{name} (takes {takes.plural})" for name, takes in inputs.items())
        what = "several networks fit" if fits else f"no network for data with {' and '.join(modalities or ['nothing'])}"
        remedy = f"choose by --backbone, in Python by backbone=: {', '.join(fits)}" if fits else "give other data"
        raise ConfigError(f"{path}: {what}; it holds {there}; {remedy}")
    folder = networks.folder / fits[0]
    return Encoder(folder, load_backbone(folder), inputs[fits[0]], _device(device))


def _device(name: str | torch.device | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        why = str(error).partition("\n")[0]
        raise ConfigError(f"device: {str(name)!r} is no device of this machine ({why})") from None
