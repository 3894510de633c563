"""Questions whose answer is a part of a context: how they are read, the windows in which a network sees them, and
networks that point at the first and the last token of the answer (Devlin et al. 2019).

A window is question and as much of the context as fits, each overlapping the one before it by a third. Its first token
stands for "not here". The answer of a question is the part, of all windows, with the greatest odds against that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bigssl.data.errors import DataError
from bigssl.data.kinds import decode
from bigssl.data.sample import Sample
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import evaluating, finite
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.labelled.fit import FitBelow, fit, layer_groups
from bigssl.transfer.labelled.trials import Trial
from bigssl.transfer.subjects import Subject
from bigssl.transfer.texts.states import TokenReadout, fact, facts_of, filled, in_batches

OVERLAP = 3  # a third of a window's context stands in the one before it, too
NOWHERE = -1


class Question(NamedTuple):
    """answers: none where the context has none; starts: where each begins in it, in characters. moved: how many begin
    elsewhere than the sample says."""

    question: str
    context: str
    answers: list[str]
    starts: list[int]
    moved: int = 0


def read_question(sample: Sample, question: str, context: str, answers: str) -> Question:
    """From these fields of the json; the context may be the txt. Raises DataError where one is empty, and where an
    answer does not stand in the context (one that stands elsewhere than it says is taken from the nearest place)."""
    facts = facts_of(sample)
    asked = fact(facts, question, str, "a text")
    if context in facts or "txt" not in sample.fields:
        text = fact(facts, context, str, "a text")
    else:
        text = decode.text(sample.fields["txt"])
    for name, value in ((question, asked), (context, text)):
        if not value.strip():
            raise DataError(f"{name} is empty; leave such samples out")
    texts, starts = _given(fact(facts, answers, dict, "{text: [...], answer_start: [...]}"), answers)
    found = [_nearest(text, each, start) for each, start in zip(texts, starts, strict=True)]
    if NOWHERE in found:
        raise DataError(f"answer {texts[found.index(NOWHERE)]!r:.60} does not stand in the {context}")
    return Question(asked, text, texts, found, sum(one != other for one, other in zip(found, starts, strict=True)))


def _given(answers: dict[str, list], name: str) -> tuple[list[str], list[int]]:
    texts, starts = answers.get("text"), answers.get("answer_start")
    if not (isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts)
            and all(isinstance(text, str) for text in texts)
            and all(isinstance(start, int) and not isinstance(start, bool) for start in starts)):  # fmt: skip
        raise DataError(f"{name} is {answers!r:.80}; allowed: {{text: [...], answer_start: [...]}}, texts and where "
                        "each begins in characters, one for each; both empty where there is no answer")  # fmt: skip
    kept = [_trimmed(text, start) for text, start in zip(texts, starts, strict=True) if text.strip()]
    return [text for text, _ in kept], [start for _, start in kept]


def _trimmed(text: str, start: int) -> tuple[str, int]:
    """Without spaces around it, for which there are no tokens, and where it then begins."""
    return text.strip(), start + len(text) - len(text.lstrip())


def _nearest(context: str, text: str, start: int) -> int:
    """Where `text` stands, nearest to `start`; `NOWHERE`."""
    if start >= 0 and context.startswith(text, start):
        return start
    places, at = [], context.find(text)
    while at >= 0:
        places.append(at)
        at = context.find(text, at + 1)
    return min(places, key=lambda place: abs(place - start), default=NOWHERE)


class Window(NamedTuple):
    """ids: int64 [T]. number: of the question. places: int64 [T, 2], the characters of the context that each token
    stands for, `NOWHERE` of others."""

    ids: np.ndarray
    number: int
    places: np.ndarray

    @property
    def open(self) -> np.ndarray:
        """bool [T]: the tokens of the context, and the first."""
        found: np.ndarray = self.places[:, 0] >= 0
        found[0] = True
        return found

    def answer(self, begin: int, end: int) -> tuple[int, int]:
        """(first token, last token) of the characters [begin, end) of the context; (0, 0) where not all are here."""
        first = np.flatnonzero((self.places[:, 0] <= begin) & (begin < self.places[:, 1]))
        last = np.flatnonzero((self.places[:, 0] < end) & (end <= self.places[:, 1]))
        return (int(first[0]), int(last[-1])) if len(first) and len(last) else (0, 0)


def windows_of(takes: TextInput, number: int, question: str, context: str) -> list[Window]:
    """A question has half of a window at most; of a longer one, the beginning. Raises DataError where a window has no
    room for both."""
    tokenizer, room = takes.tokenizer, takes.length - takes.tokenizer.num_special_tokens_to_add(pair=True)
    if room < 2:
        raise DataError(f"length {takes.length} has no room for a question and a text; allowed: >= "
                        f"{takes.length - room + 2}")  # fmt: skip
    ends = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    if len(ends) > (most := max(1, room // 2)):
        question, ends = question[: ends[most - 1][1]], ends[:most]
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=takes.length, return_overflowing_tokens=True,
        stride=max(0, room - len(ends)) // OVERLAP, return_offsets_mapping=True, return_attention_mask=False,
    )  # fmt: skip
    found = []
    for at, ids in enumerate(encoded["input_ids"]):
        inside = np.array([side == 1 for side in encoded.sequence_ids(at)])
        places = np.where(inside[:, None], np.array(encoded["offset_mapping"][at], dtype=np.int64), NOWHERE)
        found.append(Window(np.array(ids, dtype=np.int64), number, places))
    return found


class Answering:
    """Questions to learn from, and questions to be answered.

    Attributes:
        longest: tokens of an answer that is found at most.
        lost: of the questions to learn from, how many have their answer in no single window.
    """

    def __init__(self, subject: Subject, train: Sequence[Question], queries: Sequence[Question], longest: int) -> None:
        assert isinstance(subject.takes, TextInput)
        self.subject, self.train, self.queries, self.longest = subject, train, queries, longest
        self._padding = subject.takes.tokenizer.pad_token_id
        windows = partial(windows_of, subject.takes)
        self._learnt = [windows(number, each.question, each.context) for number, each in enumerate(train)]
        self._asked = [window for number, each in enumerate(queries)
                       for window in windows(number, each.question, each.context)]  # fmt: skip
        self._wanted = [[_place(window, each) for window in own]
                        for own, each in zip(self._learnt, train, strict=True)]  # fmt: skip
        self._useless = {number for number, each in enumerate(train)
                         if each.answers and not any(last for _, last in self._wanted[number])}  # fmt: skip
        self.lost = len(self._useless)

    def by_network(self, bench: Bench, settings: FitBelow, trial: Trial) -> list[str]:
        """Answers of the questions, by a network that is trained on those of a trial. "" for none, which is answered
        only where there are such questions among those of the trial."""
        seed, rows = bench.seed + trial.seed, [row for row in trial.rows.tolist() if row not in self._useless]
        mine = [(window, place) for row in rows
                for window, place in zip(self._learnt[row], self._wanted[row], strict=True)]  # fmt: skip
        if not mine:
            raise DataError(f"of {len(trial.rows)} questions none has its answer in one window; allowed: networks of a "
                            "greater length")  # fmt: skip
        model = bench.network(self.subject, trial.contender, trial.seed)
        reader = TokenReadout(model, 2, seed)

        def loss(numbers: Tensor) -> Tensor:
            parts = [mine[number] for number in numbers.tolist()]
            scores = self._scores(bench, reader, [window for window, _ in parts])
            wanted = torch.tensor([place for _, place in parts], device=scores.device)
            return cross_entropy(scores[..., 0], wanted[:, 0]) + cross_entropy(scores[..., 1], wanted[:, 1])

        groups = layer_groups(model, settings.layer_decay, list(reader.top.parameters()), settings.below)
        fit(reader, groups, len(mine), loss, settings, seed)
        return self._answers(bench, reader, any(not self.train[row].answers for row in rows))

    def _scores(self, bench: Bench, reader: TokenReadout, parts: Sequence[Window]) -> Tensor:
        """float32 [B, T, 2] of being the first and the last token; -inf outside the context, the first token aside."""
        ids, mask = filled([part.ids for part in parts], self._padding, bench.device)
        closed = filled([part.open for part in parts], 0, bench.device)[0] == 0
        return reader(ids, mask).masked_fill(closed[..., None], -torch.inf)

    def _answers(self, bench: Bench, reader: TokenReadout, none: bool) -> list[str]:
        odds, found = np.full(len(self.queries), -np.inf), [""] * len(self.queries)
        with evaluating(reader):
            for rows in in_batches(len(self._asked), bench.batch):
                parts = [self._asked[row] for row in rows]
                scores = finite(self._scores(bench, reader, parts), "scores of tokens")
                for part, (own, first, last) in zip(parts, best_spans(scores, self.longest), strict=True):
                    if own > odds[part.number]:
                        odds[part.number] = own
                        begin, end = part.places[first, 0], part.places[last, 1]
                        found[part.number] = self.queries[part.number].context[begin:end].strip()
        return ["" if none and own <= 0 else text for own, text in zip(odds.tolist(), found, strict=True)]


def best_spans(scores: Tensor, longest: int) -> list[tuple[float, int, int]]:
    """(log odds against the first token, first, last) of the best span in each row of scores float32 [B, T, 2], of
    `longest` tokens at most and without the first token; odds -inf where there is no other."""
    start, end = scores[..., 0] - scores[:, :1, 0], scores[..., 1] - scores[:, :1, 1]
    start[:, 0], size = -torch.inf, start.shape[1]
    sums = torch.stack([torch.nn.functional.pad(start[:, : size - more] + end[:, more:], (0, more), value=-torch.inf)
                        for more in range(min(longest, size))], 2)  # fmt: skip
    best, at = sums.flatten(1).max(1)
    first, more = at // sums.shape[2], at % sums.shape[2]
    return list(zip(best.tolist(), first.tolist(), (first + more).tolist(), strict=True))


def _place(window: Window, question: Question) -> tuple[int, int]:
    """Of the first answer that is whole in the window; (0, 0) of none."""
    for text, begin in zip(question.answers, question.starts, strict=True):
        if (found := window.answer(begin, begin + len(text)))[1]:
            return found
    return 0, 0
