"""What an exported backbone takes, whatever its modality: the fixed view that evaluation has of a sample, and the files
that say so."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.sample import Sample
from bigssl.transfer.arriving.sizes import PREPROCESSOR
from bigssl.transfer.bags import Grams


@dataclass(frozen=True)
class Input(ABC):
    """What a backbone of one modality takes. The fields of a subclass are attributes of its towers.

    Attributes:
        modality: a name in `bigssl.nets.modality.MODALITIES`.
        plural: what samples of it are called.
        once: equal contents are one observation, known by what they are, whatever the keys of their samples.
        loader: the class of transformers that loads what `write` writes; "" where it has none.
    """

    modality: ClassVar[str]
    plural: ClassVar[str]
    once: ClassVar[bool] = False
    loader: ClassVar[str]

    @property
    @abstractmethod
    def described(self) -> str:
        """What the model card says of it."""

    @property
    def before(self) -> str:
        """What no library does by itself before its preprocessor sees a sample, in sentences; "" where that is
        nothing."""
        return ""

    @classmethod
    @abstractmethod
    def read(cls, folder: Path) -> Input:
        """What the backbone exported to `folder` takes. Raises DataError."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """The files beside the weights."""

    def view(self, sample: Sample) -> dict[str, np.ndarray]:
        """The sample as evaluation sees it, by the names that the modality has for a batch. Raises DataError."""
        data = decode.field(sample, decode.FIELDS[self.modality])
        try:
            return self._view(data)
        except DataError as error:
            raise DataError(f"{sample.where}: {error}") from error

    @abstractmethod
    def _view(self, data: bytes) -> dict[str, np.ndarray]: ...

    @abstractmethod
    def raws(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Baselines that have learnt nothing, by what they are in words: collated views -> [B, N], uint8 or float32.
        Where there are several, the best one counts."""

    def bags(self) -> list[Grams]:
        """Those that a sample alone does not tell: of `once` inputs, n-grams whose weight depends on all texts."""
        return []

    @property
    def reduced(self) -> str:
        """What a reader of the scorecard has to know of the raw baseline; "" where it is the whole view."""
        return ""


def preprocessor_settings(folder: Path, what: str) -> dict[str, Any]:
    """Of the file beside a network that takes `what`. Raises DataError where there is none."""
    path = folder / PREPROCESSOR
    if not path.is_file():
        raise DataError(f"{path}: no such file; the backbone takes no {what}, or was exported by an older version: run "
                        "the training command again")
    settings: dict[str, Any] = json.loads(path.read_text())
    return settings


def write_settings(path: Path, values: Mapping[str, Any]) -> None:
    """As JSON, in the order of its names."""
    path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
