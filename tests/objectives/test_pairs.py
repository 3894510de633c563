"""Next sentence and sentence order: which pairs are made, their losses beside transformers' own, and one pass through
the body for two tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import contract_runs as runs
import numpy as np
import pytest
import torch
import transformers
import yaml
from contract_runs import Cell
from torch import nn

from bigssl.cli.main import main
from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.data.loading.loader import MicroBatches
from bigssl.data.order.order import as_it_is
from bigssl.data.order.stream import Stream
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.heads.base import MaskedLanguageHead
from bigssl.nets.heads.pooled import PooledHead
from bigssl.nets.progress import Progress
from bigssl.objectives.base import discover, exported_heads

AT, TEXT = Progress(10, 100), "text/train"
BERT = {"next": {"name": "next_sentence"}, "masked": {"name": "mlm", "shares": "next"}}
ALBERT = {
    "type": "albert", "tokenizer": str(runs.DEMO / "tokenizer.json"), "length": 16,
    "config": {"hidden_size": 16, "embedding_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
               "intermediate_size": 32, "max_position_embeddings": 16},
}  # fmt: skip
LIKE = {"roberta": {"type_vocab_size": 1}, "bert": {"type_vocab_size": 1},
        "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}}  # fmt: skip
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def sample(text: str, key: str = "s") -> Sample:
    return Sample(key, {"txt": text.encode()}, 0, 0, "x.tar", "emoji")


def joint(objective: Any, parts: dict[str, Any] = BERT, **changes: Any) -> Any:
    return objective(discover()["joint"], "joint", parts=parts, **changes)


# Which pairs


def numbered(name: str) -> str:
    """Ten sentences that say where they stand."""
    return " ".join(f"Page {name} line {number}." for number in NUMBERS)


def said(task: Any, ids: np.ndarray, types: np.ndarray) -> list[list[tuple[str, int]]]:
    """(page, line) of each whole sentence in both pieces."""
    found = []
    for piece in (0, 1):
        words = task.backbone.tokenizer.decode(ids[types == piece]).split()
        places = [at for at, word in enumerate(words[:-3]) if word == "page" and words[at + 3] in NUMBERS]
        found.append([(words[at + 1], NUMBERS.index(words[at + 3])) for at in places])
    return found


@pytest.mark.parametrize("name", ["next_sentence", "sentence_order"])
def test_labels_say_where_a_passage_comes_from(name: str, objective: Any) -> None:
    """Half of the pairs have each label; what is labelled a negative is never of the same document (or is swapped)."""
    task, labels = objective(discover()[name], name), []
    task.backbone.length = 40

    def more(rng: np.random.Generator, use: Any = as_it_is) -> Any:
        return use(sample(numbered("abc"[int(rng.integers(3))])))

    for seed in range(1500):
        own = task.prepare(sample(numbered("x")), np.random.default_rng(seed), more)
        first, second = said(task, own["input_ids"], own["token_type_ids"] + 2 * (own["attention_mask"] == 0))
        labels.append(own["label"])
        if not first or not second:  # cut inside of their only sentences
            continue
        assert {page for page, _ in first} == {"x"} or name == "sentence_order"
        if name == "next_sentence" and own["label"]:
            assert not {page for page, _ in second} & {"x"}
        else:
            assert {page for page, _ in first + second} == {"x"}
            before, after = (second, first) if own["label"] else (first, second)
            assert max(before)[1] < min(after)[1]
    assert np.mean(labels) == pytest.approx(0.5, abs=3 * (0.25 / len(labels)) ** 0.5)


def test_what_recurs_in_the_first_document_is_no_negative(objective: Any) -> None:
    """A copy under another key, with other spaces; and one that quotes all of it."""
    task = objective(discover()["next_sentence"], "next_sentence")
    for copy in (numbered("x").replace(" ", "\n"), numbered("x")):
        def more(rng: np.random.Generator, use: Any = as_it_is, copy: str = copy) -> Any:
            return use(sample(copy, "copy"))

        own = [task.prepare(sample(numbered("x")), np.random.default_rng(n), more) for n in range(400)]
        assert not any(each["label"] for each in own)
        recurring = [each["recurring"] for each in own]
        assert np.mean(recurring) == pytest.approx(0.5, abs=3 * (0.25 / 400) ** 0.5)
        assert task.unfit(own).startswith("each passage that was drawn from another document stands in the first")
    assert not task.unfit([each for each in own if not each["recurring"]])  # nothing is known yet
    batch = task.assemble({"emoji": {"recurring": torch.tensor([True, False, False, False])}})
    assert batch["recurring"] == 0.25


def test_the_blind_line_is_of_the_labels_that_there_are(objective: Any, batch: Any) -> None:
    task = objective(discover()["next_sentence"], "next_sentence")
    data = batch(task)
    for _ in range(50):
        losses = task(data | {"label": torch.tensor([0] * 9 + [1] * 3)}, AT)
    assert float(losses.blind) == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25), rel=0.01)


@pytest.mark.parametrize("kind", LIKE)
def test_a_body_that_tells_no_segments_is_refused(kind: str, objective: Any) -> None:
    fields = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    own = LIKE[kind] if kind == "distilbert" else fields | LIKE[kind]
    section = {"type": kind, "tokenizer": ALBERT["tokenizer"], "length": 16, "config": own}
    with pytest.raises(ConfigError, match=rf"^objective.backbone: backbone 'plain': it is of type {kind}, which has no "
                                          r"two segments \(token_type_ids, config: type_vocab_size\); allowed: text"):
        objective(discover()["sentence_order"], "sentence_order", beside={"plain": section}, backbone="plain")


# Parity


def filled(model: Any, body: nn.Module, pooled: PooledHead, masked: MaskedLanguageHead) -> Any:
    """transformers' pretraining model with the weights of ours."""
    base = model.base_model
    base.load_state_dict(body.state_dict(), strict=False)
    albert = isinstance(base.pooler, nn.Linear)
    mlm = model.predictions if albert else model.cls.predictions
    dense, norm = (mlm.dense, mlm.LayerNorm) if albert else (mlm.transform.dense, mlm.transform.LayerNorm)
    pairs = [
        (base.pooler if albert else base.pooler.dense, pooled.dense),
        (model.sop_classifier.classifier if albert else model.cls.seq_relationship, pooled.classifier),
        (dense, masked.dense), (norm, masked.norm),
    ]  # fmt: skip
    for theirs, ours in pairs:
        theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        mlm.decoder.bias.copy_(masked.bias)
        mlm.bias.copy_(masked.bias)
    model.tie_weights()
    return model.eval()


@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_losses_are_those_of_transformers_heads(kind: str, objective: Any, batch: Any) -> None:
    """BertForPreTraining, AlbertForPreTraining and BertForNextSentencePrediction, at equal weights and inputs; and the
    gradients of the body."""
    bert = kind == "bert"
    parts = {"pair": {"name": "next_sentence" if bert else "sentence_order"},
             "masked": {"name": "mlm", "shares": "pair", "backbone": "text" if bert else "albert"}}  # fmt: skip
    if not bert:
        parts["pair"] |= {"backbone": "albert"}
    task = joint(objective, parts, beside={} if bert else {"albert": ALBERT})
    pair, masked = task.parts["pair"], task.parts["masked"]
    data, body = batch(task, data=TEXT), pair.backbone.model.eval()
    with torch.no_grad():
        masked.head.bias.normal_()
    losses = task(data, AT)
    losses.total.backward()
    inputs = {key: data["pair"][key] for key in ("input_ids", "attention_mask", "token_type_ids")}
    label = {"next_sentence_label" if bert else "sentence_order_label": data["pair"]["label"]}
    whole = transformers.BertForPreTraining if bert else transformers.AlbertForPreTraining
    theirs = filled(whole(body.config), body, pair.head, masked.head)
    found = theirs(**inputs, labels=data["masked"]["labels"], **label).loss
    torch.testing.assert_close(losses.total, found, rtol=1e-5, atol=1e-5)
    found.backward()
    ours = dict(body.named_parameters())
    for name, parameter in theirs.base_model.named_parameters():
        if "pooler" not in name:
            torch.testing.assert_close(ours[name].grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
    if bert:
        alone = transformers.BertForNextSentencePrediction(body.config).eval()
        alone.bert.load_state_dict(theirs.bert.state_dict())
        alone.cls.load_state_dict({"seq_relationship." + k: v for k, v in pair.head.classifier.state_dict().items()})
        with torch.no_grad():
            found = alone(**inputs, labels=data["pair"]["label"]).loss
        torch.testing.assert_close(losses.parts["pair"].total, found, rtol=1e-5, atol=1e-5)
    heads = exported_heads(task)
    assert {head.kind for head in heads.values()} == {"mlm", parts["pair"]["name"]}
    assert torch.equal(heads[parts["pair"]["name"]].tensors["dense.weight"], pair.head.dense.weight)


# One pass


def test_two_tasks_of_one_body_cost_one_pass(objective: Any, batch: Any) -> None:
    """The host's loss, weighted (1, 0), and the guest's, (0, 1), are those of each alone on the same batch, with the
    same dropout, and so are all gradients."""
    grads = []
    for weights in ((1.0, 0.0), (0.0, 1.0)):
        parts = {name: part | {"weight": weight} for (name, part), weight in zip(BERT.items(), weights, strict=True)}
        task, calls = joint(objective, parts, dropping=True), []
        handle = task.parts["next"].backbone.model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        data, name = batch(task, data=TEXT), "next" if weights[0] else "masked"
        total = task(data, AT).total
        assert len(calls) == 1, "the body is called once a pass"
        handle.remove()
        alone = task.parts[name](task.given(data, name), AT).total
        assert torch.equal(total, alone)
        weights_of = [p for p in task.parts[name].parameters() if p.requires_grad]
        for one, other in zip(*(torch.autograd.grad(each, weights_of) for each in (total, alone)), strict=True):
            assert torch.equal(one, other)
        grads.append(total.item())
    assert grads[0] != grads[1]


def test_the_guest_masks_the_hosts_pairs(objective: Any, batch: Any) -> None:
    """The same pairs as the host alone makes of these samples, but for what is masked; the guest holds no inputs of its
    own, and words and spans are masked as a whole there, too."""
    for unit in ("token", "word", "span"):
        task = joint(objective, BERT | {"masked": BERT["masked"] | {"masking": unit, "ratio": 0.3}})
        data = batch(task, data=TEXT)
        assert not data["masked"].keys() & {"input_ids", "attention_mask", "token_type_ids"}
        asked = data["masked"]["labels"] != -100
        whole = torch.where(asked, data["masked"]["labels"], data["next"]["input_ids"])
        plain = batch(joint(objective, {"next": BERT["next"], "other": {"name": "mlm"}}), data=TEXT)["next"]
        assert torch.equal(whole, plain["input_ids"]) and torch.equal(data["next"]["label"], plain["label"])
        special = torch.isin(whole, torch.tensor([0, 2, 3]))
        assert asked.any(1).all() and not (asked & special).any()
        if unit == "word":
            inside = task.parts["next"].backbone.tokenizer.convert_ids_to_tokens
            for row, row_asked in zip(whole.tolist(), asked.tolist(), strict=True):
                goes_on = [at for at, token in enumerate(inside(row)) if token.startswith("##")]
                assert all(row_asked[at] == row_asked[at - 1] for at in goes_on if row[at - 1] not in (0, 2, 3))


@pytest.mark.parametrize(("change", "error"), [
    ({"masked": {"name": "mlm", "shares": "nxt"}}, r"masked\.shares: value 'nxt'; allowed: next; nearest: next$"),
    ({"masked": {"name": "mlm", "shares": "masked"}}, r"masked\.shares: value 'masked'; allowed: next$"),
    ({"masked": BERT["masked"], "other": {"name": "mlm", "shares": "next"}},
     r"other\.shares: value 'next', as another part has; allowed: one part a pass$"),
    ({"other": {"name": "sentence_order", "shares": "next"}},
     r"other\.shares: value 'next': sentence_order makes its own samples; allowed: leave it out"),
    ({"masked": {"name": "mlm", "shares": "next", "packing": True}},
     r"masked\.packing: value true, but the samples are those of the other part; allowed: false, or no shares"),
    ({"masked": {"name": "mlm", "shares": "next", "source": "else"}},
     r"masked\.source: value 'else'; allowed: 'emoji', that of next, which it shares"),
    ({"masked": {"name": "mlm", "shares": "next", "backbone": "text_2"}},
     r"masked\.backbone: value 'text_2'; allowed: 'text', that of next, which it shares"),
])  # fmt: skip
def test_a_pass_that_cannot_be_shared_is_refused(
    change: dict[str, Any], error: str, objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = runs.with_source
    monkeypatch.setattr(runs, "with_source", lambda fields, source: made(fields, fields.get("source", source)))
    with pytest.raises(ConfigError, match=rf"^objective\.parts\.{error}"):
        joint(objective, {"next": BERT["next"]} | change, twins=True)


def counted(values: dict[str, Any]) -> tuple[runs.Run, list[int]]:
    """A run, and how often the body was called in each pass of the task. Collective."""
    calls, passes = list[int](), list[int]()

    def begin(module: nn.Module, _: Any) -> None:
        if isinstance(module, discover()["joint"]):
            calls.clear()
        elif isinstance(module, transformers.BertModel):
            calls.append(1)

    def end(module: nn.Module, *_: Any) -> None:
        if isinstance(module, discover()["joint"]):
            passes.append(len(calls))

    hooked = nn.modules.module
    hooks = hooked.register_module_forward_pre_hook(begin), hooked.register_module_forward_hook(end)
    try:
        return runs.driven(values), passes
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.distributed
def test_at_every_stage_it_is_the_plain_loop(recipe: Any, crew: Any, tmp_path: Path) -> None:
    """BERT's two tasks on two ranks, also in two passes a step, and how often the body is called."""
    fields = runs.with_source({"name": "joint", "parts": BERT}, "shards")
    data = {"workers": 0, "sources": {"shards": {"url": str(runs.DEMO / TEXT)}}}
    values = recipe("next_sentence", objective=fields, data=data, steps=3)
    want = runs.plain(values)
    for stage, persistence in ((0, None), (1, None), (2, None), (3, 0)):
        place = runs.at_cell(values | {"out": str(tmp_path / f"run{stage}")}, Cell(stage, persistence, 2, "fp32"))
        (one, passes), (two, _) = crew(counted, 2, place)
        assert len(passes) >= 3 and set(passes) == {1}, "one pass through the body a step"
        both = [{key: (row[key] + other[key]) / 2 for key in row}
                for row, other in zip(one.passes, two.passes, strict=True)]  # fmt: skip
        curve, state, where = runs.distance(one_of(one, both), want, want)
        assert curve < 1e-3 and state < 3e-2, f"stage {stage}, {where}: {curve:.1e}, {state:.1e}"


    halves = place | {"batch": {"size": runs.SIZE, "accum": 2}, "out": str(tmp_path / "halves")}
    (one, passes), _ = crew(counted, 2, halves)
    assert len(passes) >= 6 and set(passes) == {1}
    for key, value in want.state.items():  # exactly, though tokens are masked unevenly
        torch.testing.assert_close(one.state[key], value, rtol=1e-3, atol=1e-5, msg=key)


def one_of(run: runs.Run, passes: list[dict[str, float]]) -> runs.Run:
    return runs.Run(passes, run.norms, run.start, run.state, run.settings)


# Data that have no pairs


def packed(folder: Path, texts: list[str]) -> str:
    (folder / "texts").mkdir(parents=True)
    for number, text in enumerate(texts):
        (folder / "texts" / f"{number}.txt").write_text(text)
    assert main(["shards", "pack", str(folder / "texts"), str(folder / "shards")]) == 0
    return str(folder / "shards")


@pytest.mark.parametrize(("name", "texts", "error"), [
    ("next_sentence", [numbered("x")], "holds 1 sample, but next_sentence draws another one beside each; allowed: >="),
    ("sentence_order", ["Only one.", "Or two", "Three."], "a document of one sentence, which has no next one"),
    ("next_sentence", [numbered("x")] * 9, "each passage that was drawn from another document stands in the first"),
])  # fmt: skip
def test_data_without_pairs_are_refused_before_the_run(
    name: str, texts: list[str], error: str, recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"workers": 0, "on_error": "skip", "sources": {"shards": {"url": packed(tmp_path, texts)}}}
    values = recipe(name, tmp_path / "run", data=data, batch={"size": 1})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    capsys.readouterr()
    assert main(["config", "check", str(tmp_path / "recipe.yaml")]) == 2
    assert error in capsys.readouterr().err


@pytest.mark.parametrize("name", ["next_sentence", "sentence_order"])
def test_bad_documents_are_skipped_and_counted(name: str, tmp_path: Path, objective: Any) -> None:
    """Those of one sentence and those that are empty, as the policy of bad samples says; one of one sentence may still
    be what is drawn beside another."""
    texts = [numbered("x"), "Only one.", numbered("y"), "  \n", numbered("z")]
    index, task = DatasetIndex.load(packed(tmp_path, texts)), objective(discover()[name], name)
    found: dict[str, list[Any]] = {}
    for policy in ("skip", "raise"):
        stream = Stream(index, seed=0, source="emoji", on_error=policy, max_errors=50)
        loader = MicroBatches({"emoji": stream}, {"emoji": 5}, task.prepare, task.assemble, 0, 0, 1, 1)
        found[policy] = [loader[step] for step in range(3)]
    assert all(isinstance(each, DataError) for each in found["raise"])
    causes = {bad.cause.partition(": ")[2] for each in found["skip"] for bad in each.errors}
    assert any("a document of one sentence" in cause for cause in causes)
    assert any("an empty document" in cause for cause in causes)
    assert all(len(each.data["label"]) == 5 for each in found["skip"])
