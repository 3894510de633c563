"""A text made of a text: translation, summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from pydantic import Field

from bigssl.config.evaluate import Item
from bigssl.config.section import PositiveInt
from bigssl.data.errors import DataError
from bigssl.data.order import rng
from bigssl.data.sample import Sample
from bigssl.transfer.bench import Bench
from bigssl.transfer.labelled.examples import Examples, learnt_and_judged
from bigssl.transfer.labelled.fit import FitBelow
from bigssl.transfer.labelled.rows import scored
from bigssl.transfer.labelled.section import Learning
from bigssl.transfer.labelled.trials import Trial, outcomes, trials
from bigssl.transfer.measures.translations import CorpusMeasure, Words
from bigssl.transfer.scores import RAW, ScoreRow
from bigssl.transfer.texts.pairs import Pair, Translating, read_pair

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked


class Seq2Seq(Learning, FitBelow):
    """Translations or summaries by the network as the encoder and a small decoder of fresh weights, all trained; BLEU
    and chrF by sacrebleu beside copying the source."""

    preset = {"train": "made/pairs/train", "queries": "made/pairs/val", "fractions": [0.3, 1.0], "seeds": 1,
              "epochs": 2, "decoder_layers": 1, "target_length": 8}  # fmt: skip

    backbone: str = "text"
    source: str | None = Field(None, description="field of the json with the source; default the txt")
    label: str = Field("target", description="field of the json with the text to be made")
    item: Item = None
    target_length: PositiveInt | None = Field(None, description="its tokens at most; default as many as the network's")
    decoder_layers: PositiveInt = 2
    beams: PositiveInt = Field(1, description="beams of the search; 1: the likeliest token each time")
    bleu_words: Words = Field("13a", description="how sacrebleu cuts texts into words; char or zh for Chinese")
    lr: float = Field(1e-3, gt=0, description="greatest learning rate, of the decoder")

    def check(self, seen: Checked) -> None:
        seen.backbone("backbone", "text")
        seen.readable("train", self._read)
        seen.readable("queries", self._read)
        seen.apart("train")
        try:
            CorpusMeasure("BLEU", self.bleu_words)
        except DataError as error:
            seen.refuse("bleu_words", str(error))

    def _read(self, sample: Sample) -> Pair:
        return read_pair(sample, self.source, self.label)

    def run(self, bench: Bench) -> list[ScoreRow]:
        subject = bench.subject(self.backbone, "text")
        train, queries = learnt_and_judged(bench, self, subject.takes, self._read, self.item)
        if self.permuted:
            train = replace(train, targets=_dealt(train.targets, bench.seed))
        translating = bench.team.each(lambda: Translating(
            subject, train.targets, [each.source for each in queries.targets], length=self.target_length,
            layers=self.decoder_layers, beams=self.beams))  # fmt: skip
        found = outcomes(bench, trials(self, ["trained", "random_net"], len(train), seed=bench.seed),
                         lambda trial: translating.by_network(bench, self, trial))  # fmt: skip
        self._notes(bench, translating, train, queries)
        measures = bench.team.each(lambda: [CorpusMeasure("BLEU", self.bleu_words), CorpusMeasure("chrF")])
        return [self._row(measure, translating, found, train, queries) for measure in measures]

    def _row(self, measure: CorpusMeasure, translating: Translating, found: dict[Trial, list[str]], train: Examples,
             queries: Examples) -> ScoreRow:  # fmt: skip
        wanted = [each.target for each in queries.targets]
        judged = partial(measure.records, wanted=wanted)
        fixed = {name: judged(texts) for name, texts in _fixed(train.targets, queries.targets).items()}
        ceiling = measure(judged(translating.given_back(wanted)))
        return scored(
            f"texts from texts: {measure.kind}", f"on {len(queries)} unseen texts",
            {trial: judged(texts) for trial, texts in found.items()}, queries.groups(self.item), fixed=fixed,
            measure=measure, unit=measure.kind, names={"blind": "the most frequent text of those learnt from"},
            facts={"train": len(train), "ceiling": ceiling}, row=measure.kind.lower(),
        )  # fmt: skip

    def _notes(self, bench: Bench, translating: Translating, train: Examples, queries: Examples) -> None:
        both = [*train.targets, *queries.targets]
        most = translating.takes.length
        if cut := translating.longer([each.source for each in both], most, framed=True):
            bench.note(f"{bench.where}: of {cut} of {len(both)} sources the network sees the first {most} tokens.")
        if cut := translating.longer([each.target for each in train.targets], translating.length - 1, framed=False):
            bench.note(f"{bench.where}.train: of {cut} of {len(train)} texts to be made, the first "
                       f"{translating.length - 1} tokens are learnt.")  # fmt: skip
        bench.note(f"{bench.where}: ceiling is what the tokenizer gives back of the very texts that are wanted.")


def _fixed(train: Sequence[Pair], queries: Sequence[Pair]) -> dict[str, list[str]]:
    """Texts that no network makes."""
    counts = Counter(each.target for each in train)
    usual = min(counts, key=lambda text: (-counts[text], text))
    size = max(1, round(median(len(each.target.split()) for each in train)))
    return {"blind": [usual] * len(queries), f"{RAW}copying the source": [each.source for each in queries],
            f"{RAW}the first words of the source": [" ".join(each.source.split()[:size]) for each in queries]}


def _dealt(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """Each source with the target of another one."""
    order = rng.permutation(len(pairs), "labels", seed)
    return [Pair(each.source, pairs[other].target) for each, other in zip(pairs, order, strict=True)]
