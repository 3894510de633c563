"""Words with tags: how they are read, which tokens stand for them, and taggers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bigssl.data.errors import DataError
from bigssl.data.kinds.texts.following import frame_of
from bigssl.data.sample import Sample
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import evaluating, finite
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.labelled.fit import FitBelow, fit, layer_groups
from bigssl.transfer.labelled.trials import Trial
from bigssl.transfer.subjects import Subject
from bigssl.transfer.texts.states import TokenReadout, fact, facts_of, filled, in_batches

IGNORED = -100


class Tagged(NamedTuple):
    """The words of a text, each with its tag."""

    words: list[str]
    tags: list[str]


def tagged_words(sample: Sample, words: str, tags: str) -> Tagged:
    """Of the json's lists `words` and `tags`. Raises DataError where they are no lists of one length, or empty."""
    facts = facts_of(sample)
    found, given = fact(facts, words, list, "a list of words"), fact(facts, tags, list, "a list of tags")
    if len(found) != len(given):
        raise DataError(f"{len(found)} {words}, but {len(given)} {tags}; allowed: a tag for each")
    if not found:
        raise DataError(f"{words} is empty; leave such samples out")
    strange = [each for each in found if not isinstance(each, str)]
    strange += [each for each in given if not isinstance(each, str | int) or isinstance(each, bool)]
    if strange:
        raise DataError(f"{strange[0]!r:.40} among {words} and {tags}; allowed: texts, and names or numbers as tags")
    return Tagged(found, [str(tag) for tag in given])


class WordsSeen(NamedTuple):
    """Tokens of a text that a network sees together. ids: int64 [T]. text: number of the text. words: numbers of those
    that begin here, places: of their first tokens in ids, int64 [W] each."""

    ids: np.ndarray
    text: int
    words: np.ndarray
    places: np.ndarray


def stretches(takes: TextInput, texts: Sequence[Sequence[str]]) -> list[WordsSeen]:
    """Texts as a network sees them: words with a space between, cut between words where they do not fit. (Of a word
    that is too long by itself, the rest stands in the next stretch.)"""
    before, behind = frame_of(takes.tokenizer)
    room, found = takes.length - len(before) - len(behind), []
    for number, words in enumerate(texts):
        ids, firsts = _tokens(takes, words)
        known = np.flatnonzero(firsts >= 0)
        start = 0
        while start < len(ids):
            end = min(start + room, len(ids))
            if end < len(ids) and (cuts := firsts[(firsts > start) & (firsts <= end)]).size:
                end = int(cuts.max())
            own = known[(firsts[known] >= start) & (firsts[known] < end)]
            places = firsts[own] - start + len(before)
            found.append(WordsSeen(np.concatenate([before, ids[start:end], behind]), number, own, places))
            start = end
    return found


def _tokens(takes: TextInput, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(ids int64 [T], the place of each word's first token int64 [W], -1 where it has none)"""
    encoding = takes.tokenizer(" ".join(words), add_special_tokens=False, return_attention_mask=False,
                               return_offsets_mapping=True, verbose=False)  # fmt: skip
    offsets = np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    sizes = np.array([len(word) for word in words], dtype=np.int64)
    begins = np.cumsum(sizes + 1) - sizes - 1
    firsts = np.searchsorted(offsets[:, 1], begins, side="right")  # the first token that ends behind a word's begin
    starts = np.append(offsets[:, 0], np.iinfo(np.int64).max)[firsts]
    return np.array(encoding["input_ids"], dtype=np.int64), np.where(starts < begins + sizes, firsts, -1)


class Tagging:
    """Texts to learn tags from, and texts to be tagged.

    Attributes:
        kinds: different tags of all texts to learn from, by name.
    """

    def __init__(self, subject: Subject, train: Sequence[Tagged], queries: Sequence[Tagged]) -> None:
        takes = subject.takes
        assert isinstance(takes, TextInput)
        self.subject, self.takes, self.train, self.queries = subject, takes, train, queries
        self.kinds = sorted({tag for each in train for tag in each.tags})
        self._learnt = stretches(takes, [each.words for each in train])
        self._asked = stretches(takes, [each.words for each in queries])
        of: dict[int, list[int]] = {}
        for number, stretch in enumerate(self._learnt):
            of.setdefault(stretch.text, []).append(number)
        self._of = of

    @property
    def lost(self) -> int:
        """Words to be tagged for which there is no token."""
        return sum(len(each.words) for each in self.queries) - sum(len(each.words) for each in self._asked)

    def usual(self, rows: Iterable[int]) -> str:
        """The most frequent tag of some texts."""
        return _most_frequent(Counter(tag for row in rows for tag in self.train[row].tags))

    def by_network(self, bench: Bench, settings: FitBelow, trial: Trial) -> list[list[str]]:
        """Tags of the texts to be tagged by a network that is trained on those of a trial. A word without a token gets
        the most frequent tag."""
        seed, place = bench.seed + trial.seed, {tag: number for number, tag in enumerate(self.kinds)}
        model = bench.network(self.subject, trial.contender, trial.seed)
        tagger = TokenReadout(model, len(self.kinds), seed)
        mine = [number for row in trial.rows.tolist() for number in self._of.get(row, ())]
        if not mine:
            raise DataError(f"{len(trial.rows)} texts without a token; leave such texts out")

        def loss(rows: Tensor) -> Tensor:
            parts = [self._learnt[mine[row]] for row in rows.tolist()]
            scores, wanted = self._scores(bench, tagger, parts), []
            for part in parts:
                wanted += [place[self.train[part.text].tags[word]] for word in part.words]
            return cross_entropy(scores, torch.tensor(wanted, device=scores.device))

        groups = layer_groups(model, settings.layer_decay, list(tagger.top.parameters()), settings.below)
        fit(tagger, groups, len(mine), loss, settings, seed)
        return self._tagged(bench, tagger, self.usual(trial.rows.tolist()))

    def _scores(self, bench: Bench, tagger: TokenReadout, parts: Sequence[WordsSeen]) -> Tensor:
        """float32 [words, kinds]"""
        ids, mask = filled([part.ids for part in parts], self.takes.tokenizer.pad_token_id, bench.device)
        rows = np.concatenate([np.full(len(part.places), number) for number, part in enumerate(parts)])
        places = np.concatenate([part.places for part in parts])
        found: Tensor = tagger(ids, mask)[torch.from_numpy(rows), torch.from_numpy(places)]
        return found

    def _tagged(self, bench: Bench, tagger: TokenReadout, usual: str) -> list[list[str]]:
        found = [[usual] * len(each.words) for each in self.queries]
        with evaluating(tagger):
            for rows in in_batches(len(self._asked), bench.batch):
                parts = [self._asked[row] for row in rows]
                best = iter(finite(self._scores(bench, tagger, parts), "scores of tags").argmax(1).tolist())
                for part in parts:
                    for word in part.words:
                        found[part.text][word] = self.kinds[next(best)]
        return found

    def by_words(self, trial: Trial) -> list[list[str]]:
        """The tag that each word had most often in the texts of a trial; of another word, the most frequent one."""
        counts: dict[str, Counter[str]] = {}
        for row in trial.rows.tolist():
            for word, tag in zip(*self.train[row], strict=True):
                counts.setdefault(word, Counter())[tag] += 1
        known, usual = {word: _most_frequent(tags) for word, tags in counts.items()}, self.usual(trial.rows.tolist())
        return [[known.get(word, usual) for word in each.words] for each in self.queries]


def _most_frequent(tags: Counter[str]) -> str:
    """Ties: the first by name."""
    return min(tags, key=lambda tag: (-tags[tag], tag))
