"""BLEU and chrF from statistics of each text are those of sacrebleu's corpus."""

from __future__ import annotations

import math
import sys

import pytest

from bigssl.data.errors import DataError
from bigssl.transfer.measures.translations import CorpusMeasure

FOUND = ["the cat sat on the mat .", "a dog barks", "", "Nothing, at all!"]
WANTED = ["The cat sat on a mat .", "the dog barks loudly", "something", "Nothing at all!"]


def test_numbers_are_those_of_the_corpus() -> None:
    from sacrebleu.metrics import BLEU, CHRF

    for measure, metric in ((CorpusMeasure("BLEU"), BLEU()), (CorpusMeasure("chrF"), CHRF()),
                            (CorpusMeasure("BLEU", "char"), BLEU(tokenize="char"))):  # fmt: skip
        records = measure.records(FOUND, WANTED)
        for rows in ([0, 1, 2, 3], [0, 0, 3], [1]):
            wanted = metric.corpus_score([FOUND[r] for r in rows], [[WANTED[r] for r in rows]]).score
            assert measure([records[row] for row in rows]) == pytest.approx(wanted)


def test_bleu_by_hand() -> None:
    """Precisions 5/6, 4/5, 3/4 and 2/3 of six words beside seven: exp(1 - 7/6) times their geometric mean."""
    measure = CorpusMeasure("BLEU", "none")
    found = measure(measure.records(["u v w x y q"], ["u v w x y z z"]))
    assert found == pytest.approx(100 * math.exp(1 - 7 / 6) * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)


def test_without_sacrebleu_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(DataError, match=r"sacrebleu, which is not installed: pip install 'bigssl\[translation\]'"):
        CorpusMeasure("BLEU")
