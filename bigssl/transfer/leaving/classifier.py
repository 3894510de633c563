"""A classifier that was tuned leaves as the class of transformers that it is."""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForAudioClassification, AutoModelForImageClassification, PreTrainedModel
from transformers import AutoModelForSequenceClassification as ForTexts

from bigssl.data.sample import Sample
from bigssl.nets.known import trust
from bigssl.nets.modality import MODALITIES
from bigssl.transfer.inputs import Input
from bigssl.transfer.leaving.export import ExportError, hushed, made_readable, publish, put_back
from bigssl.transfer.leaving.proof import FILE, SAMPLES, Claim, Proof, arguments, digests, prove
from bigssl.transfer.leaving.samples import collated, contents, with_a_long_one

CLASSIFIERS = {
    "image": AutoModelForImageClassification, "text": ForTexts, "audio": AutoModelForAudioClassification,
}  # fmt: skip


def classifier_class(modality: str) -> str:
    """The class of transformers that loads a classifier, by name. Raises ExportError where it has none."""
    if modality not in CLASSIFIERS:
        raise ExportError(f"transformers has no auto class for classifiers of {modality}; allowed: "
                          f"{', '.join(CLASSIFIERS)}")  # fmt: skip
    return CLASSIFIERS[modality].__name__


def refuse_other(folder: Path) -> None:
    """Raises ExportError where something that is no classifier of `save_classifier` lies at `folder`."""
    if os.path.lexists(folder) and not (folder / FILE).is_file():
        raise ExportError(f"{folder}: there, and no classifier that was kept (no {FILE} in it): it is not replaced; "
                          "allowed: after moving it away")  # fmt: skip


def save_classifier(
    folder: Path, model: PreTrainedModel, classes: Sequence[str], takes: Input, samples: Sequence[Sample],
    python: str = sys.executable,
) -> Proof:  # fmt: skip
    """Writes `folder` (weights in float32, preprocessor, names of the classes, proof.json) in one step, once it is
    proven. One that was kept before is replaced, or whatever happens stays whole.

    Args:
        model: of a class that `CLASSIFIERS[modality]` loads; on any device. It stays as it is.
        classes: names in the order of its logits.
        takes: what it takes.
        samples: real ones, of which the first SAMPLES are compared, as `with_a_long_one`.
        python: the interpreter that the proof is made in.
    Raises:
        ExportError: `model` is no such class, or gives another number of logits than there are classes; or as
            `refuse_other`.
        ProofError: transformers reloads another network.
    """
    fresh = _whole(folder, model, classes, takes)
    put_back(folder)
    refuse_other(folder)
    staging = folder.with_name(f".{folder.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)  # of one that was killed
    staging.mkdir(parents=True)
    try:
        claim = classifier_claim(staging, fresh, takes, with_a_long_one(takes, samples[:SAMPLES]))
        (proof,) = prove([dataclasses.replace(claim, part=folder.name)], python)
        proof.write(staging)
        made_readable(staging, (staging / "config.json").stat().st_mode)
        publish(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return proof


def classifier_claim(folder: Path, model: PreTrainedModel, takes: Input, samples: Sequence[Sample]) -> Claim:
    """Writes weights and preprocessor to `folder`."""
    with hushed():
        model.save_pretrained(folder)
        takes.write(folder)
    with torch.no_grad():
        logits = model(**MODALITIES[takes.modality].inputs(model, collated(takes, samples))).logits
    loader = classifier_class(takes.modality)
    options = trust(model)
    load = {"class": loader, "modality": takes.modality, "outputs": ["logits"], "options": options}
    call = f'{loader}.from_pretrained("{{folder}}"{arguments(options)})'
    return Claim(folder.name, folder, "transformers", call, load,
                 contents(takes, samples), {"logits": logits.numpy()}, digests(model.state_dict()),
                 before=takes.before)  # fmt: skip


def _whole(folder: Path, model: PreTrainedModel, classes: Sequence[str], takes: Input) -> PreTrainedModel:
    """A copy on the CPU, in float32 and eval mode, that knows the names of its classes."""
    loader, kind = classifier_class(takes.modality), CLASSIFIERS[takes.modality]
    config = copy.deepcopy(model.config)
    if type(config) not in (kind._model_mapping or ()):
        raise ExportError(f"{folder}: transformers has no {loader} of type {config.model_type}")
    if config.num_labels != len(classes):
        raise ExportError(f"{folder}: {config.num_labels} logits and {len(classes)} classes")
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    config.dtype = torch.float32
    fresh: PreTrainedModel = kind.from_config(config)
    fresh.load_state_dict({key: value.detach().float().cpu() if value.is_floating_point() else value.cpu()
                           for key, value in model.state_dict().items()})  # fmt: skip
    return fresh.eval()
