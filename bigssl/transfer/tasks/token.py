"""A tag for each word: names of persons and places, parts of speech."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field

from bigssl.config.evaluate import Label
from bigssl.config.section import PositiveInt
from bigssl.data.order import rng
from bigssl.data.sample import Sample
from bigssl.transfer.bench import Bench
from bigssl.transfer.labelled.examples import learnt_and_judged
from bigssl.transfer.labelled.fit import FitBelow
from bigssl.transfer.labelled.rows import scored
from bigssl.transfer.labelled.section import Labelled
from bigssl.transfer.labelled.trials import Trial, outcomes, trials
from bigssl.transfer.measures.entities import are_entities, entity_f1, matches
from bigssl.transfer.scores import RAW, ScoreRow
from bigssl.transfer.team import AgreedError
from bigssl.transfer.texts.tagging import Tagged, Tagging, tagged_words

if TYPE_CHECKING:
    from bigssl.engine.plan.evaluation import Checked

USUAL = f"{RAW}the most frequent tag of each word"


class Token(Labelled, FitBelow):
    """Tags of words by a linear layer on the first token of each, all weights trained (Devlin et al. 2019).

    Tags of the form B-TYPE, I-TYPE and O are judged by F1 of whole entities, others by the share that is right.
    """

    preset = {"train": "made/tags/train", "queries": "made/tags/val", "fractions": [0.3, 1.0], "seeds": 1, "epochs": 3}

    backbone: str = "text"
    tokens: str = Field("tokens", description="field of the json with the list of words")
    label: Label = Field("label", description="field of the json with the list of their tags, names or numbers")
    epochs: PositiveInt = 10
    lr: float = Field(5e-4, gt=0, description="greatest learning rate, of the new layer")

    def check(self, seen: Checked) -> None:
        seen.backbone("backbone", "text")
        seen.readable("train", self._read)
        seen.readable("queries", self._read)
        seen.apart("train")

    def _read(self, sample: Sample) -> Tagged:
        return tagged_words(sample, self.tokens, self.label)

    def run(self, bench: Bench) -> list[ScoreRow]:
        subject = bench.subject(self.backbone, "text")
        train, queries = learnt_and_judged(bench, self, subject.takes, self._read, self.item)
        learnt = _dealt(train.targets, bench.seed) if self.permuted else train.targets
        tagging = Tagging(subject, learnt, queries.targets)
        self._refuse(bench, tagging)
        entities = are_entities(tagging.kinds)
        judge = partial(_judged, queries.targets, matches if entities else _right)

        def work(trial: Trial) -> Any:
            return judge(tagging.by_words(trial) if trial.contender == USUAL else
                         tagging.by_network(bench, self, trial))  # fmt: skip

        plan = trials(self, ["trained", "random_net", USUAL], len(train), seed=bench.seed)
        found = outcomes(bench, plan, work)
        usual = tagging.usual(range(len(train)))
        fixed = {"majority": judge([[usual] * len(each.words) for each in queries.targets])}
        weights = torch.tensor([len(each.words) for each in queries.targets], dtype=torch.float64)
        what = f"{self.label} of words" if self.label != "label" else "tags of words"
        facts = {"train": len(train), "classes": len(tagging.kinds), "words": int(weights.sum())}
        if not entities:
            counts = {trial: torch.tensor(each, dtype=torch.float64) for trial, each in found.items()}
            usually = {name: torch.tensor(each, dtype=torch.float64) for name, each in fixed.items()}
            return [scored(what, f"of the words of {len(queries)} unseen texts get the right tag of "
                           f"{len(tagging.kinds)}", counts, queries.groups(self.item), fixed=usually, weights=weights,
                           chance=1 / len(tagging.kinds), facts=facts)]  # fmt: skip
        return [scored(f"{what}: entities", f"F1 of the entities in {len(queries)} unseen texts", found,
                       queries.groups(self.item), fixed=fixed, measure=entity_f1, facts=facts,
                       names={"majority": "the most frequent tag"})]  # fmt: skip

    def _refuse(self, bench: Bench, tagging: Tagging) -> None:
        """One tag alone; notes on what cannot be right."""
        if len(tagging.kinds) < 2:
            raise AgreedError(f"{bench.where}.label: all {self.label} of the train shards are {tagging.kinds[0]!r}; "
                              "needed are two different ones")  # fmt: skip
        strange = sorted({tag for each in tagging.queries for tag in each.tags} - {*tagging.kinds})
        if strange:
            times = sum(each.tags.count(tag) for each in tagging.queries for tag in strange)
            bench.note(f"{bench.where}: {len(strange)} tags of the queries are none of the train shards "
                       f"({', '.join(strange[:3])}): {times} words that nobody can get right.")  # fmt: skip
        if tagging.lost:
            bench.note(f"{bench.where}: the tokenizer makes no token of {tagging.lost} words of the queries; they get "
                       "the most frequent tag.")  # fmt: skip


def _dealt(texts: Sequence[Tagged], seed: int) -> list[Tagged]:
    """The same words with their tags dealt anew among all of them."""
    tags = [tag for each in texts for tag in each.tags]
    mixed = iter([tags[place] for place in rng.permutation(len(tags), "labels", seed)])
    return [Tagged(each.words, [next(mixed) for _ in each.words]) for each in texts]


def _right(found: Sequence[str], wanted: Sequence[str]) -> int:
    return sum(one == other for one, other in zip(found, wanted, strict=True))


def _judged(wanted: Sequence[Tagged], measure: Callable[[Sequence[str], Sequence[str]], Any],
            found: Sequence[Sequence[str]]) -> list[Any]:  # fmt: skip
    return [measure(tags, each.tags) for tags, each in zip(found, wanted, strict=True)]
