"""Masked words of held-out documents: numbers of loops over tokens, and a verdict that token frequencies cannot win."""

from __future__ import annotations

import io
import math
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bigssl.data.errors import DataError
from bigssl.data.shards.index import build_index
from bigssl.engine import zero
from bigssl.nets.embeddings.health import rankme
from bigssl.nets.heads.base import Head, MaskedLanguageHead
from bigssl.transfer.baselines import random_network
from bigssl.transfer.bench import Bench
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.matrix import Held
from bigssl.transfer.scorecard import format_table, score
from bigssl.transfer.scores import row_of
from bigssl.transfer.subjects import Exported, Subject
from bigssl.transfer.tasks.language import Language
from bigssl.transfer.team import Team
from bigssl.transfer.texts.documents import Document, Unasked, masked_documents
from bigssl.transfer.texts.lines import Lines, lines_of_bank, vocabulary_of

Make = Callable[..., PreTrainedModel]
LENGTH = 64  # max_position_embeddings of the fixture's network


def write(folder: Path, documents: list[str]) -> str:
    folder.mkdir()
    with tarfile.open(folder / "part-0.tar", "w") as tar:
        for number, text in enumerate(documents):
            info = tarfile.TarInfo(f"doc{number:03d}.txt")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    build_index([folder / "part-0.tar"], folder)
    return str(folder)


def story(seed: int, words: int = 150) -> str:
    draw = np.random.default_rng(seed)
    kinds = ["thing", "number", "warm", "cool", "red-ish", "green-ish"]
    return " ".join(draw.choice(kinds, size=words, p=[0.4, 0.25, 0.15, 0.1, 0.05, 0.05]))


@pytest.fixture
def settings(tmp_path: Path) -> Language:
    bank, queries = [story(n) for n in range(12)], [story(100 + n, 40 + 60 * n) for n in range(5)]
    return Language(bank=write(tmp_path / "bank", bank), queries=write(tmp_path / "queries", queries))


@pytest.fixture
def words(tokenizer: PreTrainedTokenizerFast) -> TextInput:
    return TextInput(tokenizer, LENGTH)


def head_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    head = MaskedLanguageHead(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    nn.init.normal_(head.bias)
    return {name: value.detach().clone() for name, value in head.named_parameters() if name != "weight"}


class Given(Exported):
    """A network and a head that were never exported."""

    def __init__(self, subject: Subject, head: dict[str, torch.Tensor]) -> None:
        super().__init__(Path("unused"), 3, {})
        self._loaded, self._head = {"text": subject}, head

    def head(self, name: str) -> Head:
        return Head("mlm", {"text": "text"}, self._head)


def bench_of(model: PreTrainedModel, words: TextInput, head: dict[str, torch.Tensor], batch: int = 4) -> Bench:
    models = {"trained": model, "random_net": random_network(model.config, 0)}
    team = Team()
    return Bench(team, Held(), Given(Subject("text", models, words), head), "cpu", seed=3,
                 where="evaluate.words", batch=batch)  # fmt: skip


def row(model: PreTrainedModel, words: TextInput, head: dict[str, torch.Tensor], settings: Language, batch: int = 4
        ) -> dict[str, Any]:
    (found,) = settings.run(bench_of(model, words, head, batch))
    return row_of(found)


def lines_of(bench: Bench, settings: Language) -> Lines:
    subject = bench.subject("text")
    return lines_of_bank(bench, settings.bank, None, subject.takes.tokenizer, vocabulary_of(subject), around=True)


def documents_of(words: TextInput, settings: Language, seed: int) -> list[Document]:
    return list(masked_documents(settings.queries, range(5), words, seed, Unasked()))


def test_numbers_are_those_of_loops(
    make_model: Make, words: TextInput, tokenizer: PreTrainedTokenizerFast, settings: Language
) -> None:
    model = make_model("bert").eval()
    head = head_of(model)
    found = row(model, words, head, settings)
    counts: dict[int, int] = {}
    for n in range(12):
        for token in tokenizer(story(n), add_special_tokens=False)["input_ids"]:
            counts[token] = counts.get(token, 0) + 1
    seen, kinds = sum(counts.values()), len(counts) + 1
    trained = blind = tokens = 0.0
    features = []
    for document in documents_of(words, settings, 3):
        for ids, labels, mask in zip(document.ids, document.labels, document.mask, strict=True):
            with torch.no_grad():
                hidden = model(input_ids=ids[None], attention_mask=mask[None]).last_hidden_state[0].double()
            features.append(hidden[mask.bool()].mean(0))
            for position in (labels != -100).nonzero().flatten().tolist():
                assert mask[position] == 1
                token = int(labels[position])
                inner = torch.nn.functional.gelu(head["dense.weight"].double() @ hidden[position]
                                                 + head["dense.bias"].double())
                inner = torch.nn.functional.layer_norm(inner, inner.shape, head["norm.weight"].double(),
                                                       head["norm.bias"].double(), 1e-12)
                logits = model.get_input_embeddings().weight.double() @ inner + head["bias"].double()
                trained -= torch.log_softmax(logits, 0)[token].item()
                blind -= math.log((counts.get(token, 0) + kinds / model.config.vocab_size) / (seen + kinds))
                tokens += 1
    settings.run(bench := bench_of(model, words, head))
    health, held = bench.checkup.health["text"], torch.stack(features)
    assert health["trained"]["rankme"] == pytest.approx(rankme(held), rel=1e-4) and "random_net" in health
    assert health["trained"]["samples"] == len(held)
    assert found["tokens"] == tokens > 50 and found["documents"] == 5
    assert found["trained"] == pytest.approx(trained / tokens, rel=1e-5)
    assert found["blind"] == pytest.approx(blind / tokens, rel=1e-5)
    assert found["gains"]["blind"]["difference"] == pytest.approx((blind - trained) / tokens, abs=1e-4)


def test_n_grams_are_those_of_loops_over_what_the_network_sees(
    make_model: Make, words: TextInput, tokenizer: PreTrainedTokenizerFast, settings: Language
) -> None:
    """The neighbours of a masked token as they stand in the corrupted text: masked, replaced or kept."""
    model = make_model("bert").eval()
    found = row(model, words, head := head_of(model), settings)
    bench = bench_of(model, words, head)
    lines = lines_of(bench, settings)
    bank = [tokenizer(story(n), add_special_tokens=False)["input_ids"] for n in range(12)]
    counts = [followers(level.context, bank) for level in lines.grams.contexts]
    surprise, tokens = 0.0, 0
    for document in documents_of(words, settings, 3):
        for ids, labels, mask in zip(document.ids, document.labels, document.mask, strict=True):
            shown = ids[: int(mask.sum())].tolist()
            for place in (labels != -100).nonzero().flatten().tolist():
                likely = float(lines.grams.base[(token := int(labels[place]))])
                for level, known in zip(lines.grams.contexts, counts, strict=True):
                    if seen := known.get(around(level.context, shown, place)):
                        bucket = min(len(level.weights) - 1, int(2 * math.log2(seen.total() / len(seen))))
                        weight = level.weights[bucket]
                        likely = (1 - weight) * likely + weight * seen[token] / seen.total()
                surprise, tokens = surprise - math.log(likely), tokens + 1
    assert found["raws"]["interpolated n-grams"] == pytest.approx(surprise / tokens, rel=1e-6)


def around(context: Sequence[int], ids: list[int], place: int) -> tuple[int, ...]:
    """The neighbours; none where one lies outside."""
    places = [place + step for step in context]
    return tuple(ids[at] for at in places) if min(places) >= 0 and max(places) < len(ids) else ()


def followers(context: Sequence[int], bank: list[list[int]]) -> dict[tuple[int, ...], Counter[int]]:
    """How often each token stands in each context."""
    found: dict[tuple[int, ...], Counter[int]] = {}
    for ids in bank:
        for place, token in enumerate(ids):
            if asked := around(context, ids, place):
                found.setdefault(asked, Counter())[token] += 1
    return found


def test_the_same_tokens_are_masked_again_and_the_batch_does_not_matter(
    make_model: Make, words: TextInput, settings: Language
) -> None:
    model = make_model("bert").eval()
    first, second = (row(model, words, head_of(model), settings, batch=batch) for batch in (4, 7))
    assert first["trained"] == pytest.approx(second["trained"], rel=1e-6) and first["tokens"] == second["tokens"]


def test_every_piece_of_a_document_is_asked(tokenizer: PreTrainedTokenizerFast, settings: Language) -> None:
    """Of about 15 %, and never a special token or padding."""
    documents = documents_of(TextInput(tokenizer, LENGTH), settings, 0)
    tokens = sum(int(document.mask.sum()) - 2 * len(document.mask) for document in documents)
    assert tokens == sum(len(tokenizer(story(100 + n, 40 + 60 * n), add_special_tokens=False)["input_ids"])
                         for n in range(5))  # fmt: skip
    asked = sum(int((document.labels != -100).sum()) for document in documents)
    assert asked / tokens == pytest.approx(0.15, abs=0.04)


def test_a_network_that_knows_frequencies_alone_does_not_pass(
    make_model: Make, words: TextInput, tokenizer: PreTrainedTokenizerFast, settings: Language
) -> None:
    model = make_model("bert").eval()
    head = {name: torch.zeros_like(value) for name, value in head_of(model).items()}
    bench = bench_of(model, words, head)
    head["bias"] = -lines_of(bench, settings).surprise
    found = row(model, words, head, settings)
    assert found["trained"] == pytest.approx(found["blind"], rel=1e-5)
    assert found["gains"]["blind"]["stderr"] < 1e-5 and "token frequencies" in found["verdict"]
    assert found["verdict"] != "better than all"
    assert found["gains"]["random_net"]["difference"] > 1


def test_the_scorecard_has_the_row(
    tmp_path: Path, make_model: Make, tokenizer: PreTrainedTokenizerFast, settings: Language
) -> None:
    model = make_model("bert")
    head = Head("mlm", {"text": "text"}, head_of(model))
    export_run(tmp_path, {"text": model}, {"text": TextInput(tokenizer, LENGTH)}, {"mlm": head}, {})
    card = score(tmp_path, {"words": settings}, seed=3)
    task = card["tasks"]["words"]
    assert card["verdicts"] == {"words": task["passed"]} and (task["unit"], task["higher_is_better"]) == ("nats", False)
    (line,) = [line for line in format_table(card).splitlines() if line.startswith(task["title"])]
    assert f"{task['trained']:.2f} nats" in line and f"{task['blind']:.2f}" in line and line.endswith(task["verdict"])
    wrong = settings.model_copy(update={"head": "nothing"})
    with pytest.raises(DataError, match=r"nothing.safetensors; there is: mlm.safetensors"):
        score(tmp_path, {"words": wrong}, seed=3)


def test_another_head_is_refused(make_model: Make, words: TextInput, settings: Language) -> None:
    with pytest.raises(DataError, match="evaluate.words.head: not of masked language modelling"):
        row(make_model("bert"), words, {"image_projection": torch.zeros(2, 2)}, settings)
    other = head_of(make_model("bert", hidden_size=32))
    with pytest.raises(DataError, match=r"evaluate.words.head: of another backbone: it has bias \[\d+\], "):
        row(make_model("bert"), words, other, settings)


def on_ranks(model: PreTrainedModel, words: TextInput, head: dict[str, torch.Tensor], settings: Language) -> Any:
    zero.start()
    return row(model, words, head, settings)


@pytest.mark.distributed
def test_three_ranks_find_what_one_finds(
    make_model: Make, words: TextInput, settings: Language, ranks: Any
) -> None:
    model = make_model("bert").eval()
    one = row(model, words, head_of(model), settings)
    for found in ranks(on_ranks, 3, model, words, head_of(model), settings):
        assert found == one
