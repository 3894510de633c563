"""Answers to questions without a network: by the words that question and context share."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

from bigssl.transfer.texts.answering import Question

WORD = re.compile(r"\w+")
SENTENCE = re.compile(r"[^.!?。！？\n]*[.!?。！？\n]+|[^.!?。！？\n]+$")
NEAR = 12  # words to each side


class Word(NamedTuple):
    """In lower case, and where it stands."""

    text: str
    begin: int
    end: int


def words_in(text: str) -> list[Word]:
    return [Word(each.group().lower(), *each.span()) for each in WORD.finditer(text)]


class Lexical:
    """What is learnt without a network: how rare words are in the contexts, and how many words an answer has."""

    def __init__(self, questions: Sequence[Question]) -> None:
        contexts = {each.context for each in questions}
        seen = Counter(word for context in contexts for word in {word.text for word in words_in(context)})
        self.unseen = 1 + math.log(1 + len(contexts))
        self.weights: Mapping[str, float] = {word: self.unseen - math.log(1 + n) for word, n in seen.items()}
        sizes = [len(words_in(each.answers[0])) for each in questions if each.answers]
        self.size = max(1, round(median(sizes))) if sizes else 1

    def _shared(self, question: Question, words: Sequence[Word]) -> np.ndarray:
        """float64 [W]: the weight of each word of the context that the question has, too; else 0."""
        asked = {word.text for word in words_in(question.question)}
        return np.array([self.weights.get(word.text, self.unseen) if word.text in asked else 0.0 for word in words])

    def first(self, question: Question) -> str:
        """The first words of the context."""
        return _between(question.context, words_in(question.context)[: self.size])

    def sentence(self, question: Question) -> str:
        """The sentence of the context that shares most with the question, by TF-IDF; ties: the first."""
        sentences = [each.group().strip() for each in SENTENCE.finditer(question.context)]
        sums = [self._shared(question, words_in(each)).sum() / math.sqrt(1 + len(words_in(each))) for each in sentences]
        return sentences[int(np.argmax(sums))] if sentences else ""

    def near(self, question: Question) -> str:
        """Words of that sentence that are not asked, rare ones, where those of the question stand nearest, by their
        weights (the sliding window of Richardson et al. 2013, each word counting by its distance)."""
        sentence, size = self.sentence(question), self.size
        words = words_in(sentence)
        shared = self._shared(question, words)
        if len(words) <= size:
            return _between(sentence, words)
        fall = 1 / (1 + np.abs(np.arange(-NEAR, NEAR + 1)))
        rare = np.array([self.weights.get(word.text, self.unseen) for word in words])
        beside = np.convolve(shared, fall)[NEAR : NEAR + len(words)] * rare
        sums, asked = (np.convolve(each, np.ones(size), "valid") for each in (beside, shared > 0))
        begin = int(np.argmax(np.where(asked > 0, -1.0, sums)))
        return _between(sentence, words[begin : begin + size])


def _between(context: str, words: Sequence[Word]) -> str:
    return context[words[0].begin : words[-1].end] if words else ""
