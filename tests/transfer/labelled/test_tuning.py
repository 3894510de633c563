"""Networks that are trained on labels: what changes, what stays, and what leaves."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, PreTrainedModel, PreTrainedTokenizerFast

from bigssl.data.errors import DataError
from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.modality import MODALITIES
from bigssl.transfer.bench import Bench
from bigssl.transfer.features import read_samples
from bigssl.transfer.inputs import SeriesInput, TextInput
from bigssl.transfer.labelled.classify import Classification
from bigssl.transfer.labelled.networks import Classifier, with_head
from bigssl.transfer.labelled.trials import Trial
from bigssl.transfer.labelled.tuning import Tuning, predictions, trained
from bigssl.transfer.leaving import classifier
from bigssl.transfer.leaving.export import ExportError
from bigssl.transfer.leaving.proof import Claim, ProofError
from bigssl.transfer.scores import row_of
from bigssl.transfer.tasks.finetune import Finetune
from bigssl.transfer.tasks.hybrid import Hybrid, layers_from

FAST: dict[str, Any] = {"label": "category", "seeds": 1, "fractions": [1.0], "epochs": 2, "least_steps": 0,
                        "lr": 0.01, "fit_batch": 16}


def section(kind: type[Tuning], shards: Path, **fields: Any) -> Any:
    return kind(**{"train": str(shards / "train"), "queries": str(shards / "val"), **FAST, **fields})


def tuned(bench: Bench, of: Tuning, seed: int = 0, contender: str = "trained") -> tuple[dict[str, Tensor], Classifier]:
    """(the state of the backbone before, the network after)."""
    job = Classification.of(bench, of)
    trial = Trial(contender, 1.0, seed, torch.arange(48))
    before = {name: value.clone() for name, value in bench.network(job.subject, contender, seed).state_dict().items()}
    subject = {name: value.clone() for name, value in job.subject.models["trained"].state_dict().items()}
    network = trained(bench, of, job, trial)
    after = job.subject.models["trained"].state_dict()
    assert all(torch.equal(after[name], value) for name, value in subject.items()), "others are judged with these"
    return before, network


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert set(before) <= set(after)
    return {name for name, value in before.items() if not torch.equal(after[name], value)}


def unused(name: str) -> bool:
    return name.startswith("pooler")


def test_fine_tuning_changes_every_weight_and_statistic(bench: Bench, shards: Path) -> None:
    before, network = tuned(bench, section(Finetune, shards))
    assert type(network.model).__name__ == "ResNetForImageClassification" and network.head is None
    assert changed(before, network.base.state_dict()) == set(before), "weights, running statistics, counts of batches"
    assert not any(module.training for module in network.modules())
    bench.subject("text")  # what is loaded draws
    generator = torch.get_rng_state()
    before, network = tuned(bench, section(Finetune, shards, backbone="text"))
    assert torch.equal(torch.get_rng_state(), generator), "what is drawn later is what would have been"
    assert type(network.model).__name__ == "BertForSequenceClassification"
    constant = {"embeddings.position_ids", "embeddings.token_type_ids"}
    same = set(before) - changed(before, network.base.state_dict()) - constant
    assert not {name for name in same if not unused(name)}


def test_the_last_layers_alone_are_tuned_and_frozen_statistics_stay(bench: Bench, shards: Path) -> None:
    before, network = tuned(bench, section(Hybrid, shards, top=1))
    state = network.base.state_dict()
    last = {name for name in before if name.startswith("encoder.stages.1.")}
    assert changed(before, state) == last and any("running_mean" in name for name in last)
    assert any("running_mean" in name for name in set(before) - last), "there are frozen statistics, too"
    before, network = tuned(bench, section(Hybrid, shards, top=2))
    stages = {name for name in before if name.startswith("encoder.stages.")}
    assert changed(before, network.base.state_dict()) == stages, "the first convolutions alone stay"


def test_adapters_leave_every_weight_as_it_was(bench: Bench, shards: Path) -> None:
    before, network = tuned(bench, section(Hybrid, shards, backbone="text", lora=2))
    state = {name.replace(".base_layer", ""): value for name, value in network.base.state_dict().items()}
    assert not {name for name in changed(before, state) if not unused(name)}
    added = {name for name in network.base.state_dict() if "lora_" in name}
    layers = {name.rpartition(".lora_")[0] for name in added}
    assert {f"encoder.layer.0.attention.self.{part}" for part in ("query", "key", "value")} < layers
    assert len(layers) >= 6
    assert all(network.base.state_dict()[name].any() for name in added if "lora_B" in name), "they have left zero"


def test_a_fresh_network_is_tuned_the_same_way_from_weights_by_the_seed(bench: Bench, shards: Path) -> None:
    of = section(Finetune, shards)
    starts = [tuned(bench, of, seed, "random_net") for seed in (0, 1, 1)]
    assert changed(starts[0][0], starts[1][0]) and not changed(starts[1][0], starts[2][0])
    ends = [network.state_dict() for _, network in starts]
    assert not changed(ends[1], ends[2]) and "classifier.1.weight" in {n.removeprefix("model.") for n in
                                                                      changed(ends[0], ends[1])}  # fmt: skip
    assert starts[1][0]["embedder.embedder.normalization.running_mean"].abs().max() > 0.01, "set from real samples"
    assert starts[0][0]["embedder.embedder.convolution.weight"].std() != 0


def test_where_transformers_has_no_class_the_head_takes_mean_features(
    bench: Bench, make_model: Callable[..., PreTrainedModel]
) -> None:
    from transformers import PatchTSTConfig, PatchTSTModel

    model = PatchTSTModel(PatchTSTConfig(num_input_channels=2, context_length=16, patch_length=4, patch_stride=4,
                                         d_model=8, num_attention_heads=2, num_hidden_layers=1, ffn_dim=8))  # fmt: skip
    batch = {"series": torch.randn(3, 16, 2)}
    takes = SeriesInput(16, 2)
    network = with_head(model, takes, {"series": batch["series"][:1]}, ["a", "b", "c"], False, 0)
    assert network.head is not None and network(batch).shape == (3, 3)
    assert [p.shape for p in network.new_parameters()] == [(3, 8), (3,)]
    dropping = [module for module in model.modules() if isinstance(module, nn.Dropout | nn.BatchNorm1d)]
    network.train()
    assert dropping and all(module.training for module in dropping)
    model.requires_grad_(False)
    network.train()
    assert not any(module.training for module in dropping) and network.head.training


@pytest.mark.parametrize("padding", ["[PAD]", None])
def test_the_last_token_of_a_text_is_found_by_the_padding_of_its_tokenizer(
    padding: str | None, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The config of a decoder may know no padding, or another: alone, or padded beside a longer one, a text gets the
    same."""
    from transformers import GPT2Config, GPT2Model

    words = copy.deepcopy(tokenizer)
    words.pad_token = padding
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=16, pad_token_id=None)
    takes = TextInput(words, 16)
    short, long = (takes.tokens(text) for text in ("a b", "a b c d e f"))
    batch = {name: torch.from_numpy(np.stack([short[name], long[name]])) for name in short}
    network = with_head(GPT2Model(config), takes, batch, ["x", "y"], False, 0).eval()
    assert (type(network.model).__name__ == "GPT2ForSequenceClassification") == (padding is not None)
    alone = {name: value[:1, : int(short["attention_mask"].sum())] for name, value in batch.items()}
    with torch.no_grad():
        torch.testing.assert_close(network(batch)[:1], network(alone))
    if padding is not None:
        assert network.model.config.pad_token_id == words.pad_token_id, "what leaves knows it, too"


def test_a_kept_classifier_is_the_one_that_was_judged(
    bench: Bench, shards: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(That another process loads it is proven in tests/transfer/leaving.) It is in place of an older one."""

    def prove(claims: list[Claim], python: str) -> list[Mock]:
        assert [claim.part for claim in claims] == ["mine"] and (run / "networks" / "mine" / "older").is_file()
        return [Mock(write=lambda folder: (folder / "proof.json").touch()) for _ in claims]

    monkeypatch.setattr(classifier, "prove", prove)
    (run / "networks" / "mine").mkdir(parents=True)
    for name in ("older", "proof.json"):
        (run / "networks" / "mine" / name).touch()
    of = section(Finetune, shards, keep=True, epochs=6, query_limit=20)
    (score,) = of.run(bench)
    row = row_of(score)
    assert [path.name for path in (run / "networks").iterdir()] == ["mine"]
    assert not (run / "networks" / "mine" / "older").exists()
    assert row["kept"] == "networks/mine" and row["trained"] > row["majority"]
    kept = AutoModelForImageClassification.from_pretrained(run / "networks" / "mine")
    job = Classification.of(bench, of)
    network = Classifier(kept, kept.resnet, MODALITIES["image"], None)
    right = job.classes.right(predictions(network, job.queries, bench), job.asked)
    assert right.double().mean().item() == row["trained"]
    assert [kept.config.id2label[n] for n in range(3)] == job.classes.names


def test_a_classifier_that_is_not_proven_replaces_none(
    bench: Bench, shards: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, takes = run / "networks" / "mine", bench.subject("image").takes
    model = AutoModelForImageClassification.from_config(bench.subject("image").models["trained"].config)

    def refuse(claims: list[Claim], python: str) -> None:
        raise ProofError("other logits")

    monkeypatch.setattr(classifier, "prove", refuse)
    folder.mkdir(parents=True)
    samples = list(read_samples(DatasetIndex.load(str(shards / "val")), 2))
    with pytest.raises(ExportError, match="mine: there, and no classifier that was kept"):
        section(Finetune, shards, keep=True).run(bench)
    (folder / "proof.json").touch()
    with pytest.raises(ProofError, match="other logits"):
        classifier.save_classifier(folder, model, ["a", "b"], takes, samples)
    assert [str(path.relative_to(run / "networks")) for path in (run / "networks").rglob("*")] == [
        "mine", "mine/proof.json"]  # fmt: skip


def test_what_cannot_be_tuned_so_is_said(
    make_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigssl.transfer.labelled.adapters import linear_layers

    resnet, bert = make_model("resnet"), make_model("bert")
    with pytest.raises(DataError, match="the network has 2 layers; allowed: 1 to 2"):
        layers_from(resnet, 3)
    with pytest.raises(DataError, match="a resnet has no linear layers; allowed: top in its place"):
        linear_layers(resnet)
    with pytest.raises(ValueError, match="top 1 and lora 2; allowed: one of them"):
        Hybrid(train="x", queries="y", top=1, lora=2)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(DataError, match=r"adapters need peft; run: pip install 'bigssl\[lora\]'"):
        linear_layers(bert)
