"""BLEU and chrF of a corpus (Papineni et al. 2002; Popović 2015), by sacrebleu: from statistics of each text, so that
texts can be drawn again without being counted again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from bigssl.data.errors import DataError

Words = Literal["13a", "intl", "char", "zh", "ja-mecab", "ko-mecab", "none"]


class CorpusMeasure:
    """A measure of texts beside one reference each, 0 to 100.

    Args:
        kind: "BLEU" or "chrF".
        words: how sacrebleu cuts texts into words for BLEU.
    Raises:
        DataError: sacrebleu, or what it needs for these words, is not installed.
    """

    def __init__(self, kind: Literal["BLEU", "chrF"], words: Words = "13a") -> None:
        metrics = _sacrebleu()
        try:
            self._metric: Any = metrics.BLEU(tokenize=words) if kind == "BLEU" else metrics.CHRF()
        except (ImportError, RuntimeError) as error:
            raise DataError(f"sacrebleu cannot cut texts as {words}: {' '.join(str(error).split())}") from None
        self.kind = kind

    def records(self, found: Sequence[str], wanted: Sequence[str]) -> list[Any]:
        """The statistics of each text."""
        statistics: list[Any] = self._metric._extract_corpus_statistics(list(found), [list(wanted)])
        return statistics

    def __call__(self, records: Sequence[Any]) -> float:
        """The measure of these texts as one corpus."""
        return float(self._metric._aggregate_and_compute(list(records)).score)


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise DataError("BLEU needs sacrebleu, which is not installed: pip install 'bigssl[translation]'") from None
    return metrics
