"""The model card of an export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from bigssl.transfer.inputs import Input

FEATURES = """\
Features: the mean of `last_hidden_state`, for convolutional networks over positions, for
vision transformers over patch tokens, for text networks over tokens that are not padding,
for series over channels and patches, for sounds over frames.
`pooler_output` was not trained: transformers makes a pooler with weights anew, and says so."""


def model_card(run: str, backbones: Mapping[str, PreTrainedModel], inputs: Mapping[str, Input],
               heads: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> str:
    """What is in the export and how to load it, as Markdown."""
    loaders = {taken.loader for taken in inputs.values() if taken.loader}
    lines = ["---", "library_name: transformers", "tags: [self-supervised, bigssl]", "---", "", f"# {run}", "",
             "Backbones pretrained without labels by bigssl. Each folder loads without bigssl:", "", "```python",
             f"from transformers import {', '.join(sorted({'AutoModel', *loaders}))}", ""]
    for name, model in backbones.items():
        variable, loader = _identifier(name), inputs[name].loader
        lines += [f'{variable} = AutoModel.from_pretrained("{name}")  # {type(model).__name__}, '
                  f"{model.num_parameters():,} parameters"]
        lines += [f'{variable}_input = {loader}.from_pretrained("{name}")'] if loader else []
    lines += ["```", "", FEATURES, *dict.fromkeys(taken.described for taken in inputs.values()), ""]
    if heads:
        lines += ["`heads/` holds projections used in pretraining, as safetensors: "
                  + "; ".join(f"`{name}` ({', '.join(sorted(tensors))})" for name, tensors in heads.items()) + ".", ""]
    lines += ["## How it was made", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in meta.items()]
    return "\n".join(lines) + "\n"


def _identifier(name: str) -> str:
    return name if name.isidentifier() else "model"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.replace("|", "\\|").replace("\n", " ")
