"""How networks are made: as transformers does, alike at every ZeRO stage, in slices where there is no room."""

from __future__ import annotations

import copy
import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, Wav2Vec2Config

from bigssl.config.recipe import BackboneConfig
from bigssl.engine import zero
from bigssl.nets import build, towers
from bigssl.nets.modality.kinds import ENCODER_DECODER, IMAGE, TEXT


def tiny() -> Any:
    """The module with a tiny configuration of every kind."""
    spec = importlib.util.spec_from_file_location("kinds_of_networks", Path(__file__).with_name("test_kinds.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kinds_of = tiny()
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
WAVES = {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
         "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}  # fmt: skip
PARAMETRIZED = {"wav2vec2": Wav2Vec2Config(**SMALL, **WAVES)}  # no backbone yet; its weight norm is a case of its own
KINDS = [*IMAGE, *TEXT, *ENCODER_DECODER, *PARAMETRIZED]


def described(kind: str) -> PreTrainedConfig:
    if kind in PARAMETRIZED:
        return copy.deepcopy(PARAMETRIZED[kind])
    if kind in (*TEXT, *ENCODER_DECODER):
        return CONFIG_MAPPING[kind](**kinds_of.config(kind))
    section = BackboneConfig(type=kind, config=kinds_of.config(kind), size=kinds_of.SIZES.get(kind, 32))
    return towers.hf_config("net", section, None)


def made(kind: str, seed: int = 0, path: str = "net") -> nn.Module:
    torch.manual_seed(seed)
    return build.create(path, described(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_distributed_as_transformers_has_them(kind: str) -> None:
    """Constants and buffers to the bit; random weights in their spread, six standard errors wide."""
    ours, plain = made(kind).state_dict(), AutoModel.from_config(described(kind)).state_dict()
    assert ours.keys() == plain.keys()
    for name, value in plain.items():
        if not value.is_floating_point() or value.numel() < 16 or value.std() == 0:
            constant = value.numel() == 0 or (value == value.flatten()[0]).all()
            assert not constant or torch.equal(ours[name], value), name
        else:
            assert ours[name].std() / value.std() == pytest.approx(1, abs=6 / math.sqrt(value.numel()) + 0.05), name
    for (name, one), other in zip(made(kind).named_buffers(), AutoModel.from_config(described(kind)).buffers(),
                                  strict=True):
        assert torch.equal(one, other), name


def test_numbers_follow_from_the_seed_and_the_path_alone() -> None:
    first = made("bert").state_dict()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    build.create("another", described("vit"))
    assert torch.equal(torch.get_rng_state(), state), "what is built later would depend on what was built before"
    again = build.create("net", described("bert")).state_dict()
    assert all(torch.equal(value, first[name]) for name, value in again.items())
    table = "embeddings.word_embeddings.weight"
    for other in (made("bert", seed=1), made("bert", path="text")):
        assert not torch.equal(other.state_dict()[table], first[table])
    layers = {name: value for name, value in first.items() if name.endswith("query.weight")}
    assert not torch.equal(*layers.values()), "two layers are alike"


def gathered_state(kinds: list[str]) -> dict[str, dict[str, Tensor]]:
    """Each kind made in slices, then whole again, on rank 0."""
    zero.start()
    states = {}
    for kind in kinds:
        with build.postponed(main=torch.distributed.get_rank() == 0):
            model = made(kind)
        assert any(p.is_meta for p in model.parameters())
        zero.cut(model, {"train_batch_size": 2, "zero_optimization": {"stage": 3}})
        assert all(p.numel() == 0 and p.ds_tensor.numel() <= -(-p.ds_numel // zero.distributed.world())
                   for p in model.parameters()), kind  # fmt: skip
        states[kind] = zero.full_state(model)
    zero.stop()
    return states


@pytest.mark.distributed
@pytest.mark.parametrize(("world", "kinds"), [(1, KINDS), (2, ["bert", "bart", "vit", "resnet", "gte", "wav2vec2"])])
def test_networks_made_in_slices_are_those_made_whole(world: int, kinds: list[str], ranks: Any) -> None:
    found = ranks(gathered_state, world, kinds)[0]
    for kind in kinds:
        whole = made(kind).state_dict()
        assert found[kind].keys() == whole.keys()
        for name, value in whole.items():
            assert torch.equal(found[kind][name], value), f"{kind}: {name}"


@pytest.mark.parametrize("kind", ["vit", "dinov2", "resnet", "bert"])
def test_a_twin_of_a_network_that_is_only_described_gets_all_of_its_numbers(kind: str) -> None:
    """Also those that the constructor makes and initialisation makes anew: a ViT's positions and class token."""
    with build.postponed(main=True):
        student = made(kind)
        teacher = build.twin(student)
    build.fill(student)
    for name, value in student.state_dict().items():
        assert torch.equal(teacher.state_dict()[name], value), name
