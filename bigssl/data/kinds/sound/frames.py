"""Which frames of a sound are hidden: stretches of neighbours, a pure function of (frames, generator)."""

from __future__ import annotations

import numpy as np

from bigssl.data.errors import DataError

FEWEST = 3  # frames of a sound: two are hidden, to be told apart, and one is heard


def hidden_stretches(frames: int, total: int, share: float, span: int, rng: np.random.Generator) -> np.ndarray:
    """bool [total], True in stretches of `span` of the first `frames`.

    About share · frames / span of them begin at different frames, by chance, and may overlap: of long sounds,
    1 − (1 − share / span)^span of all frames are hidden (.65 and 10: 49 %; Baevski et al. 2020, section 4.2). In a
    sound of fewer than 3 · span frames they are a third of it long. Two frames are hidden at least, and one is not.

    Raises:
        DataError: fewer than 3 frames.
    """
    if frames < FEWEST:
        raise DataError(f"a sound of {frames} frames; allowed: >= {FEWEST}, of which some can be hidden")
    span = max(2, min(span, frames // 3))
    wanted = share * frames / span
    count = int(min(max(1, int(wanted) + (rng.random() < wanted - int(wanted))), frames - span + 1))
    begins = rng.choice(frames - span + 1, count, replace=False)
    hidden = np.zeros(total, bool)
    for begin in begins:
        hidden[begin : begin + span] = True
    if hidden[:frames].all():
        hidden[rng.integers(frames)] = False
    return hidden
