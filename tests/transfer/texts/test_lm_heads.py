"""Decoder-only networks: their own heads, every token asked once, and numbers of transformers' classes."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast
from written import shards_of

from bigssl.data.errors import DataError
from bigssl.data.kinds.text import encode
from bigssl.nets.heads.base import Head
from bigssl.nets.modality.kinds import CAUSAL
from bigssl.transfer.baselines import random_network
from bigssl.transfer.bench import Bench
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.matrix import Held
from bigssl.transfer.scorecard import score
from bigssl.transfer.subjects import Exported, Subject
from bigssl.transfer.tasks.language import Language
from bigssl.transfer.team import Team
from bigssl.transfer.texts.documents import Unasked, following_documents
from bigssl.transfer.texts.lm_heads import causal_heads

LENGTH = 16
SMALL = {
    "vocab_size": 96, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": LENGTH, "head_dim": 8, "num_key_value_heads": 2, "n_embd": 16, "n_layer": 1, "n_head": 2,
    "n_positions": LENGTH, "ffn_dim": 32, "word_embed_proj_dim": 16, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


def whole(kind: str, folder: Path, **changes: Any) -> Any:
    """A network with its head as transformers' class saves it, all away from its defaults."""
    known = CONFIG_MAPPING[kind]().to_dict()
    config = CONFIG_MAPPING[kind](**{name: value for name, value in (SMALL | changes).items() if name in known})
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn(value.shape))
    model.save_pretrained(folder)
    return model


def bench_of(folder: Path, subject: Subject) -> Bench:
    return Bench(Team(), Held(), Exported(folder, 3, {}), "cpu", seed=3, where="evaluate.words", batch=4)


@pytest.mark.parametrize("kind", CAUSAL)
def test_the_head_is_that_of_the_class(kind: str, tmp_path: Path) -> None:
    changes = {"logits_scaling": 3.0} if kind == "granite" else {}
    model = whole(kind, tmp_path / "text", **changes)
    bare = AutoModel.from_pretrained(tmp_path / "text").eval()
    subject = Subject("text", {"trained": bare, "random_net": random_network(bare.config, 0)}, None, 16)  # type: ignore
    heads = causal_heads(bench_of(tmp_path, subject), subject)
    ids = torch.randint(3, 96, (2, LENGTH))
    labels = ids.masked_fill(torch.rand(ids.shape) < 0.3, -100)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1]
        wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        found = heads["trained"](bare(input_ids=ids).last_hidden_state, labels)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert torch.isfinite(heads["random_net"](torch.randn(2, LENGTH, 16), labels))


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_head_that_was_exported_with_a_network_is_its_head(softcap: float | None, tmp_path: Path) -> None:
    """Of another network it is not, and of a tied one it may be the embedding."""
    whole("llama", tmp_path / "text")
    bare = AutoModel.from_pretrained(tmp_path / "text").eval()
    subject = Subject("text", {"trained": bare}, None, 16)  # type: ignore
    settings = {} if softcap is None else {"softcap": softcap}
    own, other = torch.randn(96, 16), torch.randn(96, 16)
    hidden, labels = torch.randn(2, LENGTH, 16), torch.randint(3, 96, (2, LENGTH))
    for weight in (own, None):
        tensors = {} if weight is None else {"weight": weight}
        Head("causal", {"text": "else"}, {"weight": other}).write(tmp_path / "heads" / "a.safetensors")
        Head("causal", {"text": "text"}, tensors, settings).write(tmp_path / "heads" / "b.safetensors")
        found = causal_heads(bench_of(tmp_path, subject), subject)["trained"](hidden, labels)
        rows = bare.get_input_embeddings().weight.detach() if weight is None else weight
        logits = hidden[:, :-1] @ rows.T
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_bare_network_whose_head_is_not_its_embedding_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    whole("gpt_neox", tmp_path / "full", vocab_size=len(tokenizer))
    AutoModel.from_pretrained(tmp_path / "full").save_pretrained(tmp_path / "export" / "text")
    TextInput(tokenizer, LENGTH).write(tmp_path / "export" / "text")
    shards = documents(tmp_path, ["a thing"] * 2)
    with pytest.raises(DataError, match="evaluate.words.backbone: this gpt_neox has no head of next tokens"):
        score(tmp_path, {"words": Language(bank=shards, queries=shards)}, seed=0)


def documents(folder: Path, texts: list[str]) -> str:
    return shards_of(folder / "documents", [{"txt": text.encode()} for text in texts])


@pytest.mark.parametrize("framed", [True, False])
def test_every_token_is_asked_once(framed: bool, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    words = TextInput(tokenizer if framed else unframed(tokenizer), LENGTH)
    kinds = ["thing", "number", "warm", "cool", "red-ish"]
    texts = [" ".join((kinds * 13)[:n]) for n in (0, 1, 5, 14, 15, 16, 17, 40, 63)]
    shards, left = documents(tmp_path, texts), Unasked()
    found = {each.key: each for each in following_documents(shards, range(len(texts)), words, left)}
    assert len(left.empty) == (1 if framed else 2) and len(found) == len(texts) - len(left.empty)
    for key, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        document = found.get(f"s{key:03d}")
        asked = [] if document is None else document.labels[document.labels != -100].tolist()
        assert asked == (ids if framed else ids[1:])
        for number, row in enumerate([] if document is None else document.labels):
            assert int((row != -100).nonzero()[0]) >= (LENGTH // 2 if number else 1), "what stands before it is seen"


def unframed(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.post_processor = processors.Sequence([])
    return other


def test_a_decoder_is_judged_by_each_next_token(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = whole("gpt2", tmp_path / "export" / "text", vocab_size=len(tokenizer))
    words = TextInput(tokenizer, LENGTH)
    words.write(tmp_path / "export" / "text")
    texts = ["thing number warm", "a warm thing", "number number"]
    shards = documents(tmp_path, texts)
    row = score(tmp_path, {"words": Language(bank=shards, queries=shards)}, seed=0)["tasks"]["words"]
    total = count = 0.0
    for text in texts:
        ids, mask = (torch.from_numpy(each)[None] for each in encode(tokenizer, text, LENGTH))
        size = int(mask.sum()) - 1  # without [SEP]
        with torch.no_grad():
            likely = model(input_ids=ids[:, :size]).logits.log_softmax(-1)[0]
        total -= sum(likely[at, ids[0, at + 1]].item() for at in range(size - 1))
        count += size - 1
    assert (row["trained"], row["tokens"]) == (pytest.approx(total / count, rel=1e-5), count)
    assert row["perplexity"]["trained"] == pytest.approx(math.exp(row["trained"]))
    assert row["title"].startswith("next words") and f"perplexity {math.exp(row['trained']):.4g}" in row["sentence"]
    assert row["raw_name"] == "interpolated n-grams" and row["raw"] < row["blind"]  # the bank is asked
    assert row["verdict"].startswith("not better than") and "interpolated n-grams" in row["verdict"]
