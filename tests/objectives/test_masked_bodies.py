"""Masked language modelling over each kind of body, beside the class that transformers has for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, AutoModelForMaskedLM

from bigssl.data.kinds.masking import IGNORE
from bigssl.data.loading.collate import collate
from bigssl.data.loading.loader import SEEDS
from bigssl.data.sample import Sample
from bigssl.nets.packed import PACKABLE
from bigssl.nets.progress import Progress
from bigssl.objectives.base import exported_heads
from bigssl.objectives.mlm import Mlm
from bigssl.transfer.inputs import input_of
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.leaving.masked import masked_language_model
from bigssl.transfer.leaving.parts import parts_of

AT, LENGTH = Progress(0, 100), 12
TEXTS = ["a b c d e", "f", "b a d c f e a b c d", "c a", "e e f"]
HUGGING = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
           "max_position_embeddings": LENGTH}  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    "bert": HUGGING,
    "roberta": HUGGING | {"max_position_embeddings": LENGTH + 2},  # counted from behind the padding's number, 1
    "modernbert": HUGGING | {"local_attention": 4, "layer_types": ["full_attention", "sliding_attention"]},
    "albert": HUGGING | {"embedding_size": 8, "num_hidden_groups": 1},
    "electra": HUGGING | {"embedding_size": 8},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": LENGTH},
    "roformer": HUGGING | {"embedding_size": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """RoBERTa's special tokens, of RoBERTa's numbers: none has that of BERT."""
    known = ["<s>", "<pad>", "</s>", "<unk>", *"abcdef", "<mask>"]
    made = Tokenizer(models.WordLevel({token: n for n, token in enumerate(known)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    made.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(file))
    return str(file)


def body(kind: str, tokenizer: str) -> dict[str, Any]:
    """A section without dropout."""
    known = CONFIG_MAPPING[kind]().to_dict()
    rates = {name: 0.0 for name, value in known.items() if "dropout" in name and isinstance(value, float)}
    return {"type": kind, "tokenizer": tokenizer, "length": LENGTH, "config": rates | BODIES[kind]}


def made(objective: Any, kind: str, tokenizer: str, **changes: Any) -> Mlm:
    """With every weight away from its default."""
    task: Mlm = objective(Mlm, "mlm", beside={"body": body(kind, tokenizer)}, backbone="body", ratio=0.4, **changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return task


def alone(*_: Any) -> Any:
    raise AssertionError("this task asks for no other sample")


def batch_of(task: Mlm) -> dict[str, Any]:
    samples = [Sample(f"s{n}", {"txt": text.encode()}, n, 0, "x.tar", "emoji") for n, text in enumerate(TEXTS)]
    rows = [task.prepare(sample, np.random.default_rng(n), alone) for n, sample in enumerate(samples)]
    return task.assemble({"emoji": collate(rows) | {SEEDS: torch.arange(len(rows))}})


@pytest.mark.parametrize("kind", BODIES)
def test_loss_and_logits_are_those_of_the_class_of_transformers(
    kind: str, objective: Any, tokenizer: str, tmp_path: Path
) -> None:
    ours = made(objective, kind, tokenizer)
    heads = exported_heads(ours)
    left = export_run(tmp_path, {"body": ours.backbone.model}, {"body": input_of(ours.backbone)}, heads, {})
    masked_language_model(parts_of(left, heads)["body"].load(left)).save_pretrained(tmp_path / "theirs")
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "theirs").train()
    assert type(theirs) is MODEL_FOR_MASKED_LM_MAPPING[type(ours.backbone.model.config)]
    batch = batch_of(ours)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    expected = theirs(**inputs, labels=batch["labels"])
    torch.testing.assert_close(ours(batch, AT).total, expected.loss, rtol=1e-5, atol=1e-5)
    seen = inputs["attention_mask"] > 0
    torch.testing.assert_close(ours.head.logits(ours.hidden(batch))[seen], expected.logits[seen], rtol=1e-4, atol=1e-5)
    if kind not in PACKABLE:
        return
    packed = made(objective, kind, tokenizer, packing=True)
    rows = batch_of(packed)
    assert len(rows["input_ids"]) < len(TEXTS)
    total = torch.zeros(())
    for row, segments in enumerate(rows["segments"]):
        for number in range(1, int(segments.max()) + 1):  # a text at a time, with positions of its own class
            ids, labels = (rows[name][row][segments == number][None] for name in ("input_ids", "labels"))
            total = total + theirs(input_ids=ids, labels=labels).loss * (labels != IGNORE).sum()
    torch.testing.assert_close(packed(rows, AT).total, total / rows["labelled"], rtol=1e-5, atol=1e-5)
