"""Maps of features: every image backbone has them, each cell lies where its pixels are, and heads read all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel

from bigssl.data.errors import DataError
from bigssl.data.kinds import augment
from bigssl.transfer.dense.heads import SegmentHead
from bigssl.transfer.dense.maps import KeptMaps, patch_maps, stage_maps

TWO = {"hidden_sizes": [8, 16], "depths": [1, 1]}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8,
       "image_size": 64}  # fmt: skip
WINDOWS = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "patch_size": 4, "image_size": 64}
KINDS = {
    "vit": (VIT, [(16, 8)]), "dinov2_with_registers": ({**VIT, "num_register_tokens": 3}, [(16, 8)]),
    "resnet": ({**TWO, "embedding_size": 8, "layer_type": "basic"}, [(8, 16), (16, 8)]),
    "convnext": ({**TWO, "num_stages": 2}, [(8, 16), (16, 8)]),
    "swin": (WINDOWS, [(8, 16), (16, 8)]),
    "hiera": ({"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "image_size": [64, 64]},
              [(8, 16), (16, 8), (32, 4), (64, 2)]),
}  # fmt: skip


def network(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModel.from_config(CONFIG_MAPPING[kind](**KINDS[kind][0]))
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_each_kind_of_network_are_where_its_pixels_are(kind: str) -> None:
    """A quarter that changes is felt most in that quarter of each map, however the network orders its tokens."""
    model = network(kind)
    pictures = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    noise = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for picture, (top, left) in zip(pictures, [(8, 8), (8, 40), (40, 8), (40, 40)], strict=True):
        picture[:, top : top + 16, left : left + 16] = noise
    with torch.no_grad():
        maps = stage_maps(model, {"image": pictures})
        still = stage_maps(model, {"image": torch.full_like(pictures[:1], 128)})
    assert [(each.shape[1], each.shape[2]) for each in maps] == KINDS[kind][1]
    for each, plain in zip(maps, still, strict=True):
        felt = F.adaptive_avg_pool2d((each - plain).abs().mean(1, keepdim=True), 2).flatten(1)
        assert felt.argmax(1).tolist() == [0, 1, 2, 3], (kind, felt)


def test_tokens_that_are_no_grid_are_refused() -> None:
    model = network("vit")
    model.config.patch_size = 5
    with pytest.raises(DataError, match="15 tokens of a picture are no square grid"):
        stage_maps(_Cut(model), {"image": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)})  # type: ignore[arg-type]


class _Cut:
    """A network that loses some of its tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.config, self.dtype, self._model = model.config, model.dtype, model

    def modules(self) -> list[object]:
        return []

    def __call__(self, **inputs: Tensor) -> object:
        output = self._model(**(inputs | {"interpolate_pos_encoding": True}))
        output.last_hidden_state = output.last_hidden_state[:, :15]
        output.hidden_states = None
        return output


def test_patches_of_pixels_are_those_around_each_cell() -> None:
    pictures = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    (found,) = patch_maps({"image": pictures})
    assert found.shape == (2, 3 * 12 * 12, 4, 4)
    values = pictures.float() / 127.5 - 1
    whole = F.pad(values, (4, 4, 4, 4))  # each cell of 4 pixels, and 4 on each side of it
    for row in range(4):
        for column in range(4):
            wanted = whole[:, :, 4 * row : 4 * row + 12, 4 * column : 4 * column + 12].flatten(1)
            torch.testing.assert_close(found[:, :, row, column], wanted)


def test_a_segmenting_head_is_the_linear_model_of_all_maps_at_one_size() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 5, 6, 6), torch.randn(2, 3, 3, 3)]
    head = SegmentHead([5, 3], 4)
    normed = [F.layer_norm(each.movedim(1, -1), each.shape[1:2]).movedim(-1, 1) for each in maps]
    together = torch.cat([normed[0], F.interpolate(normed[1], (6, 6), mode="bilinear")], 1)
    weight = torch.cat([each.weight for each in head.neck.reads], 1)  # type: ignore[misc]
    logits = F.conv2d(together, weight, head.neck.reads[0].bias)  # type: ignore[arg-type]
    torch.testing.assert_close(head(maps, 24), F.interpolate(logits, (24, 24), mode="bilinear"))


def test_maps_are_made_once_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigssl.transfer.dense.maps.KEPT", 2 * 4 * 4)  # of two samples, float32 [1, 2, 2] each
    kept, asked = KeptMaps(), []

    def make(rows: list[int]) -> list[Tensor]:
        asked.append(list(rows))
        return [torch.tensor(rows, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 2, 2)]

    for rows in ([3, 1, 3], [1, 2], [2, 3]):
        assert kept.of("net", "train", rows, make)[0][:, 0, 0, 0].tolist() == rows
    assert asked == [[3, 1], [2], [2]]
    assert kept.of("net", "queries", [1], make)[0].shape == (1, 1, 2, 2) and asked[-1] == [1]
    asked.clear()
    for _ in range(2):  # of the network that is trained on now, not of the first one for ever
        assert kept.of("other", "train", [1, 5], make)[0][:, 0, 0, 0].tolist() == [1, 5]
    assert asked == [[1, 5]] and kept.lacking("other", "train", [5, 6, 5, 6]) == [6]
    assert kept.lacking("net", "train", [1, 3]) == [1, 3], "there is room for one"


@pytest.mark.parametrize("size", [(40, 20), (20, 41), (37, 37)])
def test_a_mask_is_seen_as_its_picture_is(size: tuple[int, int]) -> None:
    """Of a picture of two plain halves each pixel of the view has its half's colour, but where both meet."""
    width, height = size
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1
    mask[height // 3, :] = 255
    picture = Image.fromarray(np.where(mask[..., None] == 1, [0, 0, 255], [255, 0, 0]).astype(np.uint8))
    view, seen = augment.center(picture, 16), augment.center_mask(mask, 16)
    assert seen.shape == (16, 16) and set(np.unique(seen)) <= {0, 1, 255}
    sure = np.abs(view[2].astype(int) - 127) > 120
    np.testing.assert_array_equal(seen[sure & (seen != 255)], (view[2] > 127)[sure & (seen != 255)])
    assert sure.mean() > 0.7
