"""Who is treated how: the first pattern that matches, decay by name, rates by depth; and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bigssl.config.errors import ConfigError
from bigssl.config.optim import Group, OptimConfig
from bigssl.config.recipe import BackboneConfig, Recipe
from bigssl.engine.constraints import apply_constraints, check_constraints
from bigssl.engine.groups import check_groups
from bigssl.engine.optim import build_optimizer, parameter_groups
from bigssl.nets.constraint import Constraint
from bigssl.nets.towers import Tower
from bigssl.objectives.base import Objective

TOKENIZER_FREE: dict[str, dict[str, Any]] = {
    "vit": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
            "patch_size": 8},
    "dinov2_with_registers": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8},
    "clip_vision_model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
                          "patch_size": 8},
    "swinv2": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "patch_size": 4},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "patch_size": 4},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 32], "depths": [2, 1, 1], "layer_type": "basic"},
}  # fmt: skip


class Task(Objective):
    """Any modules, with the groups that a test gives it."""

    def __init__(self, *own: Group, **modules: nn.Module) -> None:
        super().__init__()
        self.own = list(own)
        for name, module in modules.items():
            self.add_module(name, module)

    def groups(self) -> list[Group]:
        return self.own


def tower(kind: str) -> Tower:
    torch.manual_seed(0)
    return Tower("image", BackboneConfig(type=kind, config=TOKENIZER_FREE[kind], size=32), None)


def optim(**fields: Any) -> OptimConfig:
    return OptimConfig.model_validate({"lr": 0.1, "weight_decay": 0.2, **fields})


def settings(module: nn.Module, config: OptimConfig, key: str) -> dict[str, Any]:
    """A setting of each parameter by name."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {names[p]: group[key] for group in build_optimizer(module, config).param_groups
            for p in group["params"]}  # fmt: skip


def layers() -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(2, 2) for name in ("ab", "b", "bc", "c")})


PATTERNS = st.sampled_from(["a", "b", "^a", "b\\.", "c", "weight", "^b", "bias$", ".", "z", "a|c", "^c\\.w"])


@given(st.lists(PATTERNS, max_size=4), st.lists(PATTERNS, max_size=3))
def test_the_first_match_counts(recipes: list[str], own: list[str]) -> None:
    """Against loops: the recipe's patterns, then the task's. One that decides nothing is refused, but for a task's that
    the recipe took over."""
    task = Task(*(Group(pattern=text, lr=20.0 + n) for n, text in enumerate(own)), **dict(layers().items()))
    every = [(text, 2.0 + n) for n, text in enumerate(recipes)] + [(text, 20.0 + n) for n, text in enumerate(own)]
    want, decided = {}, {}
    for name, _ in task.named_parameters():
        hits = [(place, factor) for place, (text, factor) in enumerate(every) if re.search(text, name)]
        want[name] = 0.1 * (hits[0][1] if hits else 1.0)
        for place, _ in hits:
            decided.setdefault(place, set()).add(hits[0][0])
    refused = False
    for place in range(len(every)):
        deciders = decided.get(place, set())
        taken_over = place >= len(recipes) and any(other < len(recipes) for other in deciders)
        refused = refused or not (place in deciders or taken_over)
    config = optim(groups=[{"pattern": text, "lr": factor} for text, factor in every[: len(recipes)]])
    if refused:
        with pytest.raises(ConfigError, match="matches"):
            parameter_groups(task, config)
    else:
        assert settings(task, config, "lr") == pytest.approx(want)


@pytest.mark.parametrize(
    ("own", "groups", "words"),
    [
        ([], ["ab.wieght"], ["optim.groups.0.pattern: value 'ab.wieght' matches no trained", "nearest: ab.weight"]),
        ([], ["^ab", "ab.w"], ["optim.groups.1.pattern: value 'ab.w'", "optim.groups.0 ('^ab') took before"]),
        (["frozen"], [], ["groups() of task.pattern: value 'frozen' matches no trained parameter"]),
        (["^ab", "ab.bias"], [], ["groups() of task.pattern: value 'ab.bias'", "groups() of task ('^ab') took"]),
    ],
)
def test_a_pattern_that_decides_nothing_is_refused_by_name(own: list[str], groups: list[str], words: list[str]) -> None:
    frozen = nn.Linear(2, 2).requires_grad_(False)
    task = Task(*(Group(pattern=text) for text in own), **dict(layers().items()), frozen=frozen)
    with pytest.raises(ConfigError) as caught:
        parameter_groups(task, optim(groups=[{"pattern": text} for text in groups]))
    for each in words:
        assert each in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "lars", "groups": [{"pattern": "^ab", "betas": [0.5, 0.9]}]}, r"optim.groups.0.betas: .*lars"),
        ({"name": "muon", "clip": 0.0, "groups": [{"pattern": "^ab.w", "betas": [0.5, 0.9]}]}, r"betas: .*muon"),
        ({"groups": [{"pattern": "bias", "weight_decay": 0.1}]}, r"optim.groups.0.weight_decay: value 0.1 .*no effect"),
        ({"groups": [{"pattern": "^ab", "lr": 50.0}]}, r"optim.groups.0.lr: value 50.0 .* is 1, .*< 1"),
        ({"no_decay": ["cls_tokn"]}, r"optim.no_decay.0: value 'cls_tokn' matches no trained parameter; nearest"),
        ({"layer_decay": 0.5}, r"optim.layer_decay: value 0.5; allowed: 1, since the objective has no backbone"),
        ({"name": "muon", "clip": 0.0, "groups": [{"pattern": "^ab", "clip": 1.0}]},
         r"optim.groups.0.clip: value 1.0 .*muon at zero.stage 1"),
    ],
)  # fmt: skip
def test_a_setting_without_effect_is_refused(fields: dict[str, Any], words: str) -> None:
    recipe = Recipe.model_validate({
        "name": "x", "steps": 1, "objective": {}, "backbones": {"unused": {"type": "resnet"}},
        "data": {"sources": {}}, "batch": {"size": 2}, "optim": {"lr": 0.1, "weight_decay": 0.2, **fields},
    })  # fmt: skip
    with pytest.raises(ConfigError, match=words):
        check_groups(Task(**dict(layers().items())), recipe)


@pytest.mark.parametrize(("name", "clip"), [("adamw", 1.0), ("sgd", 1.0), ("lars", 0.0), ("muon", 0.0)])
def test_what_an_objective_asks_for_is_left_out_where_it_has_no_meaning(name: str, clip: float) -> None:
    """Betas of an optimizer that has none; a clip of its own where the recipe clips nothing."""
    own = Group(pattern="^ab", lr=0.5, betas=(0.5, 0.6), clip=2.0)
    task, config = Task(own, **dict(layers().items())), optim(name=name, clip=clip)
    assert settings(task, config, "lr") == {n: 0.05 if n[:2] == "ab" else 0.1 for n, _ in task.named_parameters()}
    assert settings(task, config, "clip")["ab.weight"] == (2.0 if clip else 0.0)
    if name == "adamw":
        assert settings(task, config, "betas")["ab.weight"] == (0.5, 0.6)


@pytest.mark.parametrize("name", ["adamw", "lamb", "lars", "muon", "sgd"])
def test_each_optimizer_takes_what_a_group_asks_for(name: str) -> None:
    betas = {} if name in ("lars", "sgd") else {"betas": [0.5, 0.6]}
    groups = [{"pattern": "^ab", "lr": 0.5, "weight_decay": 0.3, "clip": 2.0, **betas}]
    task, config = Task(**dict(layers().items())), optim(name=name, clip=0.0, adam_lr=None, groups=groups)
    assert settings(task, config, "lr") == {n: 0.05 if n[:2] == "ab" else 0.1 for n, _ in task.named_parameters()}
    assert settings(task, config, "weight_decay") == {
        n: 0.0 if "bias" in n else 0.3 if n[:2] == "ab" else 0.2 for n, _ in task.named_parameters()
    }
    clips = {n: (2.0, 0) if n[:2] == "ab" else (0.0, -1) for n, _ in task.named_parameters()}
    assert settings(task, config, "clip") == {n: clip for n, (clip, _) in clips.items()}
    assert settings(task, config, "clip_group") == {n: group for n, (_, group) in clips.items()}
    if name in ("adamw", "lamb"):
        assert settings(task, config, "betas")["ab.bias"] == (0.5, 0.6)
        assert settings(task, config, "betas")["b.bias"] == (0.9, 0.999)


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("vit", ["embeddings.cls_token", "embeddings.position_embeddings"]),
        ("dinov2_with_registers", ["embeddings.cls_token", "embeddings.register_tokens"]),
        ("clip_vision_model", ["embeddings.class_embedding", "embeddings.position_embedding.weight"]),
        ("swin", ["encoder.layers.0.blocks.0.attention.relative_position_bias.relative_position_bias_table"]),
        ("swinv2", ["encoder.layers.0.blocks.0.attention.self.logit_scale",
                    "encoder.layers.1.blocks.0.attention.self.continuous_position_bias_mlp.0.weight"]),
    ],
)  # fmt: skip
def test_tokens_and_positions_are_not_decayed_and_matrices_are(kind: str, kept: list[str]) -> None:
    task = Task(image=tower(kind))
    decay, shapes = settings(task, optim(), "weight_decay"), {n: p.dim() for n, p in task.named_parameters()}
    for name in kept:
        assert decay.pop(f"image.model.{name}") == 0.0
    layers_of_weights = ("dense", "query", "key", "value", "proj", "fc", "linear", "convolution", "reduction", "lin")
    for name, value in decay.items():
        if shapes[name] == 1:
            assert value == 0.0, name
        elif name.endswith(".weight") and any(word in name for word in layers_of_weights) and "bias_mlp" not in name:
            assert value == 0.2, name


def test_a_text_network_keeps_the_decay_of_its_tables() -> None:
    table = nn.ModuleDict({"position_embeddings": nn.Embedding(4, 2)})
    assert settings(Task(text=table), optim(), "weight_decay") == {"text.position_embeddings.weight": 0.2}


def test_rates_fall_from_the_head_to_the_embeddings() -> None:
    """By hand, as BEiT and timm number them: embeddings 0, block n + 1, final norm and heads at the full rate."""
    task = Task(image=tower("vit"), head=nn.Linear(16, 3))
    want = {}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            found = re.search(r"layers\.(\d+)\.", name)
            below = 4 if "embeddings" in name else (3 - int(found[1]) if found else 0)
            want[name] = 0.1 * 0.5**below
    assert settings(task, optim(layer_decay=0.5), "lr") == pytest.approx(want)
    scaled = settings(task, optim(layer_decay=0.5, groups=[{"pattern": "q_proj", "lr": 3.0}]), "lr")
    query = next(name for name in want if "q_proj" in name)
    assert scaled[query] == pytest.approx(3 * want[query])


def test_rates_fall_over_the_stages_of_a_resnet() -> None:
    task = Task(image=tower("resnet"))
    for name, rate in settings(task, optim(layer_decay=0.5), "lr").items():
        stage = re.search(r"stages\.(\d+)\.", name)
        assert rate == pytest.approx(0.1 * 0.5 ** (3 - int(stage[1]) if stage else 4)), name


class Constrained(Objective):
    def __init__(self, *constraints: Constraint) -> None:
        super().__init__()
        self.weight, self.found = nn.Parameter(torch.ones(2, 2)), list(constraints)

    def constraints(self) -> list[Constraint]:
        return self.found


def test_constraints_that_cannot_hold_are_refused() -> None:
    def same(weight: Tensor) -> Tensor:
        return weight

    stranger = Constrained(Constraint([nn.Parameter(torch.ones(3))], same))
    twice, frozen, shape = Constrained(), Constrained(), Constrained()
    twice.found = [Constraint([twice.weight], same), Constraint([twice.weight], same)]
    frozen.found = [Constraint([frozen.weight.requires_grad_(False)], same)]
    shape.found = [Constraint([shape.weight], torch.flatten)]
    for task, words in ((stranger, r"\(3,\) is not its own"), (twice, "weight is constrained twice"),
                        (frozen, "weight is frozen")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            check_constraints(task)
    with pytest.raises(ValueError, match=r"shape of a parameter \(\(2, 2\) -> \(4,\)\)"):
        apply_constraints(check_constraints(shape))
