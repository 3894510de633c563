"""Classes that samples are of: one each, or any number of labels each, as the metadata field has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigssl.data.errors import DataError
from bigssl.data.kinds.decode import value_name
from bigssl.data.sample import Sample
from bigssl.transfer.features import finite, metadata
from bigssl.transfer.labelled.examples import Target
from bigssl.transfer.scores import majority_hits
from bigssl.transfer.team import AgreedError

Labels = str | tuple[str, ...]


def label_target(name: str) -> Target:
    """Of a sample, the value of the metadata field `name`: a text or number as str, a list as a tuple of these."""

    def target(sample: Sample) -> Labels:
        values = metadata(sample)
        if values.get(name) is None:
            there = ", ".join(sorted(key for key, value in values.items() if value is not None)) or "none"
            raise DataError(f"no metadata field {name!r} in its json; it has {there}")
        value = values[name]
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, str | int | float):
                raise DataError(f"metadata field {name!r} holds {value!r:.60}; allowed: a text, a number or a list")
        return tuple(dict.fromkeys(map(value_name, value))) if isinstance(value, list) else value_name(value)

    return target


@dataclass(frozen=True)
class LabelSet:
    """names: sorted. several: whether a sample has any number of them, and not one."""

    names: list[str]
    several: bool

    @classmethod
    def of(cls, where: str, field: str, train: Sequence[Labels], queries: Sequence[Labels]) -> LabelSet:
        """Of labelled samples and queries. Raises AgreedError: one class alone, classes that nothing can be learnt of,
        lists in some samples alone. field: the metadata field, for errors."""
        value = f"{where}.label: value {field!r}: "
        kinds = {isinstance(labels, tuple) for part in (train, queries) for labels in part}
        if len(kinds) > 1:
            raise AgreedError(f"{value}a list in some samples and one value in others; allowed: one of both")
        known, asked = Counter(_each(train)), Counter(_each(queries))
        if len(known) < 2:
            there = f"all {len(train)} are of class {min(known)!r}" if known else f"none of {len(train)} has a label"
            raise AgreedError(f"{value}of the samples that are learnt from {there}; allowed: two classes or more")
        if strange := sorted(set(asked) - set(known)):
            some = ", ".join(map(repr, strange[:3])) + (f" and {len(strange) - 3} more" if len(strange) > 3 else "")
            count = sum(asked[name] for name in strange)
            raise AgreedError(f"{value}{count} queries are of {some}, but no sample that is learnt from; allowed: the "
                              f"{len(known)} classes of `train` (raise train_limit where there is one)")  # fmt: skip
        return cls(sorted(known), kinds == {True})

    def __len__(self) -> int:
        return len(self.names)

    def numbers(self, labels: Sequence[Labels]) -> Tensor:
        """int64 [N], or bool [N, classes] where a sample has several."""
        place = {name: number for number, name in enumerate(self.names)}
        if not self.several:
            return torch.tensor([place[str(label)] for label in labels], dtype=torch.int64)
        found = torch.zeros(len(labels), len(self), dtype=torch.bool)
        for row, each in enumerate(labels):
            found[row, [place[name] for name in each]] = True
        return found

    def strata(self, labels: Sequence[Labels]) -> list[Hashable]:
        """Of each sample its class; of several, the rarest."""
        counts = Counter(_each(labels))
        return [min(each, key=lambda name: (counts[name], name), default="") if isinstance(each, tuple) else each
                for each in labels]  # fmt: skip

    def right(self, scores: Tensor, wanted: Tensor) -> Tensor:
        """Of scores float [N, classes] and `numbers`: bool [N], or of several the `ranking_precision`. Raises DataError
        of scores that are not finite."""
        finite(scores, "scores of queries")
        return ranking_precision(scores, wanted) if self.several else scores.argmax(1) == wanted

    def blind(self, train: Sequence[Labels], queries: Sequence[Labels]) -> dict[str, Tensor]:
        """What is right without a look at the input: the most frequent class of the queries; of several labels, those
        of the samples learnt from in the order of their frequency."""
        if not self.several:
            return {"majority": majority_hits([str(label) for label in queries])}
        counts = Counter(_each(train))
        scores = torch.tensor([[float(counts[name]) for name in self.names]]).expand(len(queries), -1)
        return {"blind": ranking_precision(scores, self.numbers(queries))}


def _each(labels: Sequence[Labels]) -> list[str]:
    return [name for each in labels for name in (each if isinstance(each, tuple) else (each,))]


def ranking_precision(scores: Tensor, wanted: Tensor) -> Tensor:
    """Label ranking average precision of each sample, float64 [N], of scores [N, C] and labels bool [N, C]: the mean,
    over its labels, of the share of its labels among all those that score as high or higher (Schapire and Singer 2000).
    1 of a sample with no label, or all."""
    ordered, order = scores.sort(dim=1)
    rank = scores.shape[1] - torch.searchsorted(ordered, scores.contiguous())  # labels that score as high or higher
    among = wanted.gather(1, order).flip(1).cumsum(1).gather(1, rank - 1)  # of its own
    shares = torch.where(wanted, among.double() / rank, 0.0).sum(1) / wanted.sum(1).clamp(min=1)
    return torch.where(wanted.any(1) & ~wanted.all(1), shares, 1.0)


def told(classes: LabelSet) -> dict[str, Any]:
    """Of a row: chance, and names of its baselines."""
    if classes.several:
        return {"names": {"blind": "labels by their frequency"}}
    return {"chance": 1 / len(classes)}
