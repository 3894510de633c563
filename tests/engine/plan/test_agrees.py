"""`config check`, `plan` and a training step say the same of a network, whichever it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bigssl import distributed
from bigssl.config.errors import ConfigError
from bigssl.config.recipe import Recipe
from bigssl.data.loading.loader import make_loader
from bigssl.engine.plan import preflight
from bigssl.engine.plan.checks import Paper, draft
from bigssl.nets.progress import Progress
from bigssl.objectives.mlm import Mlm

AT = Progress(0, 100)

DEMO = Path(__file__).parents[3] / "bigssl" / "demo"
VIT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 32}  # fmt: skip
NARROW = {**BERT, "embedding_size": 16}
UNCOUNTED = ("xlm",)  # looks at numbers on its way, which a count on shapes has not: said in words
# backbone fields, and what the refusal says; where there is none, it trains
CELLS: dict[str, tuple[dict[str, Any], str]] = {
    "vit": ({"size": 32, "config": VIT}, ""),
    "vit, recomputed": ({"size": 32, "config": VIT, "activation_checkpointing": True}, ""),
    "vit, another size": ({"size": 32, "config": {**VIT, "image_size": 64}}, "takes no pixel_values [2, 3, 32, 32]"),
    "dinov2": ({"size": 32, "config": {name: VIT[name] for name in VIT if name != "intermediate_size"}}, ""),
    "dinov3_vit": ({"size": 32, "config": VIT}, ""),
    "convnext": ({"size": 32, "config": {**STAGES, "num_stages": 2}}, ""),
    "mobilenet_v2": ({"size": 32, "config": {"depth_multiplier": 0.1}}, ""),
    "swin": ({"size": 64}, "takes no pixel_values [2, 3, 64, 64]"),
    "vit_mae": ({"size": 32, "config": VIT}, "hides 75 % of the patches from itself, in evaluation too"),
    "detr": ({"size": 32}, "not for an image backbone"),
    "bert": ({"length": 32, "config": BERT}, ""),
    "bert, too long": ({"length": 33, "config": BERT}, "value 33; allowed: <= 32"),
    "roberta": ({"length": 31, "config": BERT}, ""),
    "roberta, too long": ({"length": 32, "config": BERT}, "value 32; allowed: <= 31"),
    "albert": ({"length": 32, "config": NARROW}, ""),
    "electra": ({"length": 32, "config": NARROW}, ""),
    "modernbert": ({"length": 32, "config": BERT}, ""),
    "modernbert, eager": ({"length": 32, "config": BERT, "attention": "eager"}, ""),
    "deberta-v2": ({"length": 32, "config": BERT}, ""),
    "xlm": ({"length": 32, "config": {"emb_dim": 32, "n_layers": 1, "n_heads": 2}}, ""),
    "mpnet": ({"length": 16, "config": BERT}, "takes 1 for padding; allowed: a tokenizer with padding 1"),
    "gpt2": ({"length": 32}, "each token sees those before it only"),
    "fnet": ({"length": 32, "config": BERT}, "it sees the padding"),
}


@pytest.fixture
def of_cell(recipe: Any) -> Any:
    def make(cell: str) -> Recipe:
        section = {**CELLS[cell][0], "type": cell.split(",")[0]}
        if "size" in section:
            return recipe(backbones={"image": section})
        return recipe(
            objective={"name": "mlm", "source": "text"},
            backbones={"text": section | {"tokenizer": str(DEMO / "tokenizer.json")}},
            data={"workers": 0, "sources": {"text": {"url": str(DEMO / "text" / "train")}}},
        )

    return make


def step(plan: preflight.Plan) -> None:
    """Forward and backward on a batch of the recipe's data, long texts among it."""
    loader = make_loader(
        plan.streams, plan.sizes, plan.objective.prepare, plan.objective.assemble, seed=0, rank=distributed.rank(),
        world=1, accum=1, workers=0, start_step=0, stop_step=1, device_pin=False,
    )  # fmt: skip
    loss = plan.objective(next(iter(loader)).data, AT).total
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in plan.objective.parameters())


def on_paper(recipe: Recipe) -> Paper:
    return draft(recipe, 1, per_node=8, device_bytes=None)


@pytest.mark.parametrize("cell", CELLS)
def test_check_plan_and_training_agree(cell: str, of_cell: Any) -> None:
    recipe, refusal = of_cell(cell), CELLS[cell][1]
    if refusal:
        with pytest.raises(ConfigError) as caught:
            preflight.plan(recipe, 1)
        assert refusal in str(caught.value) and "\n" not in str(caught.value)
        assert on_paper(recipe).failures == [str(caught.value)]
        return
    plan = preflight.plan(recipe, 1)
    step(plan)
    paper = on_paper(recipe)
    assert not paper.failures and paper.activations is not None and not paper.activations.partly
    if cell in UNCOUNTED:
        assert any("activations of mlm are unknown" in warning for warning in paper.warnings)
    else:
        assert paper.activations.bytes > 0 and not paper.activations.unknown
    assert paper.parameters["total"] == sum(p.numel() for p in plan.objective.parameters())
    assert paper.parameters["trained"] == sum(p.numel() for p in plan.objective.parameters() if p.requires_grad)


def test_an_objective_that_looks_at_numbers_while_built_is_planned_all_the_same(
    of_cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    initialise = Mlm.__init__

    def curious(self: Mlm, *arguments: Any) -> None:
        initialise(self, *arguments)
        self.largest = self.head.dense.weight.abs().max().item()

    monkeypatch.setattr(Mlm, "__init__", curious)
    state = torch.get_rng_state()
    paper = on_paper(of_cell("bert"))
    assert not paper.failures and paper.activations is not None and not paper.activations.unknown
    assert torch.equal(torch.get_rng_state(), state)  # what is planned first does not change what is trained then


def test_pretrained_networks_are_planned_as_they_train(of_cell: Any, recipe: Any, tmp_path: Path) -> None:
    plan = preflight.plan(of_cell("vit"), 1)
    plan.backbones["image"].model.save_pretrained(tmp_path / "net")
    section = {"type": "vit", "size": 32, "init_from": str(tmp_path / "net")}
    used = recipe(backbones={"image": section})
    step(preflight.plan(used, 1))
    assert not on_paper(used).failures
    wrong = recipe(backbones={"image": section | {"size": 64}})
    with pytest.raises(ConfigError, match=r"backbones.image.init_from: .* takes no pixel_values") as caught:
        preflight.plan(wrong, 1)
    assert on_paper(wrong).failures == [str(caught.value)]
    (tmp_path / "net" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="backbones.image.init_from: value") as caught:
        preflight.plan(used, 1)
    assert on_paper(used).failures == [str(caught.value)]
