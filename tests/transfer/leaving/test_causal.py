"""What predicts next tokens goes on with a prompt in transformers' own pipeline, as the trained network would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, pipeline

from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.kinds.vocabularies.training import KINDS, train_tokenizer
from bigssl.data.sample import Sample
from bigssl.nets.heads.base import Head
from bigssl.transfer.inputs import TextInput
from bigssl.transfer.leaving import export
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.leaving.parts import UnfitError, parts_of
from bigssl.transfer.leaving.to_transformers import to_transformers

DEMO = Path(export.__file__).parents[2] / "demo"
LENGTH = 24
TEXTS = ["We meet here tonight", "the state of the union is strong, and the state of the world is not"]


def tokenizer_of(name: str, folder: Path) -> Any:
    if name in KINDS:
        train_tokenizer(TEXTS, 300, folder / "tokenizer.json", name)
        return load_tokenizer(folder / "tokenizer.json")
    return load_tokenizer(DEMO / "tokenizer.json")


def config_of(kind: str, words: Any) -> Any:
    ids = {"vocab_size": len(words), "pad_token_id": words.pad_token_id, "bos_token_id": words.cls_token_id,
           "eos_token_id": words.sep_token_id}  # fmt: skip
    if kind == "gpt2":
        return GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, cls_token_id=None, **ids)
    return LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                       num_key_value_heads=1, max_position_embeddings=32, **ids)  # fmt: skip


@pytest.fixture(params=[("gpt2", "words"), ("gpt2", "bpe"), ("llama", "unigram"), ("llama", "characters")],
                ids="-".join)  # fmt: skip
def exported(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Head, Any, Path]:
    """A network, its head, its tokenizer and their export."""
    kind, vocabulary = request.param
    words = tokenizer_of(vocabulary, tmp_path)
    torch.manual_seed(0)
    model: Any = AutoModel.from_config(config_of(kind, words)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    tensors = {} if kind == "gpt2" else {"weight": torch.randn(len(words), 16)}
    head = Head("causal", {"text": "text"}, tensors)
    takes = {"text": TextInput(words, LENGTH)}
    return model, head, words, export_run(tmp_path, {"text": model}, takes, {"next": head}, {})


def left(export: Path, head: Head, folder: Path) -> Path:
    folder.mkdir()
    samples = [Sample(f"s{n}", {"txt": text.encode()}, n, 0, "x.tar", "s") for n, text in enumerate(TEXTS)]
    to_transformers(parts_of(export, {"next": head})["text"].load(export), folder, {"text": samples})
    return folder


def test_it_goes_on_as_the_trained_network_would(exported: tuple[Any, Head, Any, Path], tmp_path: Path) -> None:
    """Greedily, beside a loop over the trained network with its head, one pass a token; and every logit."""
    model, head, words, where = exported
    folder = left(where, head, tmp_path / "left")
    weight = head.tensors.get("weight", model.get_input_embeddings().weight.detach())
    prompt = "the state of"
    shown = ids = [words.cls_token_id, *words(prompt, add_special_tokens=False)["input_ids"]]
    for _ in range(8):
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
        ids = [*ids, int((hidden[-1] @ weight.T).argmax())]
        if ids[-1] == words.sep_token_id:
            break
    assert AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"] == shown, "nothing stands behind a prompt"
    run = pipeline("text-generation", model=str(folder))
    (found,) = run(prompt, max_new_tokens=len(ids) - len(shown), do_sample=False, return_tensors=True)
    assert found["generated_token_ids"] == ids
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=torch.tensor([ids[:-1]])).logits[0], hidden @ weight.T,
                                   rtol=1e-5, atol=1e-4)  # fmt: skip


def test_a_softcap_that_the_class_has_not_is_refused(exported: tuple[Any, Head, Any, Path], tmp_path: Path) -> None:
    model, head, words, _ = exported
    capped = head._replace(settings={"softcap": 30.0})
    takes = {"text": TextInput(words, LENGTH)}
    where = export_run(tmp_path / "capped", {"text": model}, takes, {"next": capped}, {})
    with pytest.raises(UnfitError, match=f"part 'text': transformers' {model.config.model_type} has no softcap"):
        left(where, capped, tmp_path / "left")
