"""Held-out pairs, and tokens that were replaced: the numbers are those of transformers' own heads and of loops, and two
ranks find what one finds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BertForNextSentencePrediction, PreTrainedModel, PreTrainedTokenizerFast

from bigssl.config.errors import ConfigError
from bigssl.config.evaluate import Evaluation
from bigssl.config.recipe import BackboneConfig
from bigssl.data.kinds.texts.pairs import split_sentences
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.engine import zero
from bigssl.engine.plan.evaluation import Checked
from bigssl.nets.heads.base import Head, MaskedLanguageHead
from bigssl.nets.heads.pooled import PooledHead
from bigssl.nets.heads.replacing import DiscriminatorHead
from bigssl.nets.towers import Tower
from bigssl.transfer.bags import Bags, TfIdf, counted, token_grams
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.matrix import Held
from bigssl.transfer.scorecard import score
from bigssl.transfer.tasks.detection import Detection
from bigssl.transfer.tasks.neighbours import NextPassage
from bigssl.transfer.tasks.pairs import PairsOfPassages
from bigssl.transfer.team import Team
from bigssl.transfer.texts.documents import Unasked
from bigssl.transfer.texts.drawn import Drawing, HeldOutPair, Threshold, Unpaired
from bigssl.transfer.texts.replaced import Replacing, hidden_pieces

KINDS = ["thing", "number", "warm", "cool", "red-ish", "green-ish", "blue-ish"]
LENGTH = 32
Make = Callable[..., PreTrainedModel]


def packed(folder: Path, documents: list[str]) -> str:
    def item(number: int, text: str) -> Item:
        return Item(f"doc{number}", f"doc{number}", lambda: {"txt": text.encode()})

    pack([item(number, text) for number, text in enumerate(documents)], folder, name="x")
    return str(folder)


def story(kind: str, sentences: int = 12) -> str:
    """A document that has a word of its own."""
    return " ".join(f"{kind} {n} {kind} thing {n + 1}." for n in range(sentences))


@pytest.fixture
def held(tmp_path: Path) -> str:
    return packed(tmp_path / "held", [*map(story, KINDS[1:5]), "Warm.", "  "])


@pytest.fixture
def bank(tmp_path: Path) -> str:
    return packed(tmp_path / "bank", [story(kind, 20) for kind in KINDS[1:]])


@pytest.fixture
def run(tmp_path: Path, make_model: Make, tokenizer: PreTrainedTokenizerFast) -> Path:
    """With every head of texts; the generator is another network."""
    model, generator = make_model("bert"), make_model("bert", 7)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        masked = MaskedLanguageHead(generator.get_input_embeddings().weight)  # type: ignore[arg-type]
        made = {"next_sentence": PooledHead(16, 2), "sentence_order": PooledHead(16, 2), "judge": DiscriminatorHead(16)}
    kinds = {name: "replaced_token" if name == "judge" else name for name in made}
    heads = {name: Head(kinds[name], {"text": "text"}, dict(head.state_dict())) for name, head in made.items()}
    own = {name: value.detach() for name, value in masked.named_parameters() if name != "weight"}
    heads["mlm"] = Head("mlm", {"text": "generator"}, own)
    takes = TextInput(tokenizer, LENGTH)
    export_run(tmp_path, {"text": model, "generator": generator}, {"text": takes, "generator": takes}, heads, {})
    return tmp_path


def drawn(held: str, tokenizer: PreTrainedTokenizerFast, kind: str, each: int = 30) -> list[HeldOutPair]:
    drawing = Drawing(kind, TextInput(tokenizer, LENGTH), each, 0.1)
    return list(drawing.of(held, range(6), range(6), Unpaired()))


def test_pairs_are_of_the_held_out_documents_as_labels_say(held: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Each is the same again, whichever documents a rank has and however many are drawn; all places are drawn from."""
    texts = {f"doc{n}": split_sentences(story(kind)) for n, kind in enumerate(KINDS[1:5])}
    for kind in ("next_sentence", "sentence_order"):
        found = drawn(held, tokenizer, kind)
        assert len(found) == 4 * 11, "no more than there are places to cut at"
        for pair in found:
            own, others = texts[pair.document].text, [each.text for key, each in texts.items() if key != pair.document]
            first, second, label = pair.drawn.first, pair.drawn.second, pair.drawn.label
            if kind == "sentence_order":
                assert " ".join([second, first] if label else [first, second]) in own
            elif label:
                assert first in own and second not in own
                assert second == "Warm." or any(second in each for each in others)
            else:
                assert f"{first} {second}" in own
        labels = [pair.drawn.label for pair in found]
        assert 12 < sum(labels) < 32 and len({pair.drawn.first for pair in found}) > 20
        few = Drawing(kind, TextInput(tokenizer, LENGTH), 5, 0.1)
        again = [pair for part in ([3], [0, 1, 2]) for pair in few.of(held, part, range(6), Unpaired())]
        wanted = {key: [pair.drawn for pair in found if pair.document == key][:5] for key in texts}
        assert {key: [pair.drawn for pair in again if pair.document == key] for key in texts} == wanted


@pytest.mark.parametrize("kind", ["next_sentence", "sentence_order"])
def test_pairs_are_judged_as_transformers_own_head_does(
    kind: str, run: Path, held: str, bank: str, tokenizer: PreTrainedTokenizerFast, make_model: Make
) -> None:
    """And TF-IDF, with a threshold of the bank, tells documents of other words, not which of two passages is first."""
    section = PairsOfPassages(head=kind, bank=bank, queries=held, each=30, seeds=2, batch=7)
    card = score(run, {"mine": section}, seed=3)
    found = drawn(held, tokenizer, kind)
    labels = torch.tensor([pair.drawn.label for pair in found])
    model, head = make_model("bert").eval(), Head.read(run / "export" / "heads" / f"{kind}.safetensors").tensors
    theirs = BertForNextSentencePrediction(model.config).eval()
    theirs.bert.load_state_dict(model.state_dict())
    with torch.no_grad():
        theirs.bert.pooler.dense.weight.copy_(head["dense.weight"])
        theirs.bert.pooler.dense.bias.copy_(head["dense.bias"])
        theirs.cls.seq_relationship.weight.copy_(head["classifier.weight"])
        theirs.cls.seq_relationship.bias.copy_(head["classifier.bias"])
        inputs = {name: torch.tensor(np.stack([pair.inputs[name] for pair in found])) for name in found[0].inputs}
        logits = theirs(**inputs).logits
    right, loss = card["tasks"]["mine"], card["tasks"]["mine/loss"]
    assert right["trained"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert loss["trained"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    share = labels.float().mean().item()
    assert right["majority"] == pytest.approx(max(share, 1 - share)) and right["queries"] == len(found)
    assert loss["blind"] == pytest.approx(-share * np.log(share) - (1 - share) * np.log(1 - share))
    assert right["documents"] == 4 and len(right["seeds"]["random_net"]) == 2 and right["chance"] == 0.5
    best = right["raws"]["TF-IDF of tokens"]
    assert best > 0.85 if kind == "next_sentence" else best < 0.8, right["raws"]
    assert "2 documents have fewer than two sentences, and no pair" in " ".join(card["notes"])


def test_the_threshold_is_the_best_of_all(tokenizer: PreTrainedTokenizerFast) -> None:
    """By trying each, on numbers that tie; and cosines of pairs are those of the whole product."""
    rng = np.random.default_rng(0)
    for size in (1, 2, 9, 40):
        numbers, labels = rng.integers(6, size=size) / 4, rng.integers(2, size=size)
        tried = [Threshold(float(least), above) for least in (-np.inf, *numbers) for above in (True, False)]
        best = max(int((each.says(numbers) == labels).sum()) for each in tried)
        assert int((Threshold.of(numbers, labels).says(numbers) == labels).sum()) == best
    texts, team, store = [story(kind, 2) for kind in KINDS], Team(), Held()
    counts = counted(token_grams(tokenizer), texts, team, store)
    bags = Bags.of(counts, TfIdf.of(counts, team), team, store)
    (_, whole), = bags.pieces()
    assert torch.allclose(bags.beside(range(3), range(3, 6)), whole.cosines(whole)[range(3), range(3, 6)], atol=1e-6)


def test_detection_is_what_loops_find(
    run: Path, held: str, bank: str, tokenizer: PreTrainedTokenizerFast, make_model: Make
) -> None:
    section = Detection(head="judge", bank=bank, queries=held, ratio=0.3, seeds=2, batch=3)
    card = score(run, {"mine": section}, seed=3)
    model, generator, takes = make_model("bert").eval(), make_model("bert", 7).eval(), TextInput(tokenizer, LENGTH)
    masked = MaskedLanguageHead(generator.get_input_embeddings().weight)  # type: ignore[arg-type]
    masked.load_state_dict(Head.read(run / "export" / "heads" / "mlm.safetensors").tensors, strict=False)
    judge = DiscriminatorHead(16)
    judge.load_state_dict(Head.read(run / "export" / "heads" / "judge.safetensors").tensors)
    replacing, areas, nats, tokens, replaced = Replacing(generator, masked, tokenizer.mask_token_id), [], 0.0, 0, 0
    for number in range(5):
        logits, truth = list[float](), list[bool]()
        for part in hidden_pieces(held, [number], takes, 0.3, 1, Unasked()):
            shown = replacing.drawn(part, "cpu")
            assert torch.equal(shown[~part.hidden], part.ids[~part.hidden]) and part.hidden.any()
            assert not part.hidden[part.words < 0].any()
            with torch.no_grad():
                hidden = model(input_ids=shown, attention_mask=part.mask).last_hidden_state
                found = judge(hidden)[0]
            for at in range(LENGTH):
                if part.words[0, at] >= 0:
                    logits.append(found[at].item())
                    truth.append(bool(shown[0, at] != part.ids[0, at]))
        nats += sum(np.log1p(np.exp(-each if is_so else each)) for each, is_so in zip(logits, truth, strict=True))
        tokens, replaced = tokens + len(truth), replaced + sum(truth)
        ones, zeros = ([each for each, is_so in zip(logits, truth, strict=True) if is_so == kind] for kind in (1, 0))
        above = [(one > zero) + 0.5 * (one == zero) for one, zero in itertools.product(ones, zeros)]
        areas += [np.mean(above)] if above else []
    area, loss = card["tasks"]["mine"], card["tasks"]["mine/loss"]
    assert area["trained"] == pytest.approx(np.mean(areas)) and area["queries"] == len(areas) >= 4
    assert loss["trained"] == pytest.approx(nats / tokens, rel=1e-5) and loss["tokens"] == tokens > 300
    share = replaced / tokens
    assert loss["blind"] == pytest.approx(-share * np.log(share) - (1 - share) * np.log(1 - share))
    assert 0.2 < share < 0.35 and area["replaced"] == pytest.approx(share)
    assert area["raws"]["surprise of interpolated n-grams"] > 0.6
    assert "1 documents have no token to predict" in " ".join(card["notes"])


def test_what_is_hidden_and_drawn_does_not_depend_on_the_batch(
    held: str, tokenizer: PreTrainedTokenizerFast, make_model: Make
) -> None:
    generator, takes = make_model("bert").eval(), TextInput(tokenizer, LENGTH)
    head = MaskedLanguageHead(generator.get_input_embeddings().weight)  # type: ignore[arg-type]
    replacing = Replacing(generator, head, tokenizer.mask_token_id)

    def all_of(most: int) -> Iterator[torch.Tensor]:
        for part in hidden_pieces(held, range(6), takes, 0.3, most, Unasked()):
            yield torch.cat([part.ids, part.hidden.long(), replacing.drawn(part, "cpu")], 1)

    assert torch.equal(torch.cat(list(all_of(1))), torch.cat(list(all_of(4))))


@pytest.mark.parametrize(("section", "error"), [
    ({"head": "sentence_order", "queries": "one"},
     r"queries: value '.*one': it holds 1 sample; allowed: >= 2, of which one is drawn beside another"),
    ({"head": "next_sentence", "queries": "short"}, "queries: .*: none of 2 documents that were looked at has two "),
    ({"head": "mlm"}, r"head: value 'mlm'; allowed: next_sentence, sentence_order"),
])  # fmt: skip
def test_what_cannot_be_judged_is_refused_before_anything_is_trained(
    section: dict[str, Any], error: str, held: str, bank: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = {"one": [story("warm")], "short": ["Warm.", "Cool."]}
    name = section.get("queries")
    section = section | {"queries": held if name is None else packed(tmp_path / name, texts[name])}
    config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tower = Tower("text", BackboneConfig(type="bert", tokenizer="t", length=16, config=config), tokenizer)
    heads = {name: Head(name, {"text": "text"}, {}) for name in ("next_sentence", "sentence_order", "mlm")}
    pairs = PairsOfPassages(bank=bank, **section)
    with pytest.raises(ConfigError, match=rf"^evaluate\.mine\.{error}"):
        pairs.check(Checked("evaluate.mine", pairs, {"text": tower}, heads))


def on_ranks(run: Path, sections: dict[str, Evaluation]) -> Any:
    zero.start()
    return score(run, sections, seed=3)["tasks"]


@pytest.mark.distributed
def test_two_ranks_find_what_one_finds(run: Path, held: str, bank: str, ranks: Any) -> None:
    on = {"bank": bank, "queries": held, "seeds": 2, "batch": 3}
    sections = {
        "next": NextPassage(**on, asked=12, k=[1, 2]), "pairs": PairsOfPassages(head="next_sentence", each=9, **on),
        "told": Detection(head="judge", **on),
    }  # fmt: skip
    one = score(run, sections, seed=3)["tasks"]
    assert one.keys() == {"next", "next/recall@2", "pairs", "pairs/loss", "told", "told/loss"}

    def same(mine: Any, theirs: Any) -> None:
        if isinstance(mine, dict):
            assert mine.keys() == theirs.keys()
            for key in mine:
                same(mine[key], theirs[key])
        else:
            assert mine == (pytest.approx(theirs, rel=1e-5, abs=1e-6) if isinstance(mine, float | list) else theirs)

    for found in ranks(on_ranks, 2, run, sections):
        same({name: {key: value for key, value in row.items() if key != "sentence"} for name, row in one.items()},
             {name: {key: value for key, value in row.items() if key != "sentence"} for name, row in found.items()})
