"""Tiny networks and real samples for the tests of objectives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import contract_runs as runs
import pytest
import torch
from pydantic import TypeAdapter
from transformers import CONFIG_MAPPING

from bigssl.config.recipe import BackboneConfig
from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.loading.loader import MicroBatches
from bigssl.data.order.stream import Stream
from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Objective, build, config_union

TOKENIZER = str(runs.DEMO / "tokenizer.json")
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
    "gpt2": BackboneConfig(
        type="gpt2",
        tokenizer=TOKENIZER,
        length=16,
        config={"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
                "attn_pdrop": 0.0},
    ),
    "bart": BackboneConfig(
        type="bart",
        tokenizer=TOKENIZER,
        length=16,
        config={"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
                "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "dropout": 0.0,
                "max_position_embeddings": 16},
    ),
    "vit": BackboneConfig(
        type="vit",
        size=32,
        config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
                "patch_size": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
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
    "gpt2": TINY["gpt2"].model_copy(update={
        "activation_checkpointing": True,
        "config": TINY["gpt2"].config | {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
    }),
    "bart": TINY["bart"].model_copy(update={
        "activation_checkpointing": True,
        "config": TINY["bart"].config | {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1},
    }),
}  # fmt: skip


def section_of(kind: str | dict[str, Any]) -> BackboneConfig:
    """What a preset says of a backbone: one of TINY by name, or a section."""
    return TINY[kind] if isinstance(kind, str) else BackboneConfig.model_validate(kind)


def dropping_twin(kind: str | dict[str, Any]) -> BackboneConfig:
    """The same kind of network where every rate of dropout that it has is a tenth, and layers are skipped half the
    time."""
    if isinstance(kind, str) and kind in DROPPING:
        return DROPPING[kind]
    section = section_of(kind)
    fields = CONFIG_MAPPING[section.type]().to_dict()
    rates = {name: 0.1 for name, value in fields.items() if "dropout" in name and isinstance(value, float)}
    rates |= {"drop_path_rate": 0.5} if "drop_path_rate" in fields else {}
    return section.model_copy(update={"config": section.config | rates})


@cache
def tower(name: str, section: str, seed: int) -> Tower:
    """Made once: tests take copies of it, which are made ten times as fast."""
    config = BackboneConfig.model_validate_json(section)
    return Tower(name, config, load_tokenizer(config.tokenizer) if config.tokenizer else None)


def make_towers(sections: dict[str, BackboneConfig]) -> dict[str, Tower]:
    """With the weights that the seed last given to torch makes."""
    made = {n: tower(n, each.model_dump_json(), torch.initial_seed()) for n, each in sections.items()}
    shared = {id(each._tokenizer): each._tokenizer for each in made.values()}
    return {name: copy.deepcopy(each, dict[int, Any](shared)) for name, each in made.items()}


@cache
def sections() -> TypeAdapter[Any]:
    """Reads any task's section; made once, which takes longer than to build a tiny network."""
    return TypeAdapter(config_union())


def make_objective(
    kind: type[Objective], name: str, *, dropping: bool = False, twins: bool = False, source: str = "emoji",
    beside: Mapping[str, str] | None = None, **changes: Any,
) -> Objective:  # fmt: skip
    """The tiny preset of an objective, always with the same weights.

    dropping: with networks that drop a tenth. twins: with a second backbone of each kind at hand, of other weights.
    beside: further backbones at hand, by name, each as a preset says it.
    """
    section = dropping_twin if dropping else section_of
    fields = runs.with_source({"name": name, **kind.preset["objective"], **changes}, source)
    config = sections().validate_python(fields)
    torch.manual_seed(0)
    own = {n: section(k) for n, k in kind.preset["backbones"].items()}
    more = {n + runs.TWIN: each for n, each in own.items()} if twins else {}
    more |= {n: section(k) for n, k in (beside or {}).items()}
    return build(config, make_towers(own | more))


def make_stream(kind: type[Objective], data: str | None = None) -> Stream:
    """`data`, a folder below the demo, or the preset's."""
    folder = runs.DEMO / (data or kind.preset.get("data", "emoji/train"))
    return Stream(DatasetIndex.load(str(folder)), seed=0, source="emoji")


STEPS = 100  # of the run of which a batch is


def make_batch(
    objective: Objective, *, rank: int = 0, world: int = 1, size: int = 12, step: int = 0, accum: int = 1,
    micro: int = 0, data: str | None = None,
) -> Any:  # fmt: skip
    """A rank's share of a pass over a global batch, of `data` or the preset's."""
    sources = dict.fromkeys(objective.sources(), make_stream(type(objective), data))
    sizes = dict.fromkeys(sources, size)
    loader = MicroBatches(sources, sizes, objective.prepare, objective.assemble, 0, rank, world, accum, steps=STEPS)
    found = loader[step * accum + micro]
    if isinstance(found, Exception):
        raise found
    return found.data


@pytest.fixture
def objective() -> Callable[..., Objective]:
    return make_objective


@pytest.fixture
def batch() -> Callable[..., Any]:
    return make_batch


@pytest.fixture
def stream() -> Callable[[type[Objective]], Stream]:
    return make_stream


@pytest.fixture(scope="session")
def recipe() -> Callable[..., dict[str, Any]]:
    """`recipe(name, out, section=value, ...)`: the recipe that a preset stands for, with sections replaced."""
    return lambda name, out="unused", **changes: runs.preset_recipe(name, section_of, out, **changes)
