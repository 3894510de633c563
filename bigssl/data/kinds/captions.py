"""The captions of a sample: what is said of the picture (or sound, or series) beside them, once or in several ways.

| field | its captions |
|---|---|
| `txt` | the text; where there are others, it is the first of them |
| `json`, an object with `captions` | a text, or a list of them |
| `json`, a list of texts or a text, beside a picture | each (a dataset of texts alone has such a list for sentences) |
| `json`, an object with `text` or `sentences`, where there is none of these | the text, or the sentences in one piece |

A task draws one of them each time that it sees the sample; an evaluation uses all, or says that it takes the first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.sample import Sample

CAPTIONS = "captions"
"""The name in json of what is said of a picture."""


def all_captions(sample: Sample) -> list[str]:
    """The different captions, in their order; one at least. Raises DataError: there are none, or they are no texts."""
    found = [decode.text(sample.fields["txt"])] if "txt" in sample.fields else []
    found += _in_json(sample, bool(found))
    if not found:
        there = ", ".join(sorted(sample.fields)) or "none"
        raise DataError(f"{sample.where}: no caption: neither a field txt, nor json with {CAPTIONS}; it has {there}")
    return list(dict.fromkeys(found))


def caption_of(sample: Sample, rng: np.random.Generator) -> str:
    """One of the captions, each as likely as another; a single one without a draw. Raises DataError."""
    found = all_captions(sample)
    return found[int(rng.integers(len(found)))] if len(found) > 1 else found[0]


def is_captioned(sample: Sample) -> bool:
    """Whether it has a caption that can be read."""
    try:
        return bool(all_captions(sample))
    except DataError:
        return False


def _in_json(sample: Sample, further: bool) -> list[str]:
    """further: there is a text already, beside which json that says nothing of captions is anything."""
    data = sample.fields.get("json")
    if data is None:
        return []
    if not decode.holds_object(data):
        if decode.only_json(sample.fields):
            return []
        value = decode.json_value(data)
        return _texts(sample, value) if not further or _are_texts(value) else []
    values = decode.meta(data)
    if CAPTIONS in values:
        return _texts(sample, values[CAPTIONS])
    return [decode.running_text(sample)] if not further and {"text", "sentences"} & values.keys() else []


def _are_texts(value: Any) -> bool:
    return isinstance(value, str) or isinstance(value, list) and all(isinstance(each, str) for each in value)


def _texts(sample: Sample, value: Any) -> list[str]:
    if not value or not _are_texts(value):
        raise DataError(f"{sample.where}: the {CAPTIONS} in its json are {value!r:.80}; allowed: a text, or a list of "
                        "texts that is not empty")  # fmt: skip
    return [value] if isinstance(value, str) else value
