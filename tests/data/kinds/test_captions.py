"""Captions lie where the module says; one of several is drawn, each as often as another."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from bigssl.data.errors import DataError
from bigssl.data.kinds.captions import all_captions, caption_of, is_captioned
from bigssl.data.sample import Sample

NO_DRAW: Any = None


def sample(txt: str | None = None, picture: bool = True, **values: Any) -> Sample:
    fields = {"png": b"..."} if picture else {}
    fields |= {"txt": txt.encode()} if txt is not None else {}
    fields |= {"json": json.dumps(values["json"]).encode()} if "json" in values else {}
    return Sample("s", fields, 0, 0, "x.tar", "t")


@pytest.mark.parametrize(
    ("given", "captions"),
    [
        (sample("a cat"), ["a cat"]),
        (sample("a cat", json={"label": "cat"}), ["a cat"]),
        (sample("a cat", json={"captions": ["one cat", "a cat"]}), ["a cat", "one cat"]),
        (sample("a cat", json=[1, 2]), ["a cat"]),
        (sample(json={"captions": ["one", "two"]}), ["one", "two"]),
        (sample(json={"captions": "one", "text": "two"}), ["one"]),
        (sample(json=["one", "two", "one"]), ["one", "two"]),
        (sample(json="one"), ["one"]),
        (sample(json={"sentences": ["It sits.", "It looks."]}), ["It sits. It looks."]),
    ],
)
def test_captions_are_read_from_where_they_lie(given: Sample, captions: list[str]) -> None:
    assert all_captions(given) == captions
    if len(captions) == 1:
        assert caption_of(given, NO_DRAW) == captions[0]  # nothing is drawn, so that what follows is as it was


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (sample(), "no caption: neither a field txt, nor json with captions; it has png"),
        (sample(json={"label": "a"}), "no caption"),
        (sample(json={"captions": []}), r"the captions in its json are \[\]; allowed: a text, or a list of texts"),
        (sample("a cat", json={"captions": [1]}), r"the captions in its json are \[1\]"),
        (sample(json=[]), r"the captions in its json are \[\]"),
        (sample(json=["a sentence", "of a document"], picture=False), "no caption"),
    ],
)
def test_what_is_no_caption_is_named(given: Sample, said: str) -> None:
    assert not is_captioned(given)
    with pytest.raises(DataError, match=f"shard x.tar, sample 's': {said}"):
        all_captions(given)


def test_each_caption_is_drawn_as_often_as_another() -> None:
    """5,000 draws of three: within five standard errors of a third."""
    several, rng = sample(json=["a", "b", "c"]), np.random.default_rng(0)
    counts = Counter(caption_of(several, rng) for _ in range(5000))
    assert counts.keys() == {"a", "b", "c"}
    for count in counts.values():
        assert abs(count - 5000 / 3) < 5 * (5000 * 2 / 9) ** 0.5
