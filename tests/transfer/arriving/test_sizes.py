"""What a network of another program takes, by the files that lie beside it: taken from them, a documented default, or
refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    BertConfig,
    PatchTSTConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    RobertaConfig,
    ViTConfig,
    Wav2Vec2Config,
)

from bigssl.data.errors import DataError
from bigssl.transfer.arriving.folders import networks_at, towers_at
from bigssl.transfer.arriving.sizes import prepared_otherwise
from bigssl.transfer.inputs import AudioInput, ImageInput, SeriesInput, TextInput, exported_input

VIT, RESNET = ViTConfig(image_size=48), ResNetConfig()


def left(folder: Path, config: Any, **preprocessor: Any) -> Path:
    config.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.mark.parametrize(
    ("config", "settings", "side"),
    [(VIT, {"crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 64}}, 32), (VIT, {"crop_size": 40}, 40),
     (VIT, {"size": {"height": 24, "width": 24}}, 24), (VIT, {"size": {"shortest_edge": 56}}, 56), (VIT, {}, 48),
     (VIT, {"size": [20, 20]}, 20)],
)  # fmt: skip
def test_the_side_of_pictures(config: Any, settings: dict[str, Any], side: int, tmp_path: Path) -> None:
    assert exported_input(left(tmp_path, config, **settings)) == ImageInput(side)


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [(RESNET, {}, "preprocessor_config.json: no crop_size, and no size; add"),
     (RESNET, {"size": {"height": 24, "width": 32}}, "size: value .*32.*; allowed: a square, in pixels"),
     (Wav2Vec2Config(), {}, "preprocessor_config.json: no sampling_rate; add")],
)  # fmt: skip
def test_what_no_file_says_is_asked_for(config: Any, settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        exported_input(left(tmp_path, config, **settings))


def test_steps_channels_and_sounds(tmp_path: Path) -> None:
    series = PatchTSTConfig(context_length=24, num_input_channels=3)
    assert exported_input(left(tmp_path / "a", series)) == SeriesInput(24, 3)
    assert exported_input(left(tmp_path / "b", Wav2Vec2Config(), sampling_rate=8000)) == AudioInput(8000, 80_000)
    assert exported_input(left(tmp_path / "b", Wav2Vec2Config(), sampling_rate=8, max_length=9)) == AudioInput(8, 9)


def test_tokens_without_a_limit_are_those_that_have_a_position(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    own = {"pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 40}
    configs = {"bert": BertConfig(**own), "roberta": RobertaConfig(**own), "long": BertConfig(
        max_position_embeddings=4096)}  # fmt: skip
    wanted = {"bert": 40, "roberta": 40 - (tokenizer.pad_token_id + 1), "long": 512}
    for name, config in configs.items():
        config.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        found = exported_input(tmp_path / name)
        assert isinstance(found, TextInput) and found.length == wanted[name], name


def test_another_normalisation_is_told(tmp_path: Path) -> None:
    assert prepared_otherwise(left(tmp_path / "ours", VIT, image_mean=[0.5] * 3, image_std=[0.5] * 3)) == ""
    said = prepared_otherwise(left(tmp_path / "theirs", VIT, image_mean=[0.485, 0.456, 0.406], image_std=[0.5] * 3))
    assert said.startswith("theirs: the files beside it ask for pictures with mean [0.485") and "std [" not in said
    plain = left(tmp_path / "plain", VIT, do_normalize=False, do_rescale=True)
    assert "do_normalize false" in prepared_otherwise(plain) and "do_rescale" not in prepared_otherwise(plain)
    timm = left(tmp_path / "timm", VIT)
    config = json.loads((timm / "config.json").read_text()) | {"pretrained_cfg": {"std": [0.229, 0.224, 0.225]}}
    (timm / "config.json").write_text(json.dumps(config))
    assert "with std [0.229" in prepared_otherwise(timm)
    assert prepared_otherwise(left(tmp_path / "sound", VIT, do_normalize=False, sampling_rate=16000)) == ""


def test_towers_are_those_of_the_folder_without_reading_weights(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Of a folder of networks, and of one by itself, whatever else lies beside them."""
    for name, kind in (("pictures", "vit"), ("words", "roberta")):
        make_model(kind).save_pretrained(tmp_path / name)
        (tmp_path / name / "model.safetensors").write_bytes(b"not read here")
    left(tmp_path / "pictures", make_model("vit").config, size={"height": 32, "width": 32})
    tokenizer.save_pretrained(tmp_path / "words")
    (tmp_path / "words" / "1_Pooling").mkdir()
    (tmp_path / "words" / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 16}')
    assert networks_at(tmp_path).names == ["pictures", "words"]
    for path in (tmp_path, tmp_path / "words"):
        found = networks_at(path)
        towers = towers_at(found.folder, found.names)
        assert (towers["words"].modality, towers["words"].dim) == ("text", 16) and found.run is None
    assert towers.keys() == {"words"} and towers["words"].length == 64 - (tokenizer.pad_token_id + 1)
