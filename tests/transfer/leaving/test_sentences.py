"""sentence-transformers makes of texts the vectors that `bigssl embed` makes, shorter and longer than the context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, PreTrainedConfig, RobertaPreLayerNormConfig, RoFormerConfig

from bigssl.cli.main import main
from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex
from bigssl.data.tools.pack import pack
from bigssl.data.tools.sources.base import Item
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.leaving import export
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.leaving.parts import parts_of
from bigssl.transfer.leaving.to_sentence_transformers import to_sentence_transformers

DEMO = Path(export.__file__).parents[2] / "demo"
LENGTH = 24
TEXTS = ["We meet here tonight", "a", "The STATE of the union: strong!", "grüße, 你好 🙂",
         "the state of the union is strong, and the state of the world is not " * 9]  # fmt: skip
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
KINDS: dict[str, type[PreTrainedConfig]] = {  # those of the recipes bert (and others) and simcse
    "roformer": RoFormerConfig, "roberta-prelayernorm": RobertaPreLayerNormConfig,
}  # fmt: skip


def sample(number: int, text: str) -> Item:
    return Item(f"s{number}", f"s{number}", lambda: {"txt": text.encode()})


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_embed(kind: str, tmp_path: Path) -> None:
    words = load_tokenizer(DEMO / "tokenizer.json")
    known = {"vocab_size": len(words), "max_position_embeddings": 64, "pad_token_id": words.pad_token_id}
    config: Any = KINDS[kind](**known, **SIZES)
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    run = export_run(tmp_path, {"text": model}, {"text": TextInput(words, LENGTH)}, {}, {})
    pack([sample(number, text) for number, text in enumerate(TEXTS)], tmp_path / "shards", name="x")
    sizes = [len(words(text)["input_ids"]) for text in TEXTS]
    assert min(sizes) < 5 and max(sizes) > 2 * LENGTH
    samples = {"text": list(read_in_order(DatasetIndex.load(str(tmp_path / "shards"))))}
    (tmp_path / "left").mkdir()
    to_sentence_transformers(parts_of(run, {})["text"].load(run), tmp_path / "left", samples)
    assert main(["embed", str(run), str(tmp_path / "shards"), "--out", str(tmp_path / "ours.npz"), "--batch", "2"]) == 0
    ours = np.load(tmp_path / "ours.npz")
    assert list(ours["keys"]) == [f"s{number}" for number in range(len(TEXTS))]
    theirs = SentenceTransformer(str(tmp_path / "left"), device="cpu").encode(TEXTS, batch_size=3)
    largest = max(1.0, float(np.abs(ours["vectors"]).max()))
    assert np.abs(theirs - ours["vectors"]).max() < 1e-5 * largest and np.abs(theirs[0] - theirs[1]).max() > 0.1
