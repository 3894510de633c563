"""As ONNX: a graph for onnxruntime, beside the tokenizer or preprocessor that says what its inputs are made of.

    DIR/model.onnx       inputs as transformers calls them, with any number of rows (and of tokens); outputs `features`
                         [B, D], `logits` [B, T, V] where the part has a head of masked language modelling
    DIR/image, DIR/text  of CLIP: one such folder a side; output `embeddings` [B, P], unit vectors
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigssl.data.sample import Sample
from bigssl.nets.heads.base import MaskedLanguageHead
from bigssl.nets.modality import MODALITIES
from bigssl.nets.pool import mean_of
from bigssl.transfer.leaving.parts import LeavingPart, PartNetwork, UnfitError
from bigssl.transfer.leaving.proof import Claim, digests
from bigssl.transfer.leaving.samples import Samples, collated, contents

LARGE = 1 << 30  # bytes; what a protobuf can hold ends at 2 GiB
MODEL = "model.onnx"
TOKENS = 256  # whose logits are compared


class _Graph(nn.Module):
    """Inputs of a network by transformers' names -> the outputs of a part."""

    def __init__(self, member: PartNetwork, head: MaskedLanguageHead | None, projection: Tensor | None) -> None:
        super().__init__()
        self.model, self.head, self.member = member.model, head, member
        self.projection = None if projection is None else nn.Parameter(projection)

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        row = MODALITIES[self.member.takes.modality]
        given = row.inputs(self.model, inputs) if row.name == "text" else inputs
        hidden, mask = row.run(self.model, given)
        features = mean_of(hidden, mask)
        if self.projection is not None:
            return (F.normalize(features @ self.projection.T, dim=1),)
        return (features,) if self.head is None else (features, self.head.logits(hidden))


def to_onnx(part: LeavingPart, folder: Path, samples: Samples) -> list[Claim]:
    """Writes a graph to `folder`, of CLIP one for each side. Raises UnfitError."""
    if part.kind == "clip":
        return [_written(part, role, folder / role, samples[role]) for role in part.members]
    (role,) = part.members
    return [_written(part, role, folder, samples[role])]


def _written(part: LeavingPart, role: str, folder: Path, samples: list[Sample]) -> Claim:
    member = part.members[role]
    clip = part.kind == "clip"
    graph = _Graph(member, part.head() if part.kind == "mlm" else None,
                   part.tensors[f"{role}_projection"] if clip else None).eval()  # fmt: skip
    batch = collated(member.takes, (samples * 2)[: max(2, len(samples))])
    given = {name: value for name, value in MODALITIES[member.takes.modality].inputs(member.model, batch).items()
             if isinstance(value, Tensor)}  # fmt: skip
    names = ["embeddings"] if clip else ["features", "logits"][: 1 + (part.kind == "mlm")]
    folder.mkdir(parents=True, exist_ok=True)
    where = f"part {part.name!r}: a {member.model.config.model_type}"
    tensors = _export(where, graph, given, names, folder / MODEL, sequences=member.takes.modality == "text")
    member.takes.write(folder)
    with torch.no_grad():
        outputs = dict(zip(names, graph({name: value[: len(samples)] for name, value in given.items()}), strict=True))
    if "logits" in outputs:
        outputs["logits"] = outputs["logits"][given["attention_mask"][: len(samples)].bool()][:TOKENS]
    arrays = {name: value.numpy() for name, value in outputs.items()}
    load = {"modality": member.takes.modality, "tokens": TOKENS, "inputs": list(given)}
    return Claim(part.name, folder, "onnx", f'onnxruntime.InferenceSession("{{folder}}/{MODEL}")', load,
                 contents(member.takes, samples), arrays, tensors, before=member.takes.before)  # fmt: skip


def _export(
    where: str, graph: _Graph, given: dict[str, Tensor], names: list[str], file: Path, *, sequences: bool
) -> dict[str, str]:
    """Writes the graph; returns the SHA-256 of each tensor that the outputs depend on, by name."""
    axes = {0: torch.export.Dim.DYNAMIC} | ({1: torch.export.Dim.DYNAMIC} if sequences else {})
    size = sum(value.nbytes for value in graph.state_dict().values())
    try:
        with _quietly():
            exported = torch.export.export(graph, (given,), dynamic_shapes=({name: dict(axes) for name in given},))
            program: Any = torch.onnx.export(
                exported, dynamo=True, verbose=False, input_names=list(given), output_names=names, optimize=False
            )
            program.save(str(file), external_data=size > LARGE)
    except Exception as error:  # whatever the tracer raises
        raise UnfitError(f"{where} cannot be traced for ONNX by torch {torch.__version__}: {_cause(error)}; allowed: "
                         "--format transformers") from None  # fmt: skip
    signature, state = exported.graph_signature, {**exported.state_dict, **exported.constants}
    inside = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return digests({inside[name]: state[inside[name]] for name in _reached(exported.graph) if name in inside})


def _reached(graph: torch.fx.Graph) -> set[str]:
    """Names of what its outputs are made of: a layer may be passed whose output nobody takes, and is then left out."""
    waiting, seen = [graph.output_node()], set()
    while waiting:
        node = waiting.pop()
        if node.name not in seen:
            seen.add(node.name)
            waiting += node.all_input_nodes
    return seen


def _cause(error: BaseException) -> str:
    """What the exporter met first; its own words around it are advice to developers of torch."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporter says of itself and of networks that it traces."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
