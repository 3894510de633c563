"""ELECTRA against transformers' own heads, its drawing against the softmax, and what is shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract_runs import Progress
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

from bigssl.config.errors import ConfigError
from bigssl.data.kinds.masking import IGNORE
from bigssl.data.loading.loader import SEEDS
from bigssl.nets.chance.seeds import another
from bigssl.nets.heads.replacing import GeneratorHead
from bigssl.objectives.replaced_token import ReplacedToken

AT = Progress(0, 10)
ELECTRA = {
    "embedding_size": 12, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 16,
}  # fmt: skip


def made(objective: Any, **changes: Any) -> ReplacedToken:
    tokenizer = "bigssl/demo/tokenizer.json"
    sections = {"small": {"type": "electra", "tokenizer": tokenizer, "length": 16, "config": ELECTRA},
                "large": {"type": "electra", "tokenizer": tokenizer, "length": 16,
                          "config": ELECTRA | {"hidden_size": 24, "num_attention_heads": 3}}}  # fmt: skip
    task: ReplacedToken = objective(
        ReplacedToken, "replaced_token", beside=sections, backbone="large", generator="small", **changes
    )
    return task


NAMES = {  # of our heads' parameters in transformers
    ElectraForMaskedLM: {
        "dense": "generator_predictions.dense", "norm": "generator_predictions.LayerNorm", "": "generator_lm_head",
    },
    ElectraForPreTraining: {
        "dense": "discriminator_predictions.dense", "out": "discriminator_predictions.dense_prediction",
    },
}  # fmt: skip


def of_transformers(kind: Any, tower: Any, head: torch.nn.Module) -> Any:
    """The network of transformers with the weights of a tower and of a head."""
    model = kind(ElectraConfig(**tower.model.config.to_dict()))
    model.electra.load_state_dict(tower.model.state_dict())
    parts = [(*name.rpartition("."), value) for name, value in head.named_parameters()]
    state = {f"{NAMES[kind][part]}.{last}": value for part, _, last, value in parts}
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and all(key.startswith("electra") for key in missing.missing_keys)
    return model.train()


def test_its_losses_are_those_of_transformers(objective: Any, batch: Any) -> None:
    """Also where a token is drawn right, which then is not replaced."""
    task = made(objective)
    data = batch(task)
    shown: list[torch.Tensor] = []
    task.backbone.model.register_forward_pre_hook(lambda m, a, k: shown.append(k["input_ids"]), with_kwargs=True)
    task.head.bias.data[data["input_ids"][data["hidden"]].mode().values] += 9
    losses = task(data, AT)
    generator = of_transformers(ElectraForMaskedLM, task.generator, task.head)
    asked = data["input_ids"].masked_fill(data["hidden"], task.backbone.tokenizer.mask_token_id)
    want = generator(asked, data["attention_mask"], labels=data["input_ids"].where(data["hidden"], IGNORE)).loss
    torch.testing.assert_close(losses.parts["generator"].total, want.detach(), rtol=1e-5, atol=1e-6)
    detector = of_transformers(ElectraForPreTraining, task.backbone, task.judge)
    replaced = (shown[0] != data["input_ids"]).long()
    assert replaced.any() and not replaced[~data["hidden"]].any() and not replaced[data["hidden"]].all()
    want = detector(shown[0], data["attention_mask"], labels=replaced).loss
    torch.testing.assert_close(losses.parts["detection"].total, want.detach(), rtol=1e-5, atol=1e-6)
    corrector = of_transformers(ElectraForMaskedLM, task.backbone, task.corrector)
    want = corrector(shown[0], data["attention_mask"], labels=data["input_ids"].where(data["hidden"], IGNORE)).loss
    torch.testing.assert_close(losses.parts["correction"].total, want.detach(), rtol=1e-5, atol=1e-6)
    weighted = {"generator": 1, "detection": 5, "correction": 0.2}
    total = sum(weight * losses.parts[name].total for name, weight in weighted.items())
    torch.testing.assert_close(losses.total, total, rtol=1e-6, atol=1e-6)
    assert losses.parts["correction"].blind == losses.parts["generator"].blind
    plain = made(objective, correct=0.0)
    assert plain(data, AT).parts.keys() == {"generator", "detection"} and not hasattr(plain.corrector, "weight")


def test_tokens_are_drawn_by_the_softmax_of_the_logits() -> None:
    torch.manual_seed(0)
    head = GeneratorHead(torch.nn.Parameter(torch.randn(7, 4)))
    hidden = torch.randn(1, 1, 4).expand(1, 40_000, 4)
    labels, seeds = torch.zeros(1, 40_000, dtype=torch.int64), another(torch.tensor([5])[:, None], torch.arange(40_000))
    _, drawn = head(hidden, labels, seeds, 40_000)
    want = head.logits(hidden[0, 0]).softmax(-1)
    share = torch.bincount(drawn.flatten(), minlength=7) / 40_000
    assert ((share - want).abs() < 4 * (want * (1 - want) / 40_000).sqrt()).all()


def test_no_gradient_of_the_detection_reaches_the_generator_but_by_what_is_shared(objective: Any, batch: Any) -> None:
    task = made(objective, share_embeddings=False)
    data = batch(task)
    grads = []
    for detection in (2.0, 200.0):
        task.config = task.config.model_copy(update={"detection": detection})
        task.zero_grad()
        task(data, AT).total.backward()
        grads.append([p.grad.clone() for p in task.generator.parameters() if p.grad is not None])
    assert len(grads[0]) > 10 and all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def test_what_is_drawn_follows_from_the_sample(objective: Any, batch: Any) -> None:
    task = made(objective)
    data = batch(task)
    shown: list[torch.Tensor] = []
    task.backbone.model.register_forward_pre_hook(lambda m, a, k: shown.append(k["input_ids"]), with_kwargs=True)
    order = torch.randperm(len(data[SEEDS]), generator=torch.Generator().manual_seed(0))
    mixed = {key: value[order] if isinstance(value, torch.Tensor) else value for key, value in data.items()}
    for each in (data, mixed, data | {SEEDS: data[SEEDS] + 1}):
        task(each, AT)
    assert torch.equal(shown[1], shown[0][order]) and not torch.equal(shown[2], shown[0])


def test_what_cannot_be_is_refused(objective: Any) -> None:
    odd = {"type": "electra", "tokenizer": "bigssl/demo/tokenizer.json", "length": 16, "config": ELECTRA}
    with pytest.raises(ConfigError, match="share_embeddings: value true with token embeddings of"):
        objective(ReplacedToken, "replaced_token", generator="odd", beside={"odd": odd})
    with pytest.raises(ConfigError, match="generator: backbone 'text' is objective.backbone, too"):
        objective(ReplacedToken, "replaced_token", generator="text")
