"""Training of networks with their heads on the labelled samples of a trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from bigssl.transfer.bench import Bench
from bigssl.transfer.features import evaluating
from bigssl.transfer.labelled.classify import Classification, Classifying
from bigssl.transfer.labelled.examples import Examples
from bigssl.transfer.labelled.fit import Fit, Groups, fit
from bigssl.transfer.labelled.networks import Classifier, with_head
from bigssl.transfer.labelled.probing import Learner, raw_learners
from bigssl.transfer.labelled.trials import Trial
from bigssl.transfer.leaving.classifier import refuse_other, save_classifier
from bigssl.transfer.scores import ScoreRow

KEPT = "networks"  # folder beside the scorecard


class Tuning(Classifying, Fit):
    """A section of classification by networks that are trained with a new head."""

    least_steps: Annotated[int, Field(ge=0)] = Field(
        100, description="training steps at least: of few samples there are more epochs"
    )

    def tuned(self, network: Classifier, seed: int) -> Groups:
        """Marks what is trained, in place; the parameters for `fit`, those of the new layers among them. DataError
        where this network cannot be trained so."""
        raise NotImplementedError


def tuned_row(bench: Bench, section: Tuning, how: str, keep: bool = False) -> ScoreRow:
    """The row of an evaluation that trains the network, random weights the same way, and a linear model of the raw
    input. A collective.

    Args:
        how: in words, what classifies.
        keep: write the trained network of seed 0 with all labels to OUT/networks/NAME.
    """
    folder = bench.out / KEPT / bench.where.rpartition(".")[2] if keep and bench.out else None
    if folder is not None:
        refuse_other(folder)  # before hours of training
    job = Classification.of(bench, section)
    work: dict[str, Learner] = {"random_net": _learner(bench, section, job, None)}
    work |= raw_learners(bench, section, job)
    work["trained"] = _learner(bench, section, job, folder)
    facts = {"epochs": section.epochs, "lr": section.lr}
    return job.row(bench, section, work, how, facts | ({"kept": f"{KEPT}/{folder.name}"} if folder else {}))


def _learner(bench: Bench, section: Tuning, job: Classification, folder: Path | None) -> Learner:
    def learn(trial: Trial) -> Tensor:
        network = trained(bench, section, job, trial)
        if folder is not None and (trial.seed, trial.fraction) == (0, section.fractions[-1]):
            _keep(folder, network, job)
        return predictions(network, job.queries, bench)

    return learn


def trained(bench: Bench, section: Tuning, job: Classification, trial: Trial) -> Classifier:
    """The network of a trial after its training, on the device, in eval mode. Raises DataError."""
    seed = bench.seed + trial.seed
    backbone = bench.network(job.subject, trial.contender, trial.seed)
    network = with_head(
        backbone, job.subject.takes, job.train.batch([0]), job.classes.names, job.classes.several, seed)
    groups = section.tuned(network, seed)
    criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    if job.classes.several:
        criterion = _several

    def loss(picked: Tensor) -> Tensor:
        rows = trial.rows[picked]
        scores = network(_moved(job.train.batch(rows.tolist()), bench))
        return criterion(scores, job.known[rows].to(scores.device))

    fit(network, groups, len(trial.rows), loss, section, seed,
        soon=lambda picked: job.train.soon(trial.rows[picked].tolist()))  # fmt: skip
    return network


def _several(scores: Tensor, wanted: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, wanted.float())


def predictions(network: Classifier, of: Examples, bench: Bench) -> Tensor:
    """Logits float32 [N, classes] of all samples, on the CPU."""
    with evaluating(network):
        parts = [network(_moved(batch, bench)).cpu() for batch in of.batches(bench.batch)]
    return torch.cat(parts)


def _moved(batch: dict[str, Tensor], bench: Bench) -> dict[str, Tensor]:
    return {name: value.to(bench.device) for name, value in batch.items()}


def _keep(folder: Path, network: Classifier, job: Classification) -> None:
    assert network.head is None and isinstance(network.model, PreTrainedModel)  # `check` refuses others
    samples = job.queries.samples(range(min(len(job.queries), 8)))
    save_classifier(folder, network.model, job.classes.names, job.subject.takes, samples)
