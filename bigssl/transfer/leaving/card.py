"""Model cards: of the export folder of a run, and of what leaves it for another library."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from bigssl.nets.heads.base import Head
from bigssl.nets.known import OUR_CODE, trust
from bigssl.nets.modality.kinds import unused_parameters
from bigssl.report.values import shown, with_unit
from bigssl.transfer.inputs import Input
from bigssl.transfer.leaving.proof import FILE, Claim, Proof, arguments

FEATURES = """\
Features: the mean of `last_hidden_state`, for convolutional networks over positions, for
vision transformers over patch tokens, for text networks over tokens that are not padding
(of those with a decoder: of `get_encoder()`), for series over channels and patches, for sounds over frames.
`pooler_output` was not trained: transformers makes a pooler with weights anew, and says so."""


CODE = """\
transformers has no class for such a network: `{file}`, beside its weights, is its code; `trust_remote_code=True` is
leave to run it. Where bigssl is imported, its own is run.
"""


def model_card(run: str, backbones: Mapping[str, PreTrainedModel], inputs: Mapping[str, Input],
               heads: Mapping[str, Head], meta: Mapping[str, Any]) -> str:
    """What is in the export and how to load it, as Markdown."""
    loaders = {taken.loader for taken in inputs.values() if taken.loader}
    lines = ["---", "library_name: transformers", "tags: [self-supervised, bigssl]", "---", "", f"# {run}", "",
             "Backbones pretrained without labels by bigssl. Each folder loads without bigssl:", "", "```python",
             f"from transformers import {', '.join(sorted({'AutoModel', *loaders}))}", ""]
    for name, model in backbones.items():
        variable, loader = _identifier(name), inputs[name].loader
        lines += [f'{variable} = AutoModel.from_pretrained("{name}"{arguments(trust(model))})  '
                  f"# {type(model).__name__}, {_learnt(model):,} parameters"]
        lines += [f'{variable}_input = {loader}.from_pretrained("{name}")'] if loader else []
    lines += ["```", "", *_codes(backbones.values())]
    lines += [FEATURES, *dict.fromkeys(taken.described for taken in inputs.values()), ""]
    if heads:
        lines += ["`heads/` holds what was trained on top of them and evaluations need, as safetensors: "
                  + "; ".join(f"`{name}` ({head.kind}, of {' and '.join(head.backbones.values())})"
                              for name, head in heads.items()) + ".", ""]
    lines += ["## How it was made", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in meta.items()]
    return "\n".join(lines) + "\n"


def _codes(models: Iterable[PreTrainedModel]) -> list[str]:
    kinds = dict.fromkeys(model.config.model_type for model in models)
    return [CODE.format(file=OUR_CODE[kind]) for kind in kinds if kind in OUR_CODE]


@dataclass(frozen=True)
class Made:
    """What the card of an export says of the run.

    Attributes:
        run: its name.
        command: that wrote the export.
        data: URLs as they may be shown, by the name of their source.
        licences: files that lie with the data.
        license: of the export, as a hub calls it.
        recipe: sections of the resolved recipe.
        rows: of scorecard.json, by name; empty where there is none.
    """

    run: str
    command: str
    data: Mapping[str, str]
    recipe: Mapping[str, Any]
    license: str = "other"
    licences: Sequence[str] = ()
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


IMPORTS = {
    "transformers": "import torch\nfrom transformers import {name}", "timm": "from functools import partial\n\n"
    "import timm\nimport torch", "onnx": "import onnxruntime",
    "sentence-transformers": "from sentence_transformers import SentenceTransformer",
}  # fmt: skip
ENCODED = "A network without a head gives `last_hidden_state`, whose mean {over} are the features."
INPUTS_ARE = {  # by format and modality
    "transformers": {
        "image": "`AutoImageProcessor` of the same folder with `backend=\"pil\"` makes the input, to the "
        f"byte. {ENCODED.format(over='over positions or patch tokens')}",
        "text": "`AutoTokenizer` of the same folder with `truncation=True` makes the input. "
        f"{ENCODED.format(over='(of one with a decoder: of `get_encoder()`) over tokens that are no padding')}",
        "audio": "`AutoFeatureExtractor` of the same folder makes the input of sounds at its `sampling_rate` (the mean "
        "of their channels), with `max_length=extractor.max_length, truncation=True, padding=\"max_length\"`. "
        f"{ENCODED.format(over='over frames that are no padding')}",
        "series": "Series are float32 [B, length, channels] as `preprocessor_config.json` says, in place of NaN and "
        "behind their end the mean of what was observed of the channel; the mask of observed values is false there. "
        f"{ENCODED.format(over='over channels and patches of which a value was observed')}",
    },
    "timm": {"image": "`config.json` says the rest (`timm.data.create_transform`). Features: the mean of "
             "`forward_features` over positions, or over tokens without the prefix tokens."},
    "onnx": {
        "image": "Then `preprocessor_config.json`: the shorter side to its size (bicubic), the middle "
        "square, scaled by mean and standard deviation. Any number of rows.",
        "text": "tokenizer.json makes the input, cut at `model_max_length` of `tokenizer_config.json`. Any number of "
        "rows and of tokens.",
        "audio": "`preprocessor_config.json` says rate and length of sounds: each less its mean, over its standard "
        "deviation, then 0 behind its end, where the mask is 0. Any number of rows.",
        "series": "Series are float32 [B, length, channels] as `preprocessor_config.json` says, in place of NaN and "
        "behind their end the mean of what was observed of the channel, and the mask of observed values is 0 there. "
        "Any number of rows.",
    },
    "sentence-transformers": {"text": "`encode` takes texts."},
}  # fmt: skip
MODALITY = {"timm": "image", "sentence-transformers": "text"}  # of formats that have but one


def left_card(part: str, claims: Sequence[Claim], proofs: Sequence[Proof], made: Made, root: Path) -> str:
    """Of a part in the format of another library: how to load it, the proof, numbers, recipe, data and licence."""
    kind = claims[0].format
    lines = ["---", f"library_name: {kind}", f"license: {made.license}", "tags: [self-supervised, bigssl]", "---", "",
             f"# {part} of {made.run}", "", "Pretrained without labels by bigssl.", "", "```python",
             IMPORTS[kind].format(name=claims[0].loader.partition(".")[0]), ""]
    for claim in claims:
        place = claim.folder.relative_to(root)
        lines += [f"{'model' if len(claims) == 1 else place} = " + claim.loader.format(folder=place)]
    lines += ["```", ""]
    for modality, before in dict.fromkeys((MODALITY.get(kind) or claim.load["modality"], claim.before)
                                          for claim in claims):  # fmt: skip
        lines += [" ".join(filter(None, (before, INPUTS_ARE[kind][modality]))), ""]
    for claim, proof in zip(claims, proofs, strict=True):
        lines += [f"`{claim.folder.relative_to(root) / FILE}`: reloaded by {proof.library} {proof.version} without "
                  f"bigssl, {proof.tensors_loaded} of {proof.tensors_total} tensors; outputs of {proof.samples} real "
                  f"samples differ by at most {proof.max_abs_difference:.1e} from those of the trained network."]
        lines += [f"Not trained, and not part of the features: {', '.join(proof.untrained)}."] * bool(proof.untrained)
    lines += ["", "## What it is worth", "", *_numbers(made.rows), "", "## How it was made", "",
              *(f"- data `{name}`: {url}" for name, url in made.data.items()), f"- export: `{made.command}`", "",
              "```yaml", yaml.safe_dump(dict(made.recipe), sort_keys=False).rstrip(), "```", "", "## Licence", "",
              *_licence(made), ""]
    return "\n".join(lines)


def _numbers(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The scorecard of the run, each row beside what needs no pretraining."""
    if not rows:
        return ["The run has no scorecard: nothing is known of what its features are good for."]
    lines = ["| of the run | chance | random network | raw input | trained | |", "|---|---|---|---|---|---|"]
    for row in rows.values():
        cells = [shown(row.get(name), row["unit"]) for name in ("chance", "random_net", "raw")]
        lines += [f"| {' | '.join([_cell(row['title']), *cells, with_unit(row['trained'], row['unit'])])} | "
                  f"{_cell(row['verdict'])} |"]
    return lines


def _licence(made: Made) -> list[str]:
    said = [f"These weights: {made.license}."] if made.license != "other" else [
        "Under which licence these weights are, nobody has said: set `license` above before they are passed on."]
    return said + [f"Of the data: {', '.join(made.licences)}."] * bool(made.licences)


def _learnt(model: PreTrainedModel) -> int:
    """Parameters that the folder holds, without those that no feature passes through."""
    unused = unused_parameters(model)
    sizes = {name: getattr(p, "ds_numel", p.numel()) for name, p in model.named_parameters()}
    return sum(size for name, size in sizes.items() if name not in unused)


def _identifier(name: str) -> str:
    return name if name.isidentifier() else "model"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.replace("|", "\\|").replace("\n", " ")
