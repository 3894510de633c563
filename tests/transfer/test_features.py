"""Features: the same whoever batches them, and of the images they claim to be of."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from bigssl.data.errors import DataError
from bigssl.data.kinds import augment, decode, text
from bigssl.data.order.stream import read_in_order
from bigssl.data.shards.index import DatasetIndex
from bigssl.nets.modality import MODALITIES
from bigssl.nets.pool import normalise
from bigssl.transfer.baselines import calibrate_batch_norm, random_network
from bigssl.transfer.features import (
    Views,
    chosen,
    column,
    encoder,
    evaluating,
    read_samples,
    samples_at,
    text_batches,
    view_batches,
)
from bigssl.transfer.inputs import ImageInput, TextInput

Make = Callable[..., PreTrainedModel]
SIZE = 32


@pytest.fixture
def val(shards: Path) -> DatasetIndex:
    return DatasetIndex.load(shards / "val")


def one_by_one(model: PreTrainedModel, index: DatasetIndex) -> torch.Tensor:
    rows = []
    for sample in read_in_order(index):
        pixels = augment.center(decode.image(sample.fields["png"]), SIZE)
        with torch.no_grad():
            rows.append(MODALITIES["image"].features(model.eval(), {"image": torch.from_numpy(pixels)[None]})[0])
    return torch.stack(rows)


def batches_of(index: DatasetIndex, batch: int, size: int = SIZE) -> list[Views]:
    return list(view_batches(read_in_order(index), ImageInput(size), batch=batch))


def encoded(model: PreTrainedModel, index: DatasetIndex, batch: int = 64) -> torch.Tensor:
    encode = encoder(model, "cpu")
    return torch.cat([encode(views.arrays) for views in batches_of(index, batch)])


@pytest.mark.parametrize("kind", ["resnet", "vit"])
@pytest.mark.parametrize("batch", [5, 64])
def test_images_equal_one_by_one(kind: str, batch: int, make_model: Make, val: DatasetIndex) -> None:
    model = make_model(kind)
    vectors = encoded(model, val, batch)
    assert vectors.shape == (42, 16) and vectors.dtype == torch.float32
    assert torch.allclose(vectors, one_by_one(model, val), atol=1e-5)
    keys = [key for images in batches_of(val, batch) for key in images.keys]
    assert keys == [sample.key for sample in read_in_order(val)]


def test_raw_pixels_are_the_picture_or_means_of_its_areas() -> None:
    pixels = torch.randint(0, 256, (3, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    part = pixels[..., :20, :20]
    assert torch.equal(ImageInput(20).raws({"image": part})["raw pixels"], part.flatten(1))
    small = ImageInput(128).raws({"image": pixels})["raw pixels"]
    assert small.shape == (3, 3 * 64 * 64) and small.dtype == torch.uint8
    mean = pixels[1, 2, 10:12, 40:42].float().mean()
    assert abs(small.view(3, 3, 64, 64)[1, 2, 5, 20].float() - mean) <= 0.5


def test_limited_subset_is_fixed_and_mixed(val: DatasetIndex) -> None:
    some = [sample.key for sample in read_samples(val, 12)]
    assert some == [sample.key for sample in read_samples(val, 12)]
    assert len(set(some)) == 12 and some != [sample.key for sample in read_in_order(val, 12)]
    assert {sample.shard for sample in read_samples(val, 12)} == {"part-0.tar", "part-1.tar"}
    numbers = chosen(val, 12)
    assert list(numbers) == sorted(numbers) and {sample.key for sample in samples_at(val, numbers)} == set(some)


def test_all_samples_are_shuffled_too_for_statistics_by_batch(val: DatasetIndex) -> None:
    keys, everything = [sample.key for sample in read_samples(val, 1000)], [sample.key for sample in read_in_order(val)]
    assert sorted(keys) == sorted(everything) and keys != everything
    assert [sample.key for sample in samples_at(val, chosen(val, 1000))] == everything


def test_model_is_left_in_the_modes_it_was_in(make_model: Make, val: DatasetIndex) -> None:
    model = make_model("resnet").train()
    frozen = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    encoded(model, val)
    assert model.training and not frozen.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_mode_is_restored_after_an_error(make_model: Make) -> None:
    model = make_model("vit").train()
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert model.training and torch.is_grad_enabled()


def test_bf16_network_takes_images(make_model: Make, val: DatasetIndex) -> None:
    model = make_model("vit")
    exact = encoded(model, val)
    rounded = encoded(model.bfloat16(), val)
    assert rounded.dtype == torch.float32 and torch.allclose(exact, rounded, atol=0.15)


@pytest.mark.parametrize("batch", [2, 16])
def test_texts_do_not_depend_on_batch_or_padding(
    batch: int, make_model: Make, tokenizer: PreTrainedTokenizerFast
) -> None:
    model, texts = make_model("bert"), ["red thing", "blue", "green thing number 3", "", "red"]
    encode = encoder(model, "cpu")
    found = list(text_batches(texts, TextInput(tokenizer, 24), batch=batch))
    assert [key for views in found for key in views.keys] == texts and len(found[0].keys) == min(batch, 5)
    vectors = torch.cat([encode(views.arrays) for views in found])
    for each, vector in zip(texts, vectors, strict=True):
        ids, mask = text.encode(tokenizer, each, 24)
        count = int(mask.sum())
        with torch.no_grad():
            hidden = model.eval()(input_ids=torch.from_numpy(ids[None, :count])).last_hidden_state[0]
        assert torch.allclose(vector, hidden.mean(0), atol=1e-5)


def test_damaged_image_names_shard_and_sample(shards: Path, monkeypatch: pytest.MonkeyPatch, val: DatasetIndex) -> None:
    monkeypatch.setitem(decode.FIELDS, "image", ("json",))
    with pytest.raises(DataError, match=r"part-0\.tar, sample '0060-google'.*undecodable"):
        next(view_batches(read_in_order(val), ImageInput(SIZE), batch=4))


def test_missing_metadata_names_the_field(val: DatasetIndex) -> None:
    images = batches_of(val, 3)[0]
    with pytest.raises(DataError, match="'colour'.*category, code, design, subcategory"):
        column(images.keys, images.meta, "colour")


def test_random_network_is_the_seed_and_leaves_the_generator_alone(make_model: Make) -> None:
    config = make_model("resnet").config
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = random_network(config, 1), random_network(config, 1), random_network(config, 2)
    assert torch.equal(torch.rand(3), expected)
    weights = [next(model.parameters()) for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert not first.training and first.dtype == torch.float32


def test_calibrated_statistics_are_those_of_the_images(make_model: Make, val: DatasetIndex) -> None:
    model = random_network(make_model("resnet").config, 0)
    batches = [views.arrays for views in batches_of(val, 14)]
    weights = {name: value.clone() for name, value in model.named_parameters()}
    assert calibrate_batch_norm(model, batches, "cpu") == 3
    stem = model.embedder.embedder  # type: ignore[union-attr]
    with torch.no_grad():
        outputs = [stem.convolution(normalise(each["image"])) for each in batches]  # type: ignore[operator, union-attr]
    mean = torch.stack([out.mean((0, 2, 3)) for out in outputs]).mean(0)
    variance = torch.stack([out.var((0, 2, 3)) for out in outputs]).mean(0)
    assert torch.allclose(stem.normalization.running_mean, mean, atol=1e-5)  # type: ignore[union-attr, arg-type]
    assert torch.allclose(stem.normalization.running_var, variance, rtol=1e-4)  # type: ignore[union-attr, arg-type]
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    assert not any(module.training for module in model.modules())
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_networks_without_batch_norm_need_no_calibration(make_model: Make) -> None:
    batch = {"image": torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)}
    assert calibrate_batch_norm(make_model("vit"), [batch], "cpu") == 0


def test_pixels_are_uint8_of_the_size_asked_for(val: DatasetIndex) -> None:
    batches = batches_of(val, 40, size=20)
    assert [len(images.keys) for images in batches] == [40, 2]
    pixels = batches[0].arrays["image"]
    assert pixels.shape == (40, 3, 20, 20) and pixels.dtype == torch.uint8 and np.ptp(pixels.numpy()) > 100
