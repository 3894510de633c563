"""Documents that are empty, of one sentence, of one word, too long, or of characters that the vocabulary has not: each
task of texts counts them or says why it cannot use them, and learns from the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import contract_runs as runs
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from bigssl.config.errors import ConfigError
from bigssl.data.errors import DataError
from bigssl.data.loading.collate import Ragged, collate
from bigssl.data.loading.loader import SEEDS
from bigssl.data.order.order import as_it_is
from bigssl.data.sample import Sample
from bigssl.nets.progress import Progress
from bigssl.objectives.base import discover

TOKENIZER = str(runs.DEMO / "tokenizer.json")
AT, TWO = Progress(10, 100), "A line of text. And another one."
TEXTS = {
    "empty": "", "blank": " \n\t ", "word": "union", "sentence": "The state of the union is strong.",
    "unknown": "鿿 鿾鿽.  鿼 ⸘⸘ 鿻!", "special": "[CLS] [SEP] [MASK]. [PAD] [MASK].",
    "control": "a \x00 b\u200b\ufeff. c \x07 \x1b d.", "long": "A sentence of six words stands here. " * 300,
    "endless": "x" * 5_000 + ". y",
}  # fmt: skip
EMPTY, ALONE = {"empty", "blank"}, {"empty", "blank", "word", "sentence"}
TASKS: dict[str, tuple[str, dict[str, Any], set[str]]] = {  # by name: task, settings, what it cannot use
    "mlm": ("mlm", {}, set()), "packed": ("mlm", {"packing": True}, set()),
    "substituted": ("mlm", {"substitute": "unigram", "masking": "word"}, set()),
    "causal_lm": ("causal_lm", {"longest": 1 << 18}, set()), "replaced_token": ("replaced_token", {}, set()),
    "denoise": ("denoise", {}, set()), "simcse": ("simcse", {}, EMPTY), "next_sentence": ("next_sentence", {}, ALONE),
    "sentence_order": ("sentence_order", {}, ALONE),
}  # fmt: skip
COUNTED = {"mlm": "unmaskable", "packed": "unmaskable", "replaced_token": "unmaskable", "causal_lm": "empty",
           "denoise": "empty"}  # fmt: skip


def sample(text: str, name: str = "s") -> Sample:
    return Sample(name, {"txt": text.encode()}, 0, 0, "x.tar", "emoji")


def more(rng: np.random.Generator, use: Any = as_it_is) -> Any:
    return use(sample(TWO))


def tokens_of(prepared: Any) -> list[np.ndarray]:
    if isinstance(prepared, dict):
        found = [prepared["input_ids"]] if "input_ids" in prepared else []
        return found + [each for value in prepared.values() if isinstance(value, dict) for each in tokens_of(value)]
    return []


@pytest.mark.parametrize("case", TASKS)
def test_bad_texts_are_counted_or_refused_and_the_rest_is_learnt_from(case: str, objective: Any) -> None:
    name, settings, unusable = TASKS[case]
    task = objective(discover()[name], name, **settings)
    prepared, refused = dict[str, Any](), dict[str, str]()
    for number, (key, text) in enumerate(TEXTS.items()):
        try:
            prepared[key] = task.prepare(sample(text), np.random.default_rng(number), more)
        except DataError as error:
            refused[key] = str(error)
    assert refused.keys() == unusable, refused
    assert all("document" in why for why in refused.values())
    for key, each in prepared.items():
        for ids in tokens_of(each):
            values = ids.values if isinstance(ids, Ragged) else ids
            assert values.min(initial=0) >= 0 and values.max(initial=0) < task.backbone.vocabulary, key
            assert isinstance(ids, Ragged) or len(values) == task.backbone.length
    rows = [*prepared.values(), task.prepare(sample(TWO), np.random.default_rng(0), more)]
    losses = task(task.assemble({"emoji": collate(rows) | {SEEDS: torch.arange(len(rows))}}), AT)
    losses.total.backward()
    assert losses.total.isfinite() and losses.total > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.parameters())
    if counted := COUNTED.get(case):
        assert losses.stats[counted] > 0


def test_a_folder_of_another_vocabulary_is_refused(objective: Any, tmp_path: Path) -> None:
    """Each of its tokens would be another one, or lie behind the end of the table."""
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=100, **small)).save_pretrained(tmp_path)
    body = {"type": "bert", "tokenizer": TOKENIZER, "length": 16, "init_from": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"^backbones\.body\.tokenizer: .* has 100 rows of tokens; allowed: >= 8192"):
        objective(discover()["mlm"], "mlm", beside={"body": body}, backbone="body")
