"""A decoder on an encoder: learnt weights stay, what is asked for is learnt; what cannot be is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bigssl.data.errors import DataError
from bigssl.data.sample import Sample
from bigssl.transfer.bench import Bench
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.labelled.trials import Trial
from bigssl.transfer.matrix import Held
from bigssl.transfer.subjects import Exported, Subject
from bigssl.transfer.tasks.seq2seq import Seq2Seq
from bigssl.transfer.team import Team
from bigssl.transfer.texts.pairs import Pair, Translating, read_pair

PAIRS = [Pair("warm", "cool number"), Pair("number thing thing", "warm thing")]


def translating(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Translating:
    settings = {"length": 8, "layers": 1, "beams": 1} | changes
    subject = Subject("text", {"trained": model}, TextInput(tokenizer, 16))
    return Translating(subject, PAIRS, [each.source for each in PAIRS], **settings)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_encoder_keeps_its_weights_and_the_decoder_begins_with_its_embeddings(
    kind: str, make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_model(kind)
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    both = translating(model, tokenizer)._with_decoder(model, 3)
    assert all(torch.equal(value, before[name]) for name, value in both.encoder.state_dict().items())
    assert torch.equal(both.decoder.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert torch.equal(torch.get_rng_state(), generator)
    again = translating(model, tokenizer)._with_decoder(model, 3).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in both.state_dict().items())


@pytest.mark.parametrize("kind", ["bert", "bart"])
def test_two_pairs_are_learnt_by_heart(
    kind: str, make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    """The answer depends on the source alone: a decoder that does not look there is wrong once. Of a network that has
    one, its encoder gets another."""
    job = translating(make_model(kind), tokenizer, beams=2)
    bench = Bench(Team(), Held(), Exported(Path("unused"), 0, {}), "cpu", where="evaluate.pairs")
    settings = Seq2Seq(train="unused", queries="unused", epochs=80, lr=1e-2, backbone_lr=1e-2)
    everything = Trial("trained", 1.0, 0, torch.arange(2))
    assert job.by_network(bench, settings, everything) == [each.target for each in PAIRS]
    assert job.given_back(["Warm thing cool"]) == ["warm thing cool"]


def read(meta: dict[str, Any], text: str = "a", source: str | None = None) -> Pair:
    fields = {"json": json.dumps(meta).encode(), "txt": text.encode()}
    return read_pair(Sample("s", fields, 0, 0, "x.tar", "t"), source, "target")


def test_pairs_are_read() -> None:
    assert read({"target": "b"}) == ("a", "b") and read({"target": "b", "long": "c"}, source="long") == ("c", "b")


@pytest.mark.parametrize("meta, text, source, message", [
    ({"target": " "}, "a", None, "target is empty; leave such samples out"),
    ({"target": "b"}, "", None, "txt is empty; leave such samples out"),
    ({"other": "b"}, "a", None, "no field 'target' in its json; it has other"),
    ({"target": 3}, "a", None, "target is int 3; allowed: a text"),
    ({"target": "b"}, "a", "source", "no field 'source'"),
])  # fmt: skip
def test_what_is_no_pair_is_refused(meta: dict[str, Any], text: str, source: str | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(meta, text, source)


def test_a_tokenizer_without_ends_is_refused(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    other = copy.deepcopy(tokenizer)
    other.sep_token = other.eos_token = None
    with pytest.raises(DataError, match="no token for the begin .* and the end .* of a text; a decoder needs them"):
        translating(make_model("bert"), other)
