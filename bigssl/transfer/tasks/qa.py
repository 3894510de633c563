"""Questions whose answer is a part of a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from bigssl.config.evaluate import Item
from bigssl.config.section import PositiveInt
from bigssl.data.order import rng
from bigssl.data.sample import Sample
from bigssl.transfer.bench import Bench
from bigssl.transfer.labelled.examples import Examples, learnt_and_judged
from bigssl.transfer.labelled.fit import FitBelow
from bigssl.transfer.labelled.rows import scored
from bigssl.transfer.labelled.section import Learning
from bigssl.transfer.labelled.trials import Trial, outcomes, trials
from bigssl.transfer.measures.answers import answer_f1, exact_match, plain_answer
from bigssl.transfer.scores import RAW, ScoreRow
from bigssl.transfer.texts.answering import Answering, Question, read_question
from bigssl.transfer.texts.lexical import Lexical, words_in

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked

MEASURES = {"f1": ("word F1", answer_f1), "exact": ("exact match", exact_match)}
NAMES = {"majority": "the most frequent answer", "blind": "the first words of the text"}


class Qa(Learning, FitBelow):
    """Extractive answers, as SQuAD has them: exact match and F1 of words, the best over the answers of a question.

    All weights are trained, with a linear layer that scores each token as the first and as the last of the answer. Long
    texts are read in windows. Questions without an answer are answered by none where there are some to learn from.
    """

    preset = {"train": "made/spans/train", "queries": "made/spans/val", "fractions": [0.3, 1.0], "seeds": 1,
              "epochs": 3}  # fmt: skip

    backbone: str = "text"
    question: str = Field("question", description="field of the json with the question")
    context: str = Field("context", description="field of the json with the text that holds the answer; without one, "
                                                "the txt")  # fmt: skip
    label: str = Field("answers", description="field of the json: {text: [...], answer_start: [...]}")
    item: Item = None
    longest: PositiveInt = Field(30, description="tokens of an answer at most")
    epochs: PositiveInt = 5
    lr: float = Field(5e-4, gt=0, description="greatest learning rate, of the new layer")

    def check(self, seen: Checked) -> None:
        seen.backbone("backbone", "text")
        seen.readable("train", self._read)
        seen.readable("queries", self._read)
        seen.apart("train")

    def _read(self, sample: Sample) -> Question:
        return read_question(sample, self.question, self.context, self.label)

    def run(self, bench: Bench) -> list[ScoreRow]:
        subject = bench.subject(self.backbone, "text")
        train, queries = learnt_and_judged(bench, self, subject.takes, self._read, self.item)
        if self.permuted:
            train = replace(train, targets=_dealt(train.targets, bench.seed))
        answering = bench.team.each(lambda: Answering(subject, train.targets, queries.targets, self.longest))
        self._notes(bench, answering)
        found = outcomes(bench, trials(self, ["trained", "random_net"], len(train), seed=bench.seed),
                         lambda trial: answering.by_network(bench, self, trial))  # fmt: skip
        return [self._row(name, found, _fixed(train.targets, queries.targets), train, queries) for name in MEASURES]

    def _row(self, name: str, found: dict[Trial, list[str]], fixed: dict[str, list[str]], train: Examples,
             queries: Examples) -> ScoreRow:  # fmt: skip
        words, measure = MEASURES[name]

        def judged(answers: Sequence[str]) -> Tensor:
            found = [measure(one, each.answers) for one, each in zip(answers, queries.targets, strict=True)]
            return torch.tensor(found, dtype=torch.float64)

        groups = [each.context for each in queries.targets] if self.item is None else queries.column(self.item)
        unanswerable = sum(not each.answers for each in queries.targets)
        return scored(
            f"extractive answers: {words}", f"{words} of {len(queries)} unseen questions",
            {trial: judged(answers) for trial, answers in found.items()}, groups,
            fixed={each: judged(answers) for each, answers in fixed.items()}, names=NAMES, row=name,
            facts={"train": len(train), "texts": len(set(groups)), "unanswerable": unanswerable},
        )  # fmt: skip

    def _notes(self, bench: Bench, answering: Answering) -> None:
        moved = sum(each.moved for each in [*answering.train, *answering.queries])
        if moved:
            bench.note(f"{bench.where}: {moved} answers do not stand at their answer_start; the nearest place counts.")
        if answering.lost:
            bench.note(f"{bench.where}.train: {answering.lost} of {len(answering.train)} questions have their answer "
                       "in no single window of this network and are not learnt from.")  # fmt: skip


def _fixed(train: Sequence[Question], queries: Sequence[Question]) -> dict[str, list[str]]:
    """Answers that no network gives."""
    lexical = Lexical(train)
    counts = Counter(plain_answer(each.answers[0]) if each.answers else "" for each in train)
    usual = min(counts, key=lambda text: (-counts[text], text))
    return {
        "majority": [usual] * len(queries), "blind": [lexical.first(each) for each in queries],
        f"{RAW}words where those of the question stand": [lexical.near(each) for each in queries],
        f"{RAW}the sentence nearest by TF-IDF": [lexical.sentence(each) for each in queries],
    }  # fmt: skip


def _dealt(questions: Sequence[Question], seed: int) -> list[Question]:
    """Each with the place of the answer of another one, as far into its own text."""
    order = rng.permutation(len(questions), "labels", seed)
    return [_elsewhere(each, questions[other]) for each, other in zip(questions, order, strict=True)]


def _elsewhere(question: Question, other: Question) -> Question:
    words, context = words_in(question.context), question.context
    if not words or not other.answers:
        return question._replace(answers=[], starts=[])
    starts = [min(len(words) - 1, start * len(words) // len(other.context)) for start in other.starts]
    spans = [words[start : start + max(1, len(words_in(text)))]
             for start, text in zip(starts, other.answers, strict=True)]  # fmt: skip
    return question._replace(answers=[context[span[0].begin : span[-1].end] for span in spans],
                             starts=[span[0].begin for span in spans])  # fmt: skip
