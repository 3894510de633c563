"""The model card of an export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from bigssl.transfer.inputs import ImageInput, Input

FEATURES = """\
Features: the mean of `last_hidden_state`, for convolutional networks over positions, for
vision transformers over patch tokens, for text networks over tokens that are not padding.
`pooler_output` was not trained: transformers makes a pooler with weights anew, and says so."""
PICTURES = """\
Pictures: RGB (transparent ones on white), upright, through the `AutoImageProcessor` beside the weights, which prepares
them as they were when the scorecard was made."""


def model_card(run: str, backbones: Mapping[str, PreTrainedModel], inputs: Mapping[str, Input],
               heads: Mapping[str, Mapping[str, Tensor]], meta: Mapping[str, Any]) -> str:
    """What is in the export and how to load it, as Markdown."""
    lines = ["---", "library_name: transformers", "tags: [self-supervised, bigssl]", "---", "", f"# {run}", "",
             "Backbones pretrained without labels by bigssl. Each folder loads without bigssl:", "", "```python",
             "from transformers import AutoImageProcessor, AutoModel, AutoTokenizer", ""]
    for name, model in backbones.items():
        variable, loader = _identifier(name), _loader(inputs[name])
        lines += [f'{variable} = AutoModel.from_pretrained("{name}")  # {type(model).__name__}, '
                  f"{model.num_parameters():,} parameters", f'{variable}_input = {loader}.from_pretrained("{name}")']
    lines += ["```", "", FEATURES, PICTURES, ""]
    if heads:
        lines += ["`heads/` holds projections used in pretraining, as safetensors: "
                  + "; ".join(f"`{name}` ({', '.join(sorted(tensors))})" for name, tensors in heads.items()) + ".", ""]
    lines += ["## How it was made", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {_cell(value)} |" for key, value in meta.items()]
    return "\n".join(lines) + "\n"


def _loader(taken: Input) -> str:
    return "AutoImageProcessor" if isinstance(taken, ImageInput) else "AutoTokenizer"


def _identifier(name: str) -> str:
    return name if name.isidentifier() else "model"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.replace("|", "\\|").replace("\n", " ")
