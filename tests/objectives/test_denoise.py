"""BART against transformers' own class, what the decoder may see, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from contract_runs import DEMO, Progress
from transformers import AutoModelForSeq2SeqLM, BartConfig, BartForConditionalGeneration

from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.data.kinds.masking import IGNORE
from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.loading.collate import collate
from bigssl.data.loading.loader import SEEDS
from bigssl.data.sample import Sample
from bigssl.nets.modality.kinds import ENCODER_DECODER
from bigssl.objectives.causal_lm import CausalLm
from bigssl.objectives.denoise import Denoise
from bigssl.objectives.mlm import Mlm
from bigssl.objectives.simcse import Simcse

AT = Progress(0, 10)
TOKENIZER = str(DEMO / "tokenizer.json")
SIZES = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_ffn_dim": 24,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "max_position_embeddings": 24, "dropout": 0.0,
         "init_std": 0.3}  # fmt: skip
TEXTS = ["We meet here tonight. The state of the union is strong! Is it? " * 3, "a cat", "Two hearts. One soul."]


def alone(*_: object) -> Any:
    raise AssertionError("this task asks for no other sample")


@pytest.fixture
def task(objective: Any) -> Any:
    """`task(kind, field=value, ...)`: denoise over a tiny body of this type, with two layers on each side."""

    def make(kind: str = "bart", section: dict[str, Any] | None = None, **fields: Any) -> Denoise:
        body = {"type": kind, "tokenizer": TOKENIZER, "length": 20, "config": SIZES} | (section or {})
        made: Denoise = objective(Denoise, "denoise", beside={"body": body}, backbone="body", **fields)
        return made

    return make


def assembled(task: Denoise, texts: list[str]) -> dict[str, Any]:
    samples = [Sample(f"s{n}", {"txt": text.encode()}, n, 0, "x.tar", "emoji") for n, text in enumerate(texts)]
    rows = [task.prepare(sample, np.random.default_rng(n), alone) for n, sample in enumerate(samples)]
    return task.assemble({"emoji": collate(rows) | {SEEDS: torch.arange(len(rows))}})


def their_model(task: Denoise) -> Any:
    """transformers' class, with the weights of the task."""
    theirs: Any = AutoModelForSeq2SeqLM.from_config(copy.deepcopy(task.backbone.model.config))
    theirs.model.load_state_dict(task.backbone.model.state_dict())
    theirs.final_logits_bias.copy_(task.head.final_logits_bias)
    theirs.tie_weights()
    return theirs


@pytest.mark.parametrize("kind", ENCODER_DECODER)
def test_loss_and_gradients_are_those_of_transformers(kind: str, task: Any) -> None:
    """In float64, with a bias; its own class shifts the labels."""
    ours = task(kind)
    torch.manual_seed(1)
    ours.head.final_logits_bias.normal_()
    batch = assembled(ours, TEXTS)
    ours, theirs = ours.double(), their_model(ours).double()
    loss = ours(batch, AT)
    theirs.config.decoder_start_token_id = ours.backbone.tokenizer.sep_token_id
    want = theirs(batch["input_ids"], batch["attention_mask"], labels=batch["labels"])
    torch.testing.assert_close(loss.total.double(), want.loss, rtol=1e-6, atol=1e-6)  # the sum is kept in float32
    loss.total.backward(), want.loss.backward()
    mine = dict(ours.backbone.model.named_parameters())
    for name, parameter in theirs.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(mine[name].grad, parameter.grad, rtol=1e-5, atol=1e-7, msg=name)
    asked = batch["labels"] != IGNORE
    right = (want.logits.argmax(-1) == batch["labels"])[asked].float().mean()
    assert loss.stats["accuracy"].item() == pytest.approx(right.item(), abs=1e-6)
    assert batch["labelled"] == int(asked.sum()) == 20 + 4 + 8


def test_a_later_token_changes_no_earlier_loss_and_what_is_read_changes_all(task: Any) -> None:
    ours, said = task(), list[torch.Tensor]()
    batch = assembled(ours, TEXTS)
    ours.head.register_forward_hook(lambda m, a, out: said.append(out[1].loss.view_as(batch["labels"])))
    with torch.no_grad():
        for place in range(19):
            labels = batch["labels"].clone()
            labels[0, place] = 9
            ours(batch, AT), ours(batch | {"labels": labels}, AT)
            own, *others = ~torch.isclose(said[-2], said[-1], rtol=1e-6, atol=1e-7)
            assert own[place:].all() and not own[:place].any() and not torch.stack(others).any()
        other = batch["input_ids"].clone()
        other[0, 5] += 1
        ours(batch | {"input_ids": other}, AT)
        assert not torch.isclose(said[-1], said[-2], rtol=1e-6)[0].any()


def test_padding_is_seen_by_nobody_and_empty_texts_change_nothing(task: Any) -> None:
    ours = task()
    full, without = assembled(ours, [TEXTS[1], "", TEXTS[2], " \n "]), assembled(ours, [TEXTS[1], TEXTS[2]])
    without["input_ids"][1:] = full["input_ids"][2]  # the noise of a text follows from its own generator
    without["attention_mask"][1:] = full["attention_mask"][2]
    found = ours(full, AT)
    assert torch.isclose(found.total, ours(without, AT).total) and found.stats["empty"].item() == 0.5
    spoilt = full["input_ids"].where(full["attention_mask"] > 0, 77)
    assert torch.isclose(ours(full | {"input_ids": spoilt}, AT).total, found.total)
    empty = ours(assembled(ours, ["", " "]), AT)
    assert empty.total.item() == 0 and empty.stats["empty"].item() == 1 and empty.stats["hidden"].item() == 0
    empty.total.backward()
    assert all(p.grad is None or not p.grad.any() for p in ours.parameters())


def test_the_share_that_is_hidden_is_shown(task: Any) -> None:
    for ratio in (0.2, 0.6):
        ours = task(ratio=ratio)
        batch = assembled(ours, TEXTS[:1] * 60 + TEXTS[1:])
        stats = ours(batch, AT).stats
        assert stats["hidden"].item() == pytest.approx(ratio * 18 / 20, abs=0.03)  # [CLS] and [SEP] never are
        nothing = (batch["attention_mask"] == 0).sum() + (batch["labels"] == IGNORE).sum()
        assert stats["padding"].item() == pytest.approx(nothing.item() / (2 * 62 * 20))


def test_a_network_that_begins_with_a_folder_begins_with_its_bias(task: Any, tmp_path: Any) -> None:
    known = load_tokenizer(TOKENIZER)
    ids = {"pad_token_id": known.pad_token_id, "bos_token_id": known.cls_token_id, "eos_token_id": known.sep_token_id,
           "decoder_start_token_id": known.sep_token_id, "forced_eos_token_id": known.sep_token_id}  # fmt: skip
    theirs = BartForConditionalGeneration(BartConfig(vocab_size=len(known), **ids, **SIZES))
    theirs.final_logits_bias.normal_()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = task(section={"init_from": str(tmp_path / "theirs"), "config": {}})
    batch = assembled(ours, TEXTS)
    want = theirs(batch["input_ids"], batch["attention_mask"], labels=batch["labels"]).loss
    assert ours(batch, AT).total.item() == pytest.approx(want.item(), rel=1e-5)
    theirs.config.decoder_start_token_id = None
    theirs.generation_config.decoder_start_token_id = None
    theirs.save_pretrained(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="backbones.body.init_from: its decoder_start_token_id is None; allowed:"):
        task(section={"init_from": str(tmp_path / "nowhere"), "config": {}})


def test_what_cannot_be_is_refused(task: Any, objective: Any, tmp_path: Any) -> None:
    said = "objective.backbone: backbone 'both': it is of type bert, which has no decoder; allowed: text"
    with pytest.raises(ConfigError, match=said):
        objective(Denoise, "denoise", beside={"both": "bert"}, backbone="both")
    for kind, name in ((Mlm, "mlm"), (Simcse, "simcse")):
        with pytest.raises(ConfigError, match="it is of type bart, whose decoder this task would not train"):
            objective(kind, name, beside={"both": "bart"}, backbone="both")
    with pytest.raises(ConfigError, match="it is of type bart, in which each token sees both its sides; allowed: text"):
        objective(CausalLm, "causal_lm", beside={"both": "bart"}, backbone="both")
    for field, value in (("decoder_start_token_id", 2), ("pad_token_id", 1), ("decoder_layerdrop", 0.5)):
        with pytest.raises(ConfigError, match=rf"backbones.body.config.{field}: value {value}; allowed: \d"):
            task(section={"config": SIZES | {field: value}})
    with pytest.raises(ConfigError, match="backbones.body.config.tie_word_embeddings: value false; allowed: true"):
        task(section={"config": SIZES | {"tie_word_embeddings": False}})
    with pytest.raises(ConfigError, match="backbones.body.config.vocab_size: value 50; allowed: >= "):
        task(section={"config": SIZES | {"vocab_size": 50}})
    with pytest.raises(ConfigError, match=r"backbones.body.length: value 25; allowed: <= 24 \(max_position_embeddings"):
        task(section={"length": 25})
    bare = load_tokenizer(TOKENIZER)
    bare.mask_token = None
    bare.save_pretrained(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text().replace("[MASK]", "<hidden>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises((ConfigError, DataError), match="its tokenizer has no mask_token"):
        task(section={"tokenizer": str(tmp_path)})
