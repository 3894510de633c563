"""Backbones are transformers' own, with the published sizes; features are what the pooling says; mistakes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, ViTForImageClassification

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig
from bigssl.data.kinds.text import load_tokenizer
from bigssl.nets import towers
from bigssl.nets.pool import normalise

TOKENIZER = str(Path(towers.__file__).parents[1] / "demo" / "tokenizer.json")
BASIC = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}


PUBLISHED = {
    "resnet-18": 11_176_512, "resnet-34": 21_284_672, "resnet-50": 23_508_032, "resnet-101": 42_500_160,
    "resnet-18-cifar": 11_168_832, "resnet-50-cifar": 23_500_352,
    "vit-tiny": 5_524_416, "vit-small": 21_665_664, "vit-base": 85_798_656, "vit-large": 303_301_632,
    "convnext-tiny": 27_818_592, "convnext-base": 87_564_416,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_sizes_have_the_published_parameters(name: str) -> None:
    """Without classifier and pooler: those that features pass through, which are those that an export holds. Of a
    ConvNeXt timm counts the norm before the classifier too (1,536 of the tiny one's 27,820,128)."""
    with torch.device("meta"):
        tower = towers.Tower("x", BackboneConfig(type=name, size=224), None)
    assert sum(p.numel() for p in tower.model.parameters() if p.requires_grad) == PUBLISHED[name]
    assert tower.dim == tower.model(pixel_values=torch.zeros(1, 3, 224, 224, device="meta")).last_hidden_state.shape[
        1 if name.startswith(("resnet", "convnext")) else 2]


def test_bert_has_the_published_parameters() -> None:
    fields = towers.hf_config("backbones.x", BackboneConfig(type="bert", config={"vocab_size": 30_522}),
                              load_tokenizer(TOKENIZER))  # fmt: skip
    with torch.device("meta"):
        assert sum(p.numel() for p in AutoModel.from_config(fields).parameters()) == 109_482_240


def test_fields_beside_a_name_replace_those_of_it() -> None:
    def fields(**section: Any) -> dict[str, Any]:
        return towers.hf_config("x", BackboneConfig.model_validate(section), None).to_dict()

    named = fields(type="vit-tiny", size=32, config={"patch_size": 4, "num_hidden_layers": 3})
    assert (named["hidden_size"], named["num_hidden_layers"], named["patch_size"], named["image_size"]) == (
        192, 3, 4, 32)  # fmt: skip
    with pytest.raises(ConfigError, match="value 'resnet-19' is not for an image backbone.*nearest: resnet-1"):
        towers.check_backbone("image", BackboneConfig(type="resnet-19", size=32))


def test_a_cifar_stem_keeps_the_pixels_of_small_pictures() -> None:
    """SimCLR, appendix B.9: 3 x 3 of stride 1 and no max-pool, all else as it is: computed again by transformers' own
    stages from the stem's states."""
    small = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    torch.manual_seed(0)
    tower = towers.Tower("net", BackboneConfig(type="resnet-18-cifar", size=32, config=small), None).eval()
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    state = tower.model.state_dict()
    with torch.no_grad():
        stem = torch.nn.functional.conv2d(normalise(pictures), state["embedder.embedder.convolution.weight"], padding=1)
        stem = (stem / (1 + 1e-5) ** 0.5).relu()  # statistics of a fresh norm
        hidden = tower.model(pixel_values=normalise(pictures)).last_hidden_state
    assert stem.shape == (2, 8, 32, 32) and hidden.shape == (2, 16, 16, 16)
    plain = towers.Tower("net", BackboneConfig(type="resnet", size=32, config=small), None).eval().model
    plain.encoder.load_state_dict(tower.model.encoder.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain.encoder(stem).last_hidden_state, hidden)


SERIES = {"type": "patchtst", "channels": 2, "length": 32}
SOUND = {"type": "wav2vec2", "rate": 16_000, "length": 400}
TINY_VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
            "patch_size": 8}  # fmt: skip


def test_vit_takes_its_image_size_and_pools_patches() -> None:
    tower = towers.Tower("net", BackboneConfig(type="vit", size=32, config=TINY_VIT), None)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    hidden = tower.model(pixel_values=normalise(images)).last_hidden_state
    assert hidden.shape == (2, 17, 16)
    torch.testing.assert_close(tower.hidden({"image": images}), hidden[:, 1:])
    torch.testing.assert_close(tower.features({"image": images}), hidden[:, 1:].mean(1))
    assert tower.size == 32 and tower.dim == 16 and tower.modality == "image"
    with pytest.raises(ValueError, match="no tokenizer"):
        _ = tower.tokenizer


def test_text_features_ignore_padding() -> None:
    config = BackboneConfig(type="bert", tokenizer=TOKENIZER, length=8, config={
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32})  # fmt: skip
    tower = towers.Tower("net", config, load_tokenizer(TOKENIZER)).eval()
    ids, mask = torch.tensor([[2, 9, 8, 3]]), torch.ones(1, 4, dtype=torch.long)
    padded = torch.tensor([[2, 9, 8, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    alone, filled = ({"input_ids": i, "attention_mask": m} for i, m in ((ids, mask), padded))
    torch.testing.assert_close(tower.features(alone), tower.features(filled), rtol=1e-5, atol=1e-6)
    assert tower.vocabulary == len(tower.tokenizer) == len(tower.token_embedding)


def test_normalise_maps_bytes_to_minus_one_to_one() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert normalise(pixels)[0, 0, 0].tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"type": "resnet"}, ["backbones.image.size: missing; an image backbone (with size) needs its image side"]),
        ({"type": "patchtst", "length": 8}, ["backbones.image.channels: missing; a series backbone"]),
        ({"type": "hubert", "length": 8}, ["backbones.image.rate: missing; an audio backbone"]),
        ({"type": "bert", "tokenizer": TOKENIZER, "length": 8, "size": 32}, ["size 32 and tokenizer", "not go togeth"]),
        ({"type": "resnet", "size": 32, "length": 32}, ["image.length: value 32 has no effect on an image backbone"]),
        ({"type": "vit_mae", "length": 32}, ["'vit_mae' serves as none (it hides 75 %", "a series backbone (with ch"]),
        ({"type": "patchtst", "rate": 8, "length": 32}, ["'patchtst' is not for an audio backbone", "it takes series"]),
        ({"type": "bert", "tokenizer": "no/such.json", "length": 8}, ["tokenizer", "no/such.json", "bigssl tokenizer"]),
        ({"type": "bert", "tokenizer": TOKENIZER}, ["backbones.image.length"]),
        ({"type": "resnet", "channels": 1}, ["backbones.image.size: missing; an image backbone"]),
        ({"type": "bert", "tokenizer": TOKENIZER, "length": 8, "window": [0, 1]},
         ["image.window: value [0.0, 1.0] has no effect on a text backbone"]),
        ({"type": "vit", "size": 8, "allow_partial": True}, ["allow_partial: value true without init_from"]),
    ],
)
def test_mistakes_are_named_before_anything_is_loaded(section: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        towers.check_backbone("image", BackboneConfig.model_validate(section))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"type": "resnet", "size": 32, "channels": 2}, "backbones.x.channels: value 2; allowed: 1 "),
        ({"type": "resnet", "size": 32, "config": {"num_channels": 1}},
         "backbones.x.channels: value 3 (the default); allowed: 1, as config.num_channels says"),
        ({"type": "vit-tiny", "size": 40}, "x.size: value 40; allowed: a multiple of patch_size 16, such as 32 or 48"),
        ({"type": "vit-tiny", "size": 8}, "x.size: value 8; allowed: a multiple of patch_size 16, such as 16, or"),
    ],
)
def test_channels_and_patches_that_do_not_fit_are_named(section: dict[str, Any], said: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError) as caught:
        towers.Tower("x", BackboneConfig.model_validate(section), None)
    assert said in str(caught.value)


def test_activation_checkpointing_changes_nothing_but_memory() -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    gradients = []
    for flag in (False, True):
        torch.manual_seed(0)
        config = BackboneConfig(type="vit", size=32, config=TINY_VIT, activation_checkpointing=flag)
        tower = towers.Tower("net", config, None).train()
        tower.features({"image": images}).square().sum().backward()
        gradients.append({n: p.grad for n, p in tower.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, msg=name)


def test_activation_checkpointing_is_refused_where_it_does_not_exist() -> None:
    with pytest.raises(ConfigError, match="backbones.net.activation_checkpointing: ResNetModel has none"):
        towers.Tower("net", BackboneConfig(type="resnet", size=32, activation_checkpointing=True, config=BASIC), None)


def test_pretrained_folder_is_where_training_starts(tmp_path: Path) -> None:
    first = towers.Tower("net", BackboneConfig(type="vit", size=32, config=TINY_VIT), None)
    first.model.save_pretrained(tmp_path)
    again = towers.Tower("net", BackboneConfig(type="vit", size=32, init_from=str(tmp_path)), None)
    for name, value in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    assert all(module.training for module in again.modules())
    with pytest.raises(ConfigError, match=r"backbones.net.type: value 'deit'; allowed: vit, which .* holds"):
        towers.Tower("net", BackboneConfig(type="deit", size=32, init_from=str(tmp_path)), None)


def test_networks_of_many_formats_load_and_others_are_refused(tmp_path: Path) -> None:
    """README, what loads. transformers would fill with random numbers what it does not find, and train on that."""
    network = towers.Tower("net", BackboneConfig(type="vit", size=32, config=TINY_VIT), None).model
    whole = network.state_dict()

    def load(name: str) -> dict[str, torch.Tensor]:
        section = BackboneConfig(type="vit", size=32, init_from=str(tmp_path / name))
        return towers.Tower("net", section, None).model.state_dict()

    def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
        network.config.save_pretrained(tmp_path / name)
        torch.save(tensors, tmp_path / name / "pytorch_model.bin")

    network.save_pretrained(tmp_path / "pieces", max_shard_size="4KB")
    assert len(list((tmp_path / "pieces").glob("*.safetensors"))) > 1
    labelled = ViTForImageClassification(network.config)
    labelled.vit.load_state_dict({name: value for name, value in whole.items() if "pooler" not in name})
    labelled.save_pretrained(tmp_path / "labelled")
    write("bin", whole)
    write("half", {name: value.half() for name, value in whole.items()})
    for name in ("pieces", "labelled", "bin", "half"):
        found = load(name)
        for key in (key for key in whole if "pooler" not in key):
            want = whole[key].half().float() if name == "half" else whole[key]
            assert torch.equal(found[key], want), (name, key)

    write("alien", {f"encoder_q.{name}": value for name, value in whole.items()})
    write("part", {name: value for name, value in whole.items() if "layernorm_before" not in name})
    write("wide", {name: value[..., :4] for name, value in whole.items()})
    count = sum("pooler" not in name for name in whole)
    for name, words in {
        "alien": rf"{count} of {len(whole)} tensors of ViTModel are not in it \(embeddings.cls_token.*holds encoder_q",
        "part": r"[24] of \d+ tensors of ViTModel are not in it \(.*layernorm_before.bias",
        "wide": r"tensors of ViTModel have other shapes \(embeddings.cls_token: \[1, 1, 4\] in place of \[1, 1, 16\]",
    }.items():
        with pytest.raises(ConfigError, match=r"^backbones.net.init_from: value '.*" + name + "': .*" + words):
            load(name)


@pytest.mark.parametrize(
    ("section", "tokenizer", "words"),
    [
        ({"type": "resnett", "size": 8}, False, ["backbones.net.type", "'resnett'", "nearest: resnet"]),
        ({"type": "resnet", "size": 8, "config": {"hiden_sizes": 8}}, False, ["config.hiden_sizes", ": hidden_sizes"]),
        ({"type": "resnet", "size": 8, "config": {"depths": "deep"}}, False, ["backbones.net.config", "depths"]),
        ({"type": "vit", "size": 8, "init_from": "no/such"}, False, ["backbones.net.init_from", "no/such"]),
        ({"type": "vit", "size": 32, "config": {"hidden_act": "foo"}}, False, ["backbones.net.config", "foo"]),
        ({"type": "vit", "size": 32, "config": {"image_size": 64}}, False, ["net.config", "values [2, 3, 32, 32]"]),
        ({"type": "swin", "size": 64}, False, ["backbones.net.config", "takes no pixel_values [2, 3, 64, 64]"]),
        ({"type": "bert", "size": 32}, False, ["backbones.net.type", "it takes tokens; allowed: beit,"]),
        ({"type": "vit", "length": 8}, True, ["backbones.net.type", "it takes pictures; allowed: albert,"]),
        ({"type": "bert", "length": 8, "config": {"vocab_size": 100}}, True, ["config.vocab_size", "100", ">= 8192"]),
        ({"type": "bert", "length": 900}, True, ["backbones.net.length", "900", "<= 512"]),
        ({"type": "bert", "length": 8, "config": {"is_decoder": True}}, True, ["is_decoder: value true; allowed"]),
        ({"type": "xlm", "length": 8, "config": {"causal": True}}, True, ["config.causal: value true; allowed: false"]),
        ({"type": "bert", "length": 2}, True, ["backbones.net.length", "value 2; allowed: >= 3"]),
        ({"type": "roberta", "length": 512}, True, ["<= 511", "positions begin at 1", "max_position_embeddings=513"]),
        ({"type": "mpnet", "length": 8}, True, ["its [PAD] is 0", "takes 1 for padding"]),
        ({"type": "bert", "length": 8, "config": {"pad_token_id": 1}}, True, ["pad_token_id", "allowed: 0, the"]),
        (SERIES | {"config": {"context_length": 9}}, False, ["config.context_length: value 9; allowed: 32, which is "]),
        (SERIES | {"config": {"do_mask_input": True}}, False, ["config.do_mask_input: value True; allowed: False (i"]),
        (SOUND | {"config": {"layerdrop": 0.1}}, False, ["config.layerdrop: value 0.1; allowed: 0.0 (it hides by a"]),
        (SOUND | {"length": 399}, False, ["backbones.net.length: value 399; allowed: >= 400, samples of one frame"]),
    ],
)
def test_networks_that_cannot_serve_are_named(section: dict[str, Any], tokenizer: bool, words: list[str]) -> None:
    section = section | ({"tokenizer": TOKENIZER} if tokenizer else {})
    with pytest.raises(ConfigError) as caught:
        towers.Tower("net", BackboneConfig.model_validate(section), load_tokenizer(TOKENIZER) if tokenizer else None)
    for word in words:
        assert word in str(caught.value)


def test_images_of_networks_without_a_class_token_keep_every_token() -> None:
    config = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "patch_size": 4, "window_size": 4}
    tower = towers.Tower("net", BackboneConfig(type="swin", size=32, config=config), None).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    hidden = tower.model(pixel_values=normalise(images)).last_hidden_state
    torch.testing.assert_close(tower.features({"image": images}), hidden.mean(1))
