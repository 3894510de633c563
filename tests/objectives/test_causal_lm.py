"""Next tokens: the losses of transformers' own classes, packed or not; no text, token or end is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import contract_runs as runs
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from bigssl.config.errors import ConfigError
from bigssl.data.kinds.masking import IGNORE
from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.loading.collate import collate
from bigssl.data.loading.loader import SEEDS
from bigssl.data.sample import Sample
from bigssl.nets.progress import Progress
from bigssl.objectives.causal_lm import CausalLm

AT = Progress(0, 100)
LLAMA = {
    "type": "llama", "tokenizer": str(runs.DEMO / "tokenizer.json"), "length": 16,
    "config": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
               "num_key_value_heads": 1, "max_position_embeddings": 32},
}  # fmt: skip
TEXTS = [
    "grinning face", "the state of the union is strong and it will be strong in all the years to come, I am sure",
    "a cat", "", "two hearts, and a third one below", "flag: France", " \n ",
]  # fmt: skip
BODIES = {"gpt2": "gpt2", "llama": LLAMA}
each_body = pytest.mark.parametrize("body", BODIES)


def alone(_: np.random.Generator) -> Sample:
    raise AssertionError("this task asks for no other sample")


@pytest.fixture
def task(objective: Any) -> Any:
    """`task(body, field=value, ...)`: causal_lm over a tiny network, with weights away from their defaults."""

    def make(body: str, **changes: Any) -> CausalLm:
        fields = {"backbone": "body", "longest": 1 << 18} | changes
        made = objective(CausalLm, "causal_lm", beside={"body": BODIES[body]}, **fields)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return made  # type: ignore[no-any-return]

    return make


def prepared(task: CausalLm, text: str, seed: int = 0) -> dict[str, np.ndarray]:
    sample = Sample("s", {"txt": text.encode()}, 0, 0, "x.tar", "emoji")
    found = task.prepare(sample, np.random.default_rng(seed), alone)
    return {name: ragged.values for name, ragged in found.items()}


def assembled(task: CausalLm, texts: list[str]) -> dict[str, Any]:
    samples = [Sample(f"s{n}", {"txt": text.encode()}, n, 0, "x.tar", "emoji") for n, text in enumerate(texts)]
    rows = [task.prepare(sample, np.random.default_rng(0), alone) for sample in samples]
    return task.assemble({"emoji": collate(rows) | {SEEDS: torch.arange(len(rows))}})


def pieces_of(batch: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """(shown, asked) of each piece that shares a row."""
    places = [row[row >= 0] for group in batch["groups"] for row in group]
    return [(batch["input_ids"].flatten()[each], batch["labels"].flatten()[each]) for each in places]


def their_model(task: CausalLm) -> Any:
    """transformers' class, with the weights of the task."""
    theirs: Any = AutoModelForCausalLM.from_config(task.backbone.model.config)
    theirs.base_model.load_state_dict(task.backbone.model.state_dict())
    if not task.backbone.model.config.tie_word_embeddings:
        theirs.get_output_embeddings().weight.data.copy_(task.head.weight)
    theirs.tie_weights()
    return theirs


@each_body
def test_loss_and_gradients_are_those_of_transformers_text_by_text(body: str, task: Any) -> None:
    """Packed, beside one text at a time through its own class and its own shift of the labels."""
    ours = task(body)
    texts = [text for text in TEXTS if len(ours.backbone.tokenizer(text)["input_ids"]) <= 16]
    batch = assembled(ours, texts)
    assert len(batch["input_ids"]) == 2 and len(pieces_of(batch)) == 4 and batch["padding"] > 0
    loss = ours(batch, AT).total
    loss.backward()
    theirs, total, count = their_model(ours), torch.zeros(()), 0
    for text in texts:
        ids = torch.tensor([ours.backbone.tokenizer(text)["input_ids"]])
        if ids.shape[1] > 2:  # with nothing but its frame there is no text
            total = total + theirs(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    assert count == batch["labelled"] > 15
    torch.testing.assert_close(loss, total / count, rtol=1e-5, atol=1e-5)
    (total / count).backward()
    mine = dict(ours.backbone.model.named_parameters())
    for name, parameter in theirs.base_model.named_parameters():
        torch.testing.assert_close(mine[name].grad, parameter.grad, rtol=1e-4, atol=1e-5, msg=name)
    torch.testing.assert_close(ours.head.weight.grad, theirs.get_output_embeddings().weight.grad, rtol=1e-4, atol=1e-5)


def losses_of(task: CausalLm, ids: Tensor, labels: Tensor) -> list[float]:
    hidden = task.backbone.model(input_ids=ids[None]).last_hidden_state[0]
    found = torch.nn.functional.cross_entropy(task.head.logits(hidden), labels, reduction="none")
    return found[labels != IGNORE].tolist()  # type: ignore[no-any-return]


@each_body
def test_each_token_has_the_loss_that_it_has_in_a_row_of_its_own(body: str, task: Any) -> None:
    """Of all pieces, those of a text that is longer than the context too."""
    ours, packed, alone_ = task(body), [], []
    batch = assembled(ours, TEXTS)
    ours.head.register_forward_hook(lambda m, a, out: packed.extend(out[1].loss[a[1] != IGNORE].tolist()))
    with torch.no_grad():
        ours(batch, AT)
        for shown, asked in pieces_of(batch):
            alone_ += losses_of(ours, shown, asked)
    assert len(packed) == batch["labelled"] and sorted(packed) == pytest.approx(sorted(alone_), rel=1e-4, abs=1e-5)


@each_body
def test_a_token_changes_no_loss_before_it_and_none_of_other_texts(body: str, task: Any) -> None:
    ours, said = task(body), list[Tensor]()
    batch = assembled(ours, TEXTS)
    ours.head.register_forward_hook(lambda m, a, out: said.append(out[1].loss.view_as(batch["labels"])))
    for places in (row[row >= 0] for group in batch["groups"] for row in group):
        other = batch["input_ids"].clone()
        other.view(-1)[places[2]] += 1
        with torch.no_grad():
            ours(batch, AT), ours(batch | {"input_ids": other}, AT)
        moved = ~torch.isclose(said[-2], said[-1])
        expected = torch.zeros_like(moved)
        expected.view(-1)[places[2:]] = True
        assert torch.equal(moved, expected & (batch["labels"] != IGNORE))


def test_no_token_and_no_end_of_a_text_is_lost(task: Any) -> None:
    ours = task("gpt2")
    tokenizer, batch = ours.backbone.tokenizer, assembled(ours, TEXTS)
    expected = [tokenizer(text)["input_ids"][1:] for text in TEXTS if text.strip()]
    assert sorted(batch["labels"][batch["labels"] != IGNORE].tolist()) == sorted(sum(expected, []))
    assert batch["labelled"] == sum(map(len, expected))
    long = prepared(ours, TEXTS[1])
    assert len(long["sizes"]) == 2 and long["sizes"][0] == 16
    assert long["labels"][long["labels"] != IGNORE].tolist() == tokenizer(TEXTS[1])["input_ids"][1:]
    assert ours(batch, AT).stats["empty"].item() == pytest.approx(2 / 7)


def test_empty_texts_change_nothing_and_nothing_else_is_no_error(task: Any) -> None:
    ours = task("llama")
    full, without = assembled(ours, ["a cat", "", "two hearts", " \n "]), assembled(ours, ["a cat", "two hearts"])
    assert torch.isclose(ours(full, AT).total, ours(without, AT).total)
    empty = ours(assembled(ours, ["", " "]), AT)
    assert empty.total.item() == 0 and empty.stats["empty"].item() == 1
    empty.total.backward()
    assert all(p.grad is None or not p.grad.any() for p in ours.parameters())


def test_a_window_has_an_end_only_where_the_text_has(task: Any) -> None:
    ours = task("gpt2")
    ours.config = ours.config.model_copy(update={"longest": 30})
    text = " ".join(f"word{n}" for n in range(40))
    found = [prepared(ours, text, seed)["labels"] for seed in range(200)]
    ended = [labels for labels in found if labels[-1] == ours.backbone.tokenizer.sep_token_id]
    final = ours.backbone.tokenizer(text)["input_ids"][-2]
    assert 0 < len(ended) < 60 and all(labels[-2] == final for labels in ended)


def test_windows_give_whole_pieces_and_every_token_is_asked(task: Any) -> None:
    ours = task("gpt2")
    length = ours.backbone.length
    ours.config = ours.config.model_copy(update={"longest": 9 * length})
    text = " ".join(f"w{n}" for n in range(12 * length))
    tokens = ours.backbone.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    asked, endless = set[int](), 0
    for seed in range(400):
        found = prepared(ours, text, seed)
        sizes, labels = list(found["sizes"]), [each for each in found["labels"] if each != IGNORE]
        asked |= set(labels)
        if labels[-1] != ours.backbone.tokenizer.sep_token_id:
            endless += 1
            assert len(sizes) > 1 and set(sizes) == {length}
    assert endless > 300 and asked >= set(tokens)
    assert sum(prepared(ours, "w1 w2 w3", 0)["sizes"]) > 0  # of a short text, all of it


def test_z_loss_and_softcap_are_in_the_loss_and_z_loss_is_shown(task: Any) -> None:
    plain, capped = task("llama"), task("llama", z_loss=0.25, softcap=1.5)
    batch = assembled(plain, TEXTS)
    found = capped(batch, AT)
    labels = batch["labels"].flatten()
    hidden = []
    plain.head.register_forward_hook(lambda m, a, out: hidden.append(a[0]))
    ours = plain(batch, AT)
    logits = 1.5 * torch.tanh(hidden[0][labels != IGNORE].double() @ plain.head.weight.double().T / 1.5)
    z = 0.25 * logits.logsumexp(1).square().mean()
    expected = torch.nn.functional.cross_entropy(logits, labels[labels != IGNORE]) + z
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.stats["z"].item() == pytest.approx(z.item(), rel=1e-5) and "z" not in ours.stats
    right = (logits.argmax(1) == labels[labels != IGNORE]).float().mean()
    assert found.stats["accuracy"].item() == pytest.approx(right.item(), abs=1e-6)


def test_a_network_that_begins_with_a_folder_begins_with_its_head(objective: Any, tmp_path: Path) -> None:
    """Of a Llama, whose head is no embedding; at first, the loss is that of what was saved there."""
    known = load_tokenizer(LLAMA["tokenizer"])
    torch.manual_seed(5)
    theirs = AutoModelForCausalLM.from_config(LlamaConfig(
        vocab_size=len(known), pad_token_id=known.pad_token_id, bos_token_id=known.cls_token_id,
        eos_token_id=known.sep_token_id, **LLAMA["config"]))  # fmt: skip
    with torch.no_grad():
        theirs.lm_head.weight.add_(0.1 * torch.randn_like(theirs.lm_head.weight))
    theirs.save_pretrained(tmp_path / "theirs")
    body = {"type": "llama", "tokenizer": LLAMA["tokenizer"], "length": 16, "init_from": str(tmp_path / "theirs")}
    ours = objective(CausalLm, "causal_lm", beside={"body": body}, backbone="body")
    assert torch.equal(ours.head.weight, theirs.lm_head.weight) and ours.head.weight is not theirs.lm_head.weight
    ids = torch.tensor([known(TEXTS[0])["input_ids"]])
    expected = theirs(ids, labels=ids).loss.item()
    assert ours(assembled(ours, TEXTS[:1]), AT).total.item() == pytest.approx(expected, rel=1e-5)


def test_a_folder_without_the_head_is_refused_or_said(objective: Any, tmp_path: Path) -> None:
    """A network that leaves alone has none; where parts are allowed, the run's notes say that one was made anew."""
    known = load_tokenizer(LLAMA["tokenizer"])
    config = LlamaConfig(vocab_size=len(known), pad_token_id=known.pad_token_id, bos_token_id=known.cls_token_id,
                         eos_token_id=known.sep_token_id, **LLAMA["config"])  # fmt: skip
    AutoModelForCausalLM.from_config(config).model.save_pretrained(tmp_path)
    body = {"type": "llama", "tokenizer": LLAMA["tokenizer"], "length": 16, "init_from": str(tmp_path)}
    said = r"^backbones\.body\.init_from: value .*: weight of the layer behind the network, .* is not in it; al.*"
    with pytest.raises(ConfigError, match=said + "--allow-partial"):
        objective(CausalLm, "causal_lm", beside={"body": body}, backbone="body")
    ours = objective(CausalLm, "causal_lm", beside={"body": body | {"allow_partial": True}}, backbone="body")
    assert "tensors are taken" in ours.backbone.begun
    assert ours.backbone.begun.endswith("; made anew since it lacks it: weight of the layer behind it, which predicts "
                                        "tokens")  # fmt: skip


def test_a_body_that_sees_both_sides_is_refused(objective: Any) -> None:
    said = "objective.backbone: backbone 'both': it is of type bert, in which each token sees both its sides; allowed: "
    with pytest.raises(ConfigError, match=f"^{said}text"):
        objective(CausalLm, "causal_lm", beside={"both": "bert"}, backbone="both")
