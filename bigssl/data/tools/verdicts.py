"""What a rule is, and what it says of a sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bigssl.data.tools.survey import Survey


@dataclass(frozen=True)
class Thresholds:
    """blank: a picture is blank up to this standard deviation of its grey values (0 to 255). min_text: a text with
    fewer letters and digits is empty. by: duplicates agree in these fields (default: in all that either has). at: of
    rules of texts, by name, what holds instead of their `default`. scripts: in which texts are to be written."""

    blank: float = 2.0
    min_text: int = 3
    by: tuple[str, ...] = ()
    at: Mapping[str, float] = field(default_factory=dict)
    scripts: tuple[str, ...] = ()


class Hit(NamedTuple):
    """Sample `number` falls under a rule, because `field` measures `value` (of duplicates: the key of the first)."""

    number: int
    field: str | None
    value: Any


@dataclass(frozen=True)
class Rule:
    """What makes a sample worthless.

    Attributes:
        meaning: in words, with thresholds in braces ({at}: its own).
        find: what falls under it, in index order, of the samples that are left (bool [N]) where it compares samples.
        default: of a rule of texts its threshold, which `--at RULE=VALUE` replaces.
        allowed: the least and the largest threshold.
        missing: why it cannot be asked, in words; "" where it can.
    """

    meaning: str
    find: Callable[[Survey, Thresholds, np.ndarray], Iterator[Hit]]
    default: float | None = None
    allowed: tuple[float, float] = (0, 1)
    missing: Callable[[Thresholds], str] = lambda thresholds: ""
