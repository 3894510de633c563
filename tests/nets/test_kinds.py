"""Every type of network in the tables trains, exports and loads again; what is in none is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from bigssl.config.errors import ConfigError
from bigssl.config.recipe import BackboneConfig
from bigssl.data.kinds import text
from bigssl.data.kinds.masking import IGNORE
from bigssl.data.kinds.text import load_tokenizer
from bigssl.data.loading.collate import collate
from bigssl.data.sample import Sample
from bigssl.nets import towers
from bigssl.nets.depth import depths
from bigssl.nets.modality import MODALITIES, modality_of_type
from bigssl.nets.modality.kinds import AUDIO, CAUSAL, ENCODER_DECODER, IMAGE, ONE_SIDE, SERIES, TEXT, WHY_NOT
from bigssl.nets.modality.table import INTERPOLATED
from bigssl.nets.modality.vocabulary import SPECIAL_IDS
from bigssl.nets.pool import mean_of
from bigssl.nets.pretrained import read_network
from bigssl.nets.progress import Progress
from bigssl.objectives.denoise import Denoise
from bigssl.objectives.mlm import Mlm
from bigssl.transfer.inputs import ImageInput, TextInput, input_of
from bigssl.transfer.leaving.export import export_run

AT = Progress(0, 100)


def loaded(folder: Path) -> PreTrainedModel:
    """As transformers reads it; `init_from` of a recipe finds nothing missing there."""
    read_network(str(folder), AutoConfig.from_pretrained(folder))
    model: PreTrainedModel = AutoModel.from_pretrained(folder)
    return model


def alone(_: np.random.Generator) -> Sample:
    raise AssertionError("this task asks for no other sample")

DEMO = Path(towers.__file__).parents[1] / "demo"
MOST = 24  # positions of the tiny text networks
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8,
    "max_position_embeddings": MOST, "embedding_size": 16, "input_embedding_size": 16, "head_dim": 16,
    "num_key_value_heads": 2, # what most types call it
    "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "emb_dim": 32,  # DistilBERT, XLM
    "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": MOST, "resid_pdrop": 0.0, "embd_pdrop": 0.0,  # GPT-2
    "attn_pdrop": 0.0, "ffn_dim": 64, "word_embed_proj_dim": 32, "d_model": 16, "patch_length": 4, "patch_stride": 4,
    "num_layers": 2, "conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [5, 2], "feat_proj_dropout": 0.0,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "activation_dropout": 0.0, "hidden_dropout": 0.0,
    "conformer_conv_dropout": 0.0, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,  # BART
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "dropout": 0.0, "attention_dropout": 0.0,
    "embedding_dropout": 0.0, "mlp_dropout": 0.0, "drop_path_rate": 0.0,
}  # fmt: skip
TWO = {"hidden_sizes": [8, 16], "depths": [1, 1]}
FOUR = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}
WINDOWS = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "patch_size": 4}
TINY: dict[str, dict[str, Any]] = {
    "bit": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "num_groups": 4},
    "convnext": {**TWO, "num_stages": 2}, "convnextv2": {**TWO, "num_stages": 2},
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128},
    "focalnet": {**TWO, "embed_dim": 8, "focal_levels": [1, 1], "focal_windows": [3, 3]},
    "hiera": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]},
    "levit": {
        "hidden_sizes": [16, 32, 32], "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1], "key_dim": [8, 8, 8],
    },
    "mobilenet_v1": {"depth_multiplier": 0.1}, "mobilenet_v2": {"depth_multiplier": 0.1},
    "mobilevit": {
        "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 16], "num_attention_heads": 2,
    },
    "mobilevitv2": {"width_multiplier": 0.25},
    "poolformer": FOUR, "pvt_v2": FOUR, "segformer": FOUR,
    "regnet": {**TWO, "embedding_size": 8, "groups_width": 8},
    "resnet": {**TWO, "embedding_size": 8, "layer_type": "basic"},
    "resnet_cifar": {**TWO, "embedding_size": 8, "layer_type": "basic"},
    "swiftformer": {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]},
    "swin": WINDOWS, "swinv2": WINDOWS,
    "ts2vec": {"hidden_size": 16, "width": 8, "depth": 2, "dropout": 0.0},
    "squeezebert": {**SMALL, "embedding_size": 32},  # has no projection between the two
}  # fmt: skip
SIZES = {"hiera": 128, "levit": 64, "mobilevit": 64, "mobilevitv2": 64}


def config(kind: str) -> dict[str, Any]:
    fields = CONFIG_MAPPING[kind]().to_dict()
    return {name: value for name, value in TINY.get(kind, SMALL).items() if name in fields}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The demo's tokenizer, and the same with padding as 1, which MPNet insists on, by the id of their padding."""
    values = json.loads((DEMO / "tokenizer.json").read_text())
    vocabulary, swap = values["model"]["vocab"], {"[PAD]": 1, "[UNK]": 0}
    vocabulary.update(swap)
    for token in values["added_tokens"]:
        token["id"] = swap.get(token["content"], token["id"])
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    Tokenizer.from_str(json.dumps(values)).save(str(file))
    return {0: DEMO / "tokenizer.json", 1: file}


def text_tower(kind: str, files: dict[int, Path], length: int) -> towers.Tower:
    file = files[int(kind == "mpnet")]
    section = BackboneConfig(type=kind, config=config(kind), tokenizer=str(file), length=length)
    torch.manual_seed(0)
    return towers.Tower("net", section, load_tokenizer(file))


def longest(kind: str, files: dict[int, Path]) -> towers.Tower:
    """Of the greatest length that is allowed, which the refusal of a greater one says."""
    with pytest.raises(ConfigError, match=r"backbones.net.length: value 25; allowed: <= (22|23|24) ") as caught:
        text_tower(kind, files, MOST + 1)
    return text_tower(kind, files, int(str(caught.value).split("<= ")[1].split()[0]))


def batch(task: Mlm | Denoise, length: int) -> dict[str, Any]:
    documents = ["the state of the union is strong " * 9, "a \u2603\u2603 cat"]
    samples = [Sample(f"s{n}", {"txt": each.encode()}, n, 0, "x.tar", "t") for n, each in enumerate(documents)]
    prepared = [task.prepare(sample, np.random.default_rng(n), alone) for n, sample in enumerate(samples)]
    full = prepared[0]["labels"] != IGNORE if isinstance(task, Denoise) else prepared[0]["attention_mask"]
    assert full.sum() == length  # every position is used
    return task.assemble({"t": collate(prepared)})


@pytest.mark.parametrize("kind", TEXT)
def test_text_networks(kind: str, tokenizers: dict[int, Path], tmp_path: Path) -> None:
    tower = longest(kind, tokenizers)
    task = Mlm(Mlm.Config(source="t", backbone="net", ratio=0.3), {"net": tower})
    loss = task(batch(task, tower.length), AT).total
    loss.backward()
    assert loss.isfinite()
    check_gradients(task)
    _check_reading(tower)
    _check_special_ids(tower)
    _check_depths(tower)
    _check_export(tower, tmp_path)


def _check_reading(tower: towers.Tower) -> None:
    """Both sides of a token count (in a causal network what is before it), their order too; padding does not, and
    [UNK] is none."""
    tokenizer, model = tower.tokenizer, tower.eval()
    ids, mask = (torch.from_numpy(part)[None] for part in text.encode(tokenizer, "the state of a \u2603 union", 12))
    used = int(mask.sum())

    def hidden(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model.hidden({"input_ids": ids, "attention_mask": mask})[0]

    whole = hidden(ids, mask)[:used]
    torch.testing.assert_close(hidden(ids[:, :used], mask[:, :used]), whole, rtol=1e-4, atol=1e-5)
    other = ids.clone()
    other[0, used:] = 77
    torch.testing.assert_close(hidden(other, mask)[:used], whole, rtol=1e-4, atol=1e-5)
    other[0, used - 2] = 99
    first = hidden(other, mask)[: used - 2]
    if tower.sees == "both":
        assert not torch.equal(first[0], whole[0])
    else:
        torch.testing.assert_close(first, whole[: used - 2], rtol=1e-4, atol=1e-5)
    swapped = ids.clone()
    swapped[0, [1, 2]] = ids[0, [2, 1]]
    assert not torch.equal(hidden(swapped, mask)[used - 2], whole[used - 2])
    model.train().zero_grad()
    model.hidden({"input_ids": ids, "attention_mask": mask}).pow(3).sum().backward()
    gradient = tower.token_embedding.grad
    assert gradient is not None and gradient[tokenizer.unk_token_id].abs().sum() > 0


def _check_special_ids(tower: towers.Tower) -> None:
    settings = tower.model.config
    for field, tokens in SPECIAL_IDS.items():
        if hasattr(settings, field):  # the demo's tokenizer has no token of its own for the beginning and the end
            assert getattr(settings, field) == getattr(tower.tokenizer, f"{tokens[-1]}_id"), field


def _check_depths(tower: towers.Tower) -> None:
    """Each block lies deeper than the one before it; embeddings and stems come first."""
    if tower.model.config.model_type == "albert":
        with pytest.raises(ValueError, match="the layers of albert share their weights"):
            depths(tower.model)
        return
    found, last = depths(tower.model)
    assert found.keys() == dict(tower.model.named_parameters()).keys()
    assert set(range(1, last)) <= set(found.values()) <= set(range(last + 1)) and last >= 3
    for name, depth in found.items():
        numbers = [int(part) for part in name.split(".") if part.isdigit()]
        if 0 < depth < last:
            assert numbers[0] == depth - 1, name
        if "word_embedding" in name or "cls_token" in name or "conv_stem" in name or name.startswith("embed"):
            assert depth == 0, name


def _check_export(tower: towers.Tower, folder: Path) -> None:
    export_run(folder, {"net": tower.model}, {"net": TextInput(tower.tokenizer, tower.length)}, {}, {})
    again = loaded(folder / "export" / "net").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "export" / "net")
    assert again.config.pad_token_id == tokenizer.pad_token_id == tower.tokenizer.pad_token_id
    ids, mask = (torch.from_numpy(part)[None] for part in text.encode(tokenizer, "a \u2603 cat", tower.length))
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        reads = again.get_encoder() if again.config.is_encoder_decoder else again
        hidden = reads(**inputs).last_hidden_state * mask[..., None]
        torch.testing.assert_close(
            hidden.sum(1) / mask.sum(), tower.eval().features(inputs), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_networks(kind: str, tokenizers: dict[int, Path], tmp_path: Path) -> None:
    tower = longest(kind, tokenizers)
    documents = ["the state of the union is strong " * 9, "a \u2603\u2603 cat"]
    encoded = [text.encode(tower.tokenizer, each, tower.length) for each in documents]
    ids, mask = (torch.from_numpy(np.stack(part)) for part in zip(*encoded, strict=True))
    assert mask.sum(1).tolist()[0] == tower.length  # every position is used
    tower.features({"input_ids": ids, "attention_mask": mask}).pow(3).sum().backward()
    check_gradients(tower)
    _check_reading(tower)
    _check_special_ids(tower)
    _check_export(tower, tmp_path)


@pytest.mark.parametrize("kind", ENCODER_DECODER)
def test_networks_that_read_and_write(kind: str, tokenizers: dict[int, Path], tmp_path: Path) -> None:
    """Features are those of what is read."""
    tower = longest(kind, tokenizers)
    task = Denoise(Denoise.Config(source="t", backbone="net"), {"net": tower})
    task(batch(task, tower.length), AT).total.backward()
    check_gradients(task)
    _check_reading(tower)
    _check_special_ids(tower)
    _check_export(tower, tmp_path)


@pytest.mark.parametrize("kind", IMAGE)
def test_image_networks(kind: str, tmp_path: Path) -> None:
    size = SIZES.get(kind, 32)
    torch.manual_seed(0)
    tower = towers.Tower("net", BackboneConfig(type=kind, config=config(kind), size=size), None)
    pictures = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
    features = tower.features({"image": pictures})
    assert features.shape == (4, tower.dim)
    features.square().sum().backward()
    check_gradients(tower)
    _check_depths(tower)
    export_run(tmp_path, {"net": tower.model}, {"net": ImageInput(size)}, {}, {})
    again = loaded(tmp_path / "export" / "net").eval()
    with torch.no_grad():
        ours = tower.eval().features({"image": pictures})
        torch.testing.assert_close(tower.features({"image": pictures}), ours, rtol=0, atol=0)
        inputs = {"pixel_values": pictures.float() / 127.5 - 1}
        torch.testing.assert_close(mean_of(*MODALITIES["image"].run(again, inputs)), ours, rtol=1e-4, atol=1e-5)
        check_other_sides(tower, pictures, ours)


def check_other_sides(tower: towers.Tower, pictures: torch.Tensor, ours: torch.Tensor) -> None:
    """Pictures of another side have features, with positions stretched to them; those of its own are as without."""
    row, other = MODALITIES["image"], {"image": pictures.repeat(1, 1, 2, 2)}
    if tower.model.config.model_type in ONE_SIDE:
        with pytest.raises(RuntimeError):
            tower.features(other)
        return
    assert tower.features(other).shape == ours.shape
    if INTERPOLATED in row.inputs(tower.model, other):
        inputs = row.inputs(tower.model, {"image": pictures})
        assert INTERPOLATED not in inputs
        torch.testing.assert_close(mean_of(*row.run(tower.model, inputs | {INTERPOLATED: True})), ours)



@pytest.mark.parametrize("kind", IMAGE)
def test_every_type_of_pictures_takes_one_channel_or_says_that_it_does_not(kind: str) -> None:
    section = BackboneConfig(type=kind, config=config(kind), size=SIZES.get(kind, 32), channels=1)
    with torch.device("meta"):
        try:
            tower = towers.Tower("net", section, None)
        except ConfigError as error:
            assert f"backbones.net.channels: value 1; allowed: 3, the only number that a {kind} takes" in str(error)
            return
        pictures = torch.zeros(2, 1, section.size, section.size, dtype=torch.uint8)
        assert tower.channels == 1 and tower.features({"image": pictures}).shape == (2, tower.dim)


def check_gradients(module: torch.nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


FOLDED = {
    "series": BackboneConfig(type="", channels=2, length=18), "audio": BackboneConfig(type="", rate=8000, length=200),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # WavLM's
@pytest.mark.parametrize("kind", [*SERIES, *AUDIO])
def test_networks_of_series_and_sounds(kind: str, tmp_path: Path) -> None:
    row = modality_of_type(kind)
    assert row is not None
    torch.manual_seed(0)
    tower = towers.Tower("net", FOLDED[row.name].model_copy(update={"type": kind, "config": config(kind)}), None)
    samples = torch.randn(3, *((18, 2) if row.name == "series" else (200,)))
    mask = (torch.arange(samples.shape[1]) < 9 * samples.shape[1] // 10).expand(3, -1)
    mask = mask[..., None].expand(samples.shape) if row.name == "series" else mask.long()
    batch = {row.batch: samples, str(row.mask): mask}
    hidden, features = tower.hidden(batch), tower.features(batch)
    assert hidden.shape[::2] == (3, tower.dim) and features.shape == (3, tower.dim)
    torch.testing.assert_close(tower.features(batch), features, rtol=1e-4, atol=1e-5)  # nothing is hidden at random
    features.pow(3).sum().backward()
    check_gradients(tower)
    _check_rows(tower.eval(), row.batch, batch)
    export_run(tmp_path, {"net": tower.model}, {"net": input_of(tower)}, {}, {})
    again = loaded(tmp_path / "export" / "net").eval()
    with torch.no_grad():
        torch.testing.assert_close(row.features(again, batch), tower.features(batch), rtol=1e-4, atol=1e-5)


def _check_rows(tower: towers.Tower, name: str, batch: dict[str, torch.Tensor]) -> None:
    """Each sample's features are its own, and what the mask hides is not among them."""
    with torch.no_grad():
        features = tower.features(batch)
        one = {key: value[1:2] for key, value in batch.items()}
        torch.testing.assert_close(tower.features(one), features[1:2], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(features[0], features[1], atol=1e-4)
        everything = tower.features({name: batch[name]})
        assert not torch.allclose(everything, features, atol=1e-5)


OTHERS = ["led", "xlnet", "canine", "clip_text_model", "longformer", "detr", "wav2vec2", "clip"]


@pytest.mark.parametrize("kind", [*WHY_NOT, *OTHERS])
def test_others_are_refused_by_name(kind: str, tokenizers: dict[int, Path]) -> None:
    asked = {"text": BackboneConfig(type=kind, tokenizer=str(tokenizers[0]), length=8),
             "image": BackboneConfig(type=kind, size=32)}  # fmt: skip
    for name, section in asked.items():
        tokenizer = load_tokenizer(tokenizers[0]) if name == "text" else None
        with pytest.raises(ConfigError) as caught:
            towers.Tower(name, section, tokenizer)
        said = str(caught.value)
        assert f"backbones.{name}.type: value {kind!r} is not for" in said and WHY_NOT.get(kind, "") in said
        assert "\n" not in said and "; allowed: " in said
