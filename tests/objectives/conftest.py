"""Tiny networks and real samples for the tests of objectives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from bigssl.config.recipe import BackboneConfig
from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.loading.loader import MicroBatches
from bigssl.data.order.stream import Stream
from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Objective, build, config_union

DEMO = Path(__file__).parents[2] / "bigssl" / "demo"
TOKENIZER = str(DEMO / "tokenizer.json")
TINY = {
    "resnet": BackboneConfig(
        type="resnet",
        size=32,
        config={"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "bert": BackboneConfig(
        type="bert",
        tokenizer=TOKENIZER,
        length=16,
        config={
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 16,
        },
    ),
    "vit": BackboneConfig(
        type="vit",
        size=32,
        config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
                "patch_size": 8},
    ),
}  # fmt: skip


DROPPING = {
    "resnet": BackboneConfig(
        type="vit",
        size=32,
        config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
                "patch_size": 8, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    ),
    "vit": TINY["vit"].model_copy(update={
        "activation_checkpointing": True,
        "config": TINY["vit"].config | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    }),
    "bert": TINY["bert"].model_copy(update={
        "activation_checkpointing": True,
        "config": TINY["bert"].config | {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    }),
}  # fmt: skip


def with_source(fields: dict[str, Any], source: str) -> dict[str, Any]:
    """A preset's fields with every objective reading `source`."""
    if "parts" in fields:
        return {**fields, "parts": {name: with_source(part, source) for name, part in fields["parts"].items()}}
    return {**fields, "source": source}


def make_towers(kinds: dict[str, str], configs: dict[str, BackboneConfig]) -> dict[str, Tower]:
    tokenizers = {"bert": load_tokenizer(TOKENIZER)}
    return {name: Tower(name, configs[kind], tokenizers.get(kind)) for name, kind in kinds.items()}


def make_objective(kind: type[Objective], name: str, *, dropping: bool = False, **changes: Any) -> Objective:
    """The tiny preset of an objective, always with the same weights. dropping: with networks that drop a tenth."""
    fields = with_source({"name": name, **kind.preset["objective"], **changes}, "emoji")
    config = TypeAdapter(config_union()).validate_python(fields)
    torch.manual_seed(0)
    return build(config, make_towers(kind.preset["backbones"], DROPPING if dropping else TINY))


def make_batch(objective: Objective, *, rank: int = 0, world: int = 1, size: int = 12, step: int = 0) -> Any:
    """A rank's share of a global batch of emoji with captions."""
    stream = Stream(DatasetIndex.load(str(DEMO / "emoji" / "train")), seed=0, source="emoji")
    sources = dict.fromkeys(objective.sources(), stream)
    sizes = dict.fromkeys(sources, size)
    loader = MicroBatches(sources, sizes, objective.prepare, objective.assemble, 0, rank, world, 1)
    return loader[step].data


@pytest.fixture
def objective() -> Callable[..., Objective]:
    return make_objective


@pytest.fixture
def batch() -> Callable[..., Any]:
    return make_batch
