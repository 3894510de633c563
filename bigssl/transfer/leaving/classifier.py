"""A classifier that was tuned leaves as the class of transformers that it is."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForAudioClassification, AutoModelForImageClassification, PreTrainedModel
from transformers import AutoModelForSequenceClassification as ForTexts

from bigssl.data.sample import Sample
from bigssl.nets.modality import MODALITIES
from bigssl.transfer.inputs import Input
from bigssl.transfer.leaving.export import ExportError, hushed, made_readable
from bigssl.transfer.leaving.proof import SAMPLES, Claim, Proof, digests, prove
from bigssl.transfer.leaving.samples import collated, contents

CLASSIFIERS = {
    "image": AutoModelForImageClassification, "text": ForTexts, "audio": AutoModelForAudioClassification,
}  # fmt: skip


def classifier_class(modality: str) -> str:
    """The class of transformers that loads a classifier, by name. Raises ExportError where it has none."""
    if modality not in CLASSIFIERS:
        raise ExportError(f"transformers has no auto class for classifiers of {modality}; allowed: "
                          f"{', '.join(CLASSIFIERS)}")  # fmt: skip
    return CLASSIFIERS[modality].__name__


def save_classifier(
    folder: Path, model: PreTrainedModel, classes: Sequence[str], takes: Input, samples: Sequence[Sample],
    python: str = sys.executable,
) -> Proof:  # fmt: skip
    """Writes `folder` (weights in float32, preprocessor, names of the classes, proof.json), proven, or leaves nothing.

    Args:
        folder: is not there yet.
        model: of a class that `CLASSIFIERS[modality]` loads; on any device. It stays as it is.
        classes: names in the order of its logits.
        takes: what it takes.
        samples: real ones, of which the first SAMPLES are compared.
        python: the interpreter that the proof is made in.
    Raises:
        ExportError: `model` is no such class, or gives another number of logits than there are classes.
        ProofError: transformers reloads another network.
    """
    fresh = _whole(folder, model, classes, takes)
    folder.mkdir(parents=True)
    try:
        (proof,) = prove([classifier_claim(folder, fresh, takes, list(samples)[:SAMPLES])], python)
        proof.write(folder)
        made_readable(folder, (folder / "config.json").stat().st_mode)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
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
    load = {"class": loader, "modality": takes.modality, "outputs": ["logits"]}
    return Claim(folder.name, folder, "transformers", f'{loader}.from_pretrained("{{folder}}")', load,
                 contents(takes, samples), {"logits": logits.numpy()}, digests(model.state_dict()))  # fmt: skip


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
