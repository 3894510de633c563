"""What reads one text and writes another does so in transformers' own class, as the trained network would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BartConfig, BartModel

from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.sample import Sample
from bigssl.nets.heads.base import Head
from bigssl.nets.heads.writing import BIAS
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.leaving import export
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.leaving.parts import LeavingPart, UnfitError, parts_of
from bigssl.transfer.leaving.to_sentence_transformers import to_sentence_transformers
from bigssl.transfer.leaving.to_transformers import to_transformers
from bigssl.transfer.leaving.writing import first_written

TOKENIZER = Path(export.__file__).parents[2] / "demo" / "tokenizer.json"
TEXTS = ["We meet here tonight", "the state of the union is strong, and the state of the world is not", "a"]
SAMPLES = [Sample(f"s{n}", {"txt": text.encode()}, n, 0, "x.tar", "s") for n, text in enumerate(TEXTS)]


@pytest.fixture
def part(tmp_path: Path) -> LeavingPart:
    """Of an export, with weights that make it write different tokens, and end some of its texts early."""
    words = load_tokenizer(TOKENIZER)
    torch.manual_seed(0)
    sep = words.sep_token_id
    model = BartModel(BartConfig(
        vocab_size=len(words), pad_token_id=words.pad_token_id, bos_token_id=words.cls_token_id, eos_token_id=sep,
        decoder_start_token_id=sep, forced_eos_token_id=sep, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
        max_position_embeddings=24, init_std=1.0,
    )).eval()  # fmt: skip
    bias = torch.randn(len(words)).index_fill(0, torch.tensor([sep]), 13.0)
    head = Head("writing", {"text": "text"}, {BIAS: bias})
    where = export_run(tmp_path, {"text": model}, {"text": TextInput(words, 24)}, {"denoise": head}, {})
    return parts_of(where, {"denoise": head})["text"].load(where)


def test_it_writes_what_the_trained_network_would(part: LeavingPart, tmp_path: Path) -> None:
    """Greedily, and every logit beside the text shown; features are those of what is read."""
    (claim,) = to_transformers(part, tmp_path / "left", {"text": SAMPLES})
    loaded: Any = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "left").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "left")
    given = tokenizer(TEXTS, truncation=True, padding=True, return_tensors="pt")
    ids, mask = given["input_ids"], given["attention_mask"]
    shown = torch.cat([torch.full_like(ids[:, :1], tokenizer.sep_token_id), ids[:, :-1]], 1)
    with torch.no_grad():
        logits = loaded(input_ids=ids, attention_mask=mask, decoder_input_ids=shown).logits[mask.bool()]
        read = loaded.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
    torch.testing.assert_close(torch.from_numpy(claim.outputs["token_logits"]), logits, rtol=1e-5, atol=1e-4)
    features = read.sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(part.only.features(SAMPLES), features, rtol=1e-5, atol=1e-5)
    made = loaded.generate(input_ids=ids, attention_mask=mask, max_new_tokens=13, do_sample=False, num_beams=1)[:, 1:]
    ours = first_written(part, ids, mask, 12)
    ended = (ours == tokenizer.pad_token_id).any(1)
    assert 0 < ended.sum() < len(TEXTS) and len(ours.unique()) == 4, "some end, and none says what another does"
    assert torch.equal(made[:, :12], ours)


def test_what_another_library_has_no_place_for_is_refused(part: LeavingPart, tmp_path: Path) -> None:
    with pytest.raises(UnfitError, match="the mean of what the decoder of a bart makes, not of what its encoder does"):
        to_sentence_transformers(part, tmp_path / "left", {"text": SAMPLES})
    part.tensors["dense.weight"] = torch.zeros(2)
    with pytest.raises(UnfitError, match="has no bart that writes texts by a head of final_logits_bias, dense.weight"):
        to_transformers(part, tmp_path / "left", {"text": SAMPLES})
