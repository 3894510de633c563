"""Linear models of frozen features, and of the raw input, for every contender."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bigssl.transfer.bags import Bags
from bigssl.transfer.bench import Bench
from bigssl.transfer.collapse import Checkup
from bigssl.transfer.labelled.classify import Classification, Classifying
from bigssl.transfer.labelled.examples import Examples
from bigssl.transfer.labelled.logistic import fit_logistic
from bigssl.transfer.labelled.section import Learning
from bigssl.transfer.labelled.trials import Trial, held_out
from bigssl.transfer.labelled.vectors import Learnable, OfSeeds, bag_vectors, vectors_of
from bigssl.transfer.scores import RAW, words_of
from bigssl.transfer.subjects import Encoded, Subject

HELD_OUT = 0.2
STRENGTHS = [10.0**power for power in range(-2, 6)]

Learner = Callable[[Trial], Tensor]


def linear_learners(
    bench: Bench, section: Classifying, job: Classification, l2: Sequence[float] = STRENGTHS
) -> dict[str, Learner]:
    """By contender, of a trial: scores float32 [queries, classes] of all queries by logistic regression. A collective.

    Args:
        l2: penalties. The best is taken by the loss on a fifth of the samples of a trial, and fitted to all of them;
            the middle one where no class has two.
    """
    vectors = learnables(bench, section, job.subject, job.train, job.queries)
    vectors["random_net"] = of_fresh(bench, section, job.subject, job.train, job.queries, vectors["random_net"])
    return {name: _learner(bench, job, each, l2) for name, each in vectors.items()}


def learnables(
    bench: Bench, section: Learning, subject: Subject, train: Examples, queries: Examples
) -> dict[str, Learnable]:
    """By contender, the vectors of these samples of `section.train` and `section.queries`. A collective."""
    bank = bench.encode(subject, section.train, limit=section.train_limit, field="train", columns=[])
    asked = bench.encode(subject, section.queries, limit=section.query_limit, field="queries", columns=[])
    places = _places(bank, train), _places(asked, queries)
    found: dict[str, Learnable] = {}
    for name, of in bench.contenders(bank).items():
        known, judged = of(bank), of(asked)
        if isinstance(known, Bags) and isinstance(judged, Bags):
            found[name] = bag_vectors(known, judged, *places)
        else:
            found[name] = vectors_of(bank, asked, name, *places)
    return found


def of_fresh(
    bench: Bench, section: Learning, subject: Subject, train: Examples, queries: Examples, first: Learnable
) -> Learnable:
    """The same of networks of fresh weights, another one for each seed; `first`: of seed 0. A collective."""
    parts, aside = [first], replace(bench, checkup=Checkup())  # the health of one of them is enough
    for seed in range(1, section.seeds):
        model = bench.team.each(partial(bench.network, subject, "random_net", seed))
        other = Subject(f"{subject.name}/{seed}", {"trained": model}, subject.takes, parts=subject.parts)
        bank = aside.encode(other, section.train, limit=section.train_limit, field="train", columns=[])
        asked = aside.encode(other, section.queries, limit=section.query_limit, field="queries", columns=[])
        parts.append(vectors_of(bank, asked, "trained", _places(bank, train), _places(asked, queries)))
    return OfSeeds(parts)


def raw_learners(bench: Bench, section: Classifying, job: Classification) -> dict[str, Learner]:
    """Those of the raw input."""
    vectors = learnables(bench, section, job.subject, job.train, job.queries)
    return {name: _learner(bench, job, each, STRENGTHS) for name, each in vectors.items() if name.startswith(RAW)}


def _learner(bench: Bench, job: Classification, vectors: Learnable, l2: Sequence[float]) -> Learner:
    strata = job.classes.strata(job.train.targets)

    def learn(trial: Trial) -> Tensor:
        learnt, judged = vectors.of(trial)
        held = held_out([strata[row] for row in trial.rows.tolist()], HELD_OUT, (bench.seed, trial.seed))
        choice: dict[str, Any] = {"l2": l2, "valid": held}
        if not len(held):
            choice = {"l2": [sorted(l2)[len(l2) // 2]]}
        known = job.known[trial.rows].to(bench.device)
        model = fit_logistic(learnt.to(bench.device), known, classes=len(job.classes), **choice)
        if not model.converged:
            bench.note(f"{bench.where}: of {words_of(trial.contender)}, a logistic regression stopped before its "
                       "optimum, so its number may be too low; leave out the least values of l2.")  # fmt: skip
        return model(judged.to(bench.device)).cpu()

    return learn


def _places(encoded: Encoded, of: Examples) -> Tensor:
    """int64 [N]: the row of each sample. (Of equal texts there is one.)"""
    if not encoded.subject.takes.once:  # keys need not differ
        return torch.arange(len(of))
    place = {text: row for row, text in enumerate(encoded.keys)}
    return torch.tensor([place[text] for text in of.contents])
