"""What is exported beside the weights makes of pictures and texts what evaluation makes of them."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

import bigssl
from bigssl.data.errors import DataError
from bigssl.data.kinds import decode, text
from bigssl.data.sample import Sample
from bigssl.nets.modality import MODALITIES
from bigssl.nets.pool import normalise
from bigssl.transfer.arriving.folders import towers_at
from bigssl.transfer.inputs import INPUTS, ImageInput, TextInput, exported_input
from bigssl.transfer.leaving.export import export_run

Make = Callable[..., PreTrainedModel]
SIZE = 32
PICTURES = {  # width, height, mode, format; sizes whose ratio to 32 is no whole number, and those that need no resizing
    "landscape": (75, 50, "RGB", "png"), "portrait": (41, 97, "RGB", "png"), "square": (61, 61, "RGB", "png"),
    "smaller": (23, 14, "RGB", "png"), "narrow": (9, 150, "RGB", "png"), "much larger": (701, 523, "RGB", "jpeg"),
    "as large": (32, 32, "RGB", "png"), "as high": (77, 32, "RGB", "png"), "grey": (75, 50, "L", "png"),
    "transparent": (75, 50, "RGBA", "png"), "palette": (75, 50, "P", "png"),
}  # fmt: skip


def encoded(width: int, height: int, mode: str, kind: str) -> bytes:
    """Noise: an edge in each pixel, so that another filter, order or place shows."""
    bands = 1 if mode == "P" else len(mode)
    values = np.random.default_rng(width).integers(0, 256, (height, width, bands), dtype=np.uint8)
    picture = Image.fromarray(values.squeeze(-1) if bands == 1 else values)
    out = io.BytesIO()
    (picture.convert("P") if mode == "P" else picture).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["resnet", "vit", "convnext"])
def test_the_exported_preprocessor_is_the_view_of_evaluation(kind: str, make_model: Make, tmp_path: Path) -> None:
    export_run(tmp_path, {"net": make_model(kind)}, {"net": ImageInput(SIZE)}, {}, {})
    processor = AutoImageProcessor.from_pretrained(tmp_path / "export" / "net")
    assert exported_input(tmp_path / "export" / "net") == ImageInput(SIZE)
    for name, (width, height, mode, form) in PICTURES.items():
        data = encoded(width, height, mode, form)
        sample = Sample(name, {form: data}, 0, 0, "shard.tar", "")
        view = normalise(torch.from_numpy(ImageInput(SIZE).view(sample)["image"])[None])
        found = processor(Image.open(io.BytesIO(data)), return_tensors="pt")["pixel_values"]
        assert found.shape == view.shape == (1, 3, SIZE, SIZE)
        assert (found - view).abs().max().item() * 127.5 < 0.01, f"{name}: of 255"


def deep_picture(width: int, height: int) -> tuple[np.ndarray, bytes]:
    """int [H, W] and its PNG of 16 bits: noise from 0 to 5000, as 12 bits with some beyond."""
    values = np.random.default_rng(width).integers(0, 5000, (height, width)).astype(np.uint16)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "png")
    return values, out.getvalue()


def test_a_network_of_one_channel_sees_grey_and_the_window_of_deep_pictures(make_model: Make, tmp_path: Path) -> None:
    """View, exported preprocessor, and what `bigssl.load` reads of the export, are one."""
    takes = ImageInput(SIZE, 1, (1000.0, 3550.0))
    export_run(tmp_path, {"net": make_model("resnet", num_channels=1)}, {"net": takes}, {}, {})
    folder = tmp_path / "export" / "net"
    processor = AutoImageProcessor.from_pretrained(folder)
    assert exported_input(folder) == takes and towers_at(folder.parent, ["net"])["net"].window == takes.window
    card = (folder.parent / "README.md").read_text()
    assert "(value - 1000) · 255 / (3550 - 1000)" in card and 'convert("L")' in card
    loaded = bigssl.load(folder)
    values, deep = deep_picture(75, 50)
    shown = np.clip(np.floor((values.astype(float) - 1000) / 10 + 0.5), 0, 255).astype(np.uint8)
    colour = encoded(41, 97, "RGB", "png")
    for data, picture in ((deep, Image.fromarray(shown)), (colour, Image.open(io.BytesIO(colour)).convert("L"))):
        view = torch.from_numpy(takes.view(Sample("s", {"png": data}, 0, 0, "shard.tar", ""))["image"])[None]
        found = processor(picture, return_tensors="pt")["pixel_values"]
        assert found.shape == view.shape == (1, 1, SIZE, SIZE)
        assert (found - normalise(view)).abs().max().item() * 127.5 < 0.01
        with torch.no_grad():
            features = loaded.model(pixel_values=normalise(view)).last_hidden_state.mean((2, 3)).numpy()
        same = [Image.open(io.BytesIO(data)), *([values, values.astype(np.int32)] if data is deep else [])]
        np.testing.assert_allclose(loaded.embed(same), np.repeat(features, len(same), 0), rtol=1e-4, atol=1e-5)


def test_deep_pictures_without_a_window_are_the_upper_bits_or_refused(make_model: Make, tmp_path: Path) -> None:
    export_run(tmp_path, {"net": make_model("resnet")}, {"net": ImageInput(SIZE)}, {}, {})
    loaded, (values, _) = bigssl.load(tmp_path / "export" / "net"), deep_picture(75, 50)
    upper = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, 2)
    np.testing.assert_array_equal(loaded.embed([values]), loaded.embed([upper]))
    with pytest.raises(DataError, match=r"item 0: a grey picture of float32 values from 2.0 to 4999.0 has no range "
                                        r"of its own; give a window.*backbones.NAME.window: \[low, high\]"):
        loaded.embed([values.astype(np.int32)])


@pytest.mark.parametrize(("file", "changes", "said"), [
    ("preprocessor_config.json", {"window": [3, 1]}, r"window: value \[3, 1\]; allowed: \[low, high\]"),
    ("config.json", {"num_channels": 4}, "num_channels: value 4; allowed: 1 or 3"),
])
def test_folders_with_channels_or_windows_that_are_none_are_refused(
    file: str, changes: dict[str, object], said: str, make_model: Make, tmp_path: Path
) -> None:
    export_run(tmp_path, {"net": make_model("resnet")}, {"net": ImageInput(SIZE)}, {}, {})
    path = tmp_path / "export" / "net" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError, match=said):
        exported_input(path.parent)


def test_the_exported_tokenizer_cuts_to_what_the_model_takes(
    make_model: Make, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    words = "red-ish thing number 3 " * 40
    tokenizer(words, truncation=True, max_length=5, padding="max_length")  # what a call leaves in it is not exported
    for kind in ("bert", "roberta"):
        export_run(tmp_path, {kind: make_model(kind)}, {kind: TextInput(tokenizer, 24)}, {}, {})
        folder = tmp_path / "export" / kind
        loaded, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
        ids = loaded(words, truncation=True, return_tensors="pt")
        assert ids["input_ids"][0].tolist() == text.encode(tokenizer, words, 24)[0].tolist()
        assert model(**ids).last_hidden_state.shape[1] == 24
        assert len(loaded(words, verbose=False)["input_ids"]) > 100 and len(loaded("red")["input_ids"]) == 3
        specials = {name: getattr(loaded, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep", "mask")}
        assert specials == {name: getattr(tokenizer, f"{name}_token_id") for name in specials}
        assert model.config.pad_token_id == loaded.pad_token_id
        taken = exported_input(folder)
        assert isinstance(taken, TextInput) and taken.length == 24


def test_the_tokenizer_class_is_one_that_transformers_4_knows(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    TextInput(tokenizer, 24).write(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_exports_that_do_not_say_what_they_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"preprocessor_config.json: no such file.*run the training command again"):
        ImageInput.read(tmp_path)


def test_each_modality_has_a_network_s_side_and_a_sample_s_side() -> None:
    assert INPUTS.keys() == MODALITIES.keys() == decode.FIELDS.keys()
