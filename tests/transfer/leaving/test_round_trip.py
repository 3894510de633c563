"""What leaves is reloaded by the other library in a process without bigssl, and a sabotaged export is caught there."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    ConvNextConfig,
    ConvNextV2Config,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PatchTSTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    Wav2Vec2Config,
)

from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.sample import Sample
from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.heads.base import Head, masked_head
from bigssl.nets.series.ts2vec import Ts2vecConfig
from bigssl.nets.timm.folders import read_timm, timm_config
from bigssl.nets.vision.resnet_cifar import CifarResNetConfig
from bigssl.transfer.features import read_samples
from bigssl.transfer.inputs import AudioInput, ImageInput, Input, SeriesInput, TextInput
from bigssl.transfer.leaving import export
from bigssl.transfer.leaving.classifier import classifier_claim
from bigssl.transfer.leaving.export import export_run
from bigssl.transfer.leaving.leave import WRITERS
from bigssl.transfer.leaving.parts import Listed, PartNetwork, UnfitError, parts_of
from bigssl.transfer.leaving.proof import Claim, Proof, ProofError, judged
from bigssl.transfer.leaving.samples import Samples, with_a_long_one

DEMO = Path(export.__file__).parents[2] / "demo"
COUNT = 3
LENGTH = 24  # of texts, in tokens
WORDS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
HEADS = {
    "mlm": Head("mlm", {"text": "bert"}, {}), "albert": Head("mlm", {"text": "albert"}, {}),
    "modern": Head("mlm", {"text": "modernbert"}, {}),
    "next": Head("causal", {"text": "gpt2"}, {}),  # the token embedding
    "untied": Head("causal", {"text": "llama"}, {}),
    "clip": Head("clip", {"image": "resnet", "text": "bert"}, {}),
    "order": Head("sentence_order", {"text": "albert"}, {}), "alone": Head("next_sentence", {"text": "pair"}, {}),
    "nothing": Head("sentence_order", {"text": "bert"}, {}),  # which transformers has not: it stays behind
    "filled": Head("masked_series", {"series": "filling"}, {}, {"ratio": 0.4}),
    "future": Head("forecast", {"series": "ahead"}, {}, {"horizon": 5}),
    "unfit": Head("forecast", {"series": "classed"}, {}, {"horizon": 5}),  # its class would read the class token alone
    "both": Head("next_sentence", {"text": "joint"}, {}), "words": Head("mlm", {"text": "joint"}, {}),
}  # fmt: skip
SQUARES = {**WORDS, "image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
PICTURED: dict[str, Any] = {  # of ViT and DeiT, epsilon is not timm's 1e-6
    "vit": ViTConfig(**SQUARES), "deit": DeiTConfig(**SQUARES, layer_norm_eps=1e-3),
    "dinov2": Dinov2Config(**SQUARES), "dinov2_with_registers": Dinov2WithRegistersConfig(**SQUARES),
    "convnext": ConvNextConfig(**STAGES), "convnextv2": ConvNextV2Config(**STAGES),
}  # fmt: skip
SERIES: dict[str, Any] = {
    "num_input_channels": 6, "context_length": 16, "patch_length": 4, "patch_stride": 4, "d_model": 8,
    "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16,
}  # fmt: skip
Found = dict[str, Proof | ProofError]


def network(config: PreTrainedConfig) -> PreTrainedModel:
    """Every float tensor away from its defaults."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModel.from_config(config)
        with torch.no_grad():
            for value in model.state_dict().values():
                if value.is_floating_point():
                    value.add_(0.05 * torch.rand_like(value) - 0.02)
    return model.eval()


def networks(tokenizer: PreTrainedTokenizerFast) -> dict[str, tuple[PreTrainedModel, Input]]:
    """ALBERT: another activation in the head; ModernBERT: no bias in its norm; Swin: a pooler that can be left out;
    small: a ResNet that transformers has not, whose code leaves with it."""
    text, size, special = TextInput(tokenizer, LENGTH), len(tokenizer), {"pad_token_id": tokenizer.pad_token_id}
    special |= dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id"), tokenizer.cls_token_id)
    gpt = GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=32, **special)
    return {
        "resnet": (network(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 1, 1],
                                        layer_type="basic")), ImageInput(32)),
        "small": (network(CifarResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
                  ImageInput(32)),
        "grey": (network(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 1, 1],
                                      layer_type="basic", num_channels=1)), ImageInput(32, 1, (100.0, 3000.0))),
        "swin": (network(SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2],
                                    window_size=4)), ImageInput(32)),
        "bert": (network(BertConfig(vocab_size=size, **WORDS)), text),
        "pair": (network(BertConfig(vocab_size=size, **WORDS)), text),
        "joint": (network(BertConfig(vocab_size=size, **WORDS)), text),
        "albert": (network(AlbertConfig(vocab_size=size, embedding_size=8, **WORDS)), text),
        "modernbert": (network(ModernBertConfig(vocab_size=size, **WORDS, **special,
                                                sep_token_id=tokenizer.sep_token_id)), text),
        "gpt2": (network(gpt), text),
        "llama": (network(LlamaConfig(vocab_size=size, **WORDS, max_position_embeddings=32,
                                      pad_token_id=tokenizer.pad_token_id)), text),
        "patchtst": (network(PatchTSTConfig(**SERIES)), SeriesInput(16, 6)),
        "steps": (network(Ts2vecConfig(num_input_channels=6, context_length=16, hidden_size=12, width=8, depth=2)),
                  SeriesInput(16, 6)),
        "filling": (network(PatchTSTConfig(**SERIES)), SeriesInput(16, 6)),
        "ahead": (network(PatchTSTConfig(**SERIES)), SeriesInput(16, 6)),
        "classed": (network(PatchTSTConfig(**SERIES, use_cls_token=True)), SeriesInput(16, 6)),
        "wav2vec2": (network(Wav2Vec2Config(
            **WORDS, conv_dim=[8, 8], conv_kernel=[10, 3], conv_stride=[5, 2], num_feat_extract_layers=2,
            num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, mask_time_prob=0.0)), AudioInput(8000, 800)),
    }  # fmt: skip


def sounds() -> list[Sample]:
    import soundfile

    found = []
    for number in range(COUNT):
        file = io.BytesIO()
        soundfile.write(file, np.random.default_rng(number).normal(size=500 + 300 * number), 8000, format="WAV")
        found.append(Sample(f"s{number}", {"wav": file.getvalue()}, number, 0, "x.tar", "s"))
    return found


@pytest.fixture(scope="module")
def samples() -> dict[str, list[Sample]]:
    def read(data: str) -> list[Sample]:
        return list(read_samples(DatasetIndex.load(str(DEMO / data)), COUNT))

    texts = with_a_long_one(TextInput(load_tokenizer(DEMO / "tokenizer.json"), LENGTH), read("emoji/val"))
    unspaced = texts[-1].fields["txt"].replace(b" ", b"-")  # one word for a splitter at spaces
    texts[-1] = texts[-1]._replace(fields={"txt": unspaced})
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 4096, (50, 70)).astype(np.uint16)).save(out, "PNG")
    pictures = read("emoji/val")
    pictures[-1] = pictures[-1]._replace(fields={"png": out.getvalue()})
    return {"image": pictures, "text": texts, "series": read("series/basic_motions/train"),
            "audio": sounds()}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export folder with networks of all modalities and heads of all kinds."""
    nets = networks(load_tokenizer(DEMO / "tokenizer.json"))
    heads = dict(HEADS)
    for head in ("order", "alone", "both", "nothing"):
        shapes = {"dense.weight": (16, 16), "dense.bias": (16,), "classifier.weight": (2, 16), "classifier.bias": (2,)}
        heads[head] = heads[head]._replace(tensors={name: torch.randn(shape) for name, shape in shapes.items()})
    for head, name in (("mlm", "bert"), ("albert", "albert"), ("modern", "modernbert"), ("words", "joint")):
        model = nets[name][0]
        made = masked_head(model.get_input_embeddings().weight, model.config)  # type: ignore[arg-type]
        own = {key: 0.2 * torch.rand_like(value) for key, value in made.named_parameters() if key != "weight"}
        heads[head] = heads[head]._replace(tensors=own)
    for head, rows in (("filled", (4, 8)), ("future", (5, 32)), ("unfit", (5, 32))):
        heads[head] = heads[head]._replace(tensors={"weight": torch.randn(rows), "bias": torch.randn(rows[0])})
    into = {"image_projection": torch.randn(4, 24), "text_projection": torch.randn(4, 16)}
    heads["clip"] = heads["clip"]._replace(tensors=into)
    rows = nets["llama"][0].get_input_embeddings().weight  # type: ignore[union-attr]
    heads["untied"] = heads["untied"]._replace(tensors={"weight": 0.2 * torch.rand_like(rows)})  # type: ignore[arg-type]
    backbones = {name: model for name, (model, _) in nets.items()}
    inputs = {name: takes for name, (_, takes) in nets.items()}
    return export_run(tmp_path_factory.mktemp("run"), backbones, inputs, heads, {})


def write(listed: Listed, exported: Path, form: str, folder: Path, samples: dict[str, list[Sample]]) -> list[Claim]:
    folder.mkdir(parents=True)
    part = listed.load(exported)
    seen: Samples = {role: samples[role] for role in part.members}
    return WRITERS[form](part, folder, seen)


def spoilt(claim: Claim, name: str, spoil: Callable[[Path], None]) -> Claim:
    folder = claim.folder.with_name(name)
    shutil.copytree(claim.folder, folder)
    spoil(folder)
    return dataclasses.replace(claim, part=name, folder=folder)


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def renamed(tensors: dict[str, torch.Tensor]) -> None:
    tensors["layernorm.wait"] = tensors.pop("layernorm.weight")


def transposed(tensors: dict[str, torch.Tensor]) -> None:
    name = next(name for name in tensors if "query" in name and name.endswith("weight"))
    tensors[name] = tensors[name].T.contiguous()


def in_json(file: str, change: Callable[[dict[str, object]], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        change(values)
        (folder / file).write_text(json.dumps(values))

    return spoil


def other_ends(tokenizer: dict[str, object]) -> None:
    """[SEP] text [CLS]."""
    processor = tokenizer["post_processor"]
    assert isinstance(processor, dict)
    processor["sep"], processor["cls"] = processor["cls"], processor["sep"]


def other_number(folder: Path) -> None:
    import onnx

    model = onnx.load(folder / "model.onnx")
    tensor = next(each for each in model.graph.initializer if each.name.endswith("projection"))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] += 1e-3
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, folder / "model.onnx")


@pytest.fixture(scope="module")
def found(exported: Path, samples: dict[str, list[Sample]], tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What one other process says of every part in every format, and of sabotaged ones."""
    work, parts = tmp_path_factory.mktemp("left"), parts_of(exported, HEADS)
    claims: dict[str, Claim] = {}
    wanted = [("transformers", name) for name in parts if name != "clip"]
    for form, name in [*wanted, ("sentence-transformers", "bert"), ("sentence-transformers", "clip"), ("onnx", "clip"),
                       ("onnx", "small"), ("onnx", "grey"), ("onnx", "steps")]:
        for claim in write(parts[name], exported, form, work / form / name, samples):
            claims[f"{form} {claim.folder.relative_to(work / form)}"] = claim
    bert, takes = networks(load_tokenizer(DEMO / "tokenizer.json"))["bert"]
    torch.manual_seed(0)
    judge = AutoModelForSequenceClassification.from_config(bert.config).eval()
    judge.classifier.weight.data.mul_(200)
    claims["classifier"] = classifier_claim(work / "classifier", judge, takes, samples["text"])
    small, sees = networks(load_tokenizer(DEMO / "tokenizer.json"))["small"]
    seer = AutoModelForImageClassification.from_config(small.config).eval()
    seer.classifier[1].weight.data.mul_(20)
    claims["pictures"] = classifier_claim(work / "pictures", seer, sees, samples["image"])
    for base, name, spoil in (
        ("transformers swin", "renamed", weights(renamed)),
        ("transformers bert", "transposed", weights(transposed)),
        ("transformers resnet", "mean",
         in_json("preprocessor_config.json", lambda v: v.update(image_mean=[0.50002] * 3))),
        ("transformers bert", "ends", in_json("tokenizer.json", other_ends)),
        ("sentence-transformers bert", "pooling", in_json("1_Pooling/config.json", lambda v: v.update(
            pooling_mode_mean_tokens=False, pooling_mode_cls_token=True))),
        ("onnx clip/text", "number", other_number),
        ("transformers joint", "segments", in_json("tokenizer_config.json", lambda v: v.update(
            model_input_names=["input_ids", "attention_mask"]))),
    ):  # fmt: skip
        claims[name] = spoilt(claims[base], name, spoil)
    return dict(zip(claims, judged(list(claims.values())), strict=True))


@pytest.mark.parametrize(
    ("name", "loader"),
    [("transformers resnet", "AutoModel("), ("transformers swin", "AutoModel("),
     ("transformers small", "AutoModel("), ("pictures", "AutoModelForImageClassification("), ("onnx small", "onnxrunt"),
     ("transformers grey", "AutoModel("), ("onnx grey", "onnxrunt"),
     ("transformers patchtst", "AutoModel("), ("transformers wav2vec2", "AutoModel("),
     ("transformers filling", "PatchTSTForPretraining("), ("transformers ahead", "PatchTSTForPrediction("),
     ("transformers classed", "AutoModel("), ("transformers steps", "AutoModel("), ("onnx steps", "onnxrunt"),
     ("transformers bert", "AutoModelForMaskedLM("),
     ("transformers joint", "AutoModelForPreTraining("), ("transformers albert", "AutoModelForPreTraining("),
     ("transformers pair", "AutoModelForNextSentencePrediction("), ("transformers modernbert", "AutoModelForMaskedLM("),
     ("transformers gpt2", "AutoModelForCausalLM("), ("transformers llama", "AutoModelForCausalLM("),
     ("classifier", "AutoModelForSequenceClassification("),
     ("sentence-transformers bert", "SentenceTransformer("), ("sentence-transformers clip", "SentenceTransformer("),
     ("onnx clip/image", "onnxruntime.InferenceSession("), ("onnx clip/text", "onnxruntime.InferenceSession(")],
    ids=str,
)  # fmt: skip
def test_every_tensor_arrives_and_real_samples_give_the_same(name: str, loader: str, found: Found) -> None:
    proof = found[name]
    assert isinstance(proof, Proof), proof
    assert proof.loader.replace(".from_pretrained", "").startswith(loader) and proof.samples == COUNT
    assert proof.tensors_loaded == proof.tensors_total > 10 and not proof.missing and not proof.unexpected
    assert proof.max_abs_difference <= 1e-5 * max(1, proof.largest) and proof.largest > 0.01


@pytest.mark.parametrize(
    ("name", "said"),
    [("renamed", "loads 42 of 43 tensors; missing: layernorm.weight; not part of it: layernorm.wait"),
     ("transposed", "loads 27 of 28 tensors; of other values: bert.encoder.layer.0.attention.self.query.weight"),
     ("mean", "features of 3 samples differ by up to"),
     ("ends", "token_logits of 3 samples differ by up to"), ("pooling", "embeddings of 3 samples differ by up to"),
     ("segments", "pair_logits of 3 samples differ by up to"),
     ("number", "loads 23 of 24 tensors; of other values: projection")],
    ids=str,
)  # fmt: skip
def test_sabotage_is_caught(name: str, said: str, found: Found) -> None:
    assert isinstance(found[name], ProofError) and said in str(found[name]), found[name]


def test_only_pictures_fit_timm_and_only_texts_sentence_transformers(
    exported: Path, samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    parts = parts_of(exported, HEADS)
    for number, (form, name, said) in enumerate((
        ("timm", "bert", "timm takes networks of pictures"), ("timm", "swin", "no timm name is known for a swin"),
        ("timm", "small", "no timm name is known for a resnet_cifar"),
        ("sentence-transformers", "resnet", "sentence-transformers takes texts, not images"),
        ("transformers", "clip", "no dual encoder of transformers takes the means of resnet and bert"),
    )):  # fmt: skip
        with pytest.raises(UnfitError, match=said):
            write(parts[name], exported, form, tmp_path / str(number), samples)


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export folder of the further networks that timm has."""
    backbones = {name: network(config) for name, config in PICTURED.items()}
    inputs = {name: ImageInput(32) for name in backbones}
    return export_run(tmp_path_factory.mktemp("pictured"), backbones, inputs, {}, {})


@pytest.mark.parametrize("kind", ["vit", "deit", "convnextv2"])
def test_what_left_for_timm_comes_back_as_the_same_network(
    kind: str, pictured: Path, samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    (claim,) = write(parts_of(pictured, {})[kind], pictured, "timm", tmp_path / "left", samples)
    config = timm_config(str(claim.folder), kind)
    back = PartNetwork(kind, read_timm(str(claim.folder), config).eval(), ImageInput(32))
    assert config.layer_norm_eps == PICTURED[kind].layer_norm_eps
    torch.testing.assert_close(back.features(samples["image"]).numpy(), claim.outputs["features"])


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm, installed with --no-deps")
def test_timm_names_and_sizes_hold_the_weights(
    exported: Path, pictured: Path, samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    """The narrow stem of the ResNet is filled up to timm's; one of timm's own tensors changed is caught. An epsilon
    that is not timm's is said."""
    python = tmp_path / "python"
    runner = Path(__file__).with_name("without_torchvision.py")
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{runner}" "$@"\n')
    python.chmod(0o755)
    (good,) = write(parts_of(exported, HEADS)["resnet"], exported, "timm", tmp_path / "good", samples)
    bad = spoilt(good, "bad", weights(lambda tensors: tensors["layer4.0.bn2.bias"].add_(1)))
    (grey,) = write(parts_of(exported, HEADS)["grey"], exported, "timm", tmp_path / "grey", samples)
    back = timm_config(str(grey.folder), "resnet")
    assert back.num_channels == 1
    others = [write(listed, pictured, "timm", tmp_path / "left" / name, samples)[0]
              for name, listed in parts_of(pictured, {}).items()]  # fmt: skip
    proof, error, of_grey, *more = judged([good, bad, grey, *others], str(python))
    assert isinstance(of_grey, Proof) and of_grey.tensors_loaded == of_grey.tensors_total, of_grey
    assert len(more) == len(PICTURED)
    for other, claim in zip(more, others, strict=True):
        assert isinstance(other, Proof) and other.tensors_loaded == other.tensors_total > 10, other
        eps = getattr(PICTURED[claim.part], "layer_norm_eps", None)
        said = eps in (1e-6, None) or claim.part.startswith("convnext")
        assert other.loader.endswith("pretrained=True)" if said else f"partial(torch.nn.LayerNorm, eps={eps}))")
    assert isinstance(proof, Proof) and proof.tensors_loaded == proof.tensors_total, proof
    assert isinstance(error, ProofError) and "77 of 78 tensors; of other values: layer4.0.bn2.bias" in str(error)


def test_a_decoder_of_pictures_stays_behind(exported: Path) -> None:
    """A network with one leaves as any other, and no part is named after it."""
    parts = parts_of(exported, HEADS | {"mae": Head("mae", {"image": "swin"}, {})})
    assert parts == parts_of(exported, HEADS) and parts["swin"].kind == "network"
