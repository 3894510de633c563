"""Encoder-decoder networks: held-out texts written from what the noise of BART left of them, in numbers of loops."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, BartModel, PreTrainedTokenizerFast
from written import shards_of

from bigssl.nets.heads.base import Head
from bigssl.nets.heads.writing import BIAS
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.scorecard import score
from bigssl.transfer.tasks.language import Language
from bigssl.transfer.texts.documents import Unasked, noisy_documents

LENGTH = 16
WORDS = ["thing", "number", "warm.", "cool", "red-ish"]
TEXTS = [" ".join((WORDS * 13)[n % 5 : n % 5 + n]) for n in (0, 1, 9, 14, 40, 63)]


def test_every_token_is_asked_once_from_a_text_with_noise(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    words, left = TextInput(tokenizer, LENGTH), Unasked()
    url = shards_of(tmp_path / "documents", [{"txt": text.encode()} for text in TEXTS])
    found = {each.key: each for each in noisy_documents(url, range(len(TEXTS)), words, 3, left)}
    assert left.empty == ["s000"] and len(found) == len(TEXTS) - 1
    hidden = 0
    for number, text in enumerate(TEXTS[1:], 1):
        document, ids = found[f"s{number:03d}"], tokenizer(text, add_special_tokens=False)["input_ids"]
        assert document.labels[document.labels != -100].tolist() == ids
        assert (document.labels[:, 0] == -100).all() and document.ids.shape == (math.ceil(len(ids) / 14), LENGTH)
        for source, mask, labels in zip(document.ids, document.mask, document.labels, strict=True):
            seen = Counter(source[mask.bool()].tolist()[1:-1])
            hidden += seen.pop(tokenizer.mask_token_id, 0)
            assert seen <= Counter(labels.tolist())
    again = {each.key: each for each in noisy_documents(url, [5, 2], words, 3, left)}
    assert hidden > 5 and all(torch.equal(found[key].ids, each.ids) for key, each in again.items())


def test_the_scorecard_has_the_loss_of_transformers_class(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Of the tokens alone, [CLS] and [SEP] apart; n-grams see what was written before."""
    sep = tokenizer.sep_token_id
    config = BartConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.cls_token_id,
        eos_token_id=sep, decoder_start_token_id=sep, d_model=16, encoder_layers=1, decoder_layers=1, init_std=0.5,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
        max_position_embeddings=LENGTH,
    )  # fmt: skip
    torch.manual_seed(0)
    model, bias = BartModel(config).eval(), torch.randn(len(tokenizer))
    words, head = TextInput(tokenizer, LENGTH), Head("writing", {"text": "text"}, {BIAS: bias})
    export_run(tmp_path, {"text": model}, {"text": words}, {"denoise": head}, {})
    url = shards_of(tmp_path / "documents", [{"txt": text.encode()} for text in TEXTS])
    found = score(tmp_path, {"words": Language(bank=url, queries=url)}, seed=3)["tasks"]["words"]
    theirs = BartForConditionalGeneration(config).eval()
    theirs.model.load_state_dict(model.state_dict())
    theirs.final_logits_bias.copy_(bias)
    total = tokens = 0.0
    for document in noisy_documents(url, range(len(TEXTS)), words, 3, Unasked()):
        for source, mask, labels in zip(document.ids, document.mask, document.labels, strict=True):
            asked = labels[labels != -100]
            shown = torch.tensor([[sep, tokenizer.cls_token_id, *asked.tolist()[:-1]]])
            with torch.no_grad():
                logits = theirs(source[mask.bool()][None], decoder_input_ids=shown).logits[0, 1:]
            total += torch.nn.functional.cross_entropy(logits, asked, reduction="sum").item()
            tokens += len(asked)
    assert found["tokens"] == tokens and found["trained"] == pytest.approx(total / tokens, rel=1e-5)
    assert found["random_net"] != found["trained"] and found["title"].startswith("written words")
    assert found["raws"]["interpolated n-grams"] < found["blind"], "the five words follow each other in one order"
