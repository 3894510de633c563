"""Masked autoencoders (He et al. 2022, arXiv 2111.06377): patches that a vision transformer did not see, from those
that it saw. The decoder, and what hides patches from a plain vision transformer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ViTMAEConfig
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder

from bigssl.nets.chance import noise
from bigssl.nets.pool import normalise
from bigssl.nets.remaking.base import GREY, Remade, Remaker, picture_bytes

EPSILON = 1e-6  # added to the variance of a patch, as in the paper's code
MASK = "mask"  # the use of a sample's seed that says which of its patches are hidden


class MaeRemaker(Remaker):
    """The paper's decoder: a few transformer layers over the encoded patches and a mask token in the place of each
    hidden one, with fixed sine and cosine positions. It is transformers'; linear layers begin by Xavier's rule, as in
    the paper's code."""

    def __init__(
        self, *, dim: int, size: int, patch: int, visible: int, width: int, layers: int, heads: int,
        channels: int = 3, normalised: bool = True,
    ) -> None:  # fmt: skip
        """
        Args:
            dim: of the hidden states. size: of the pictures. patch: side of a patch. visible: patches that are seen.
            width, layers, heads: of the decoder.
            normalised: patches are predicted without their mean and scale, else as they are.
        """
        super().__init__(dim=dim, size=size, patch=patch, visible=visible, width=width, layers=layers, heads=heads,
                         channels=channels, normalised=normalised)  # fmt: skip
        self.patch, self.patches, self.normalised = patch, (size // patch) ** 2, normalised
        fields = ViTMAEConfig(
            hidden_size=dim, patch_size=patch, image_size=size, num_channels=channels, decoder_hidden_size=width,
            decoder_num_hidden_layers=layers, decoder_num_attention_heads=heads, decoder_intermediate_size=4 * width,
        )  # fmt: skip
        fields._attn_implementation = "sdpa"
        self.decoder = ViTMAEDecoder(fields, self.patches)
        for module in self.decoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    @property
    def visible(self) -> int:
        """Patches that are seen: of what is asked, not of the network."""
        return int(self.settings["visible"])

    def order(self, seeds: Tensor) -> Tensor:
        """int64 [B] seeds -> [B, N], the patches of each sample; the first `visible` of them are seen."""
        return noise.orders(seeds, MASK, self.patches)

    def forward(self, hidden: Tensor, order: Tensor) -> Tensor:
        """[B, 1 + visible, D] of `encode_visible` and `order` [B, N] -> float32 [B, N, P], what each patch holds."""
        predicted: Tensor = self.decoder(hidden, order.argsort(-1)).logits.float()
        return predicted

    def remake(self, model: PreTrainedModel, pictures: Tensor, seeds: Tensor) -> Remade:
        can_hide(model)
        pixels, order = normalise(pictures), self.order(seeds)
        predicted = self(encode_visible(model, pixels, order[:, : self.visible]), order)
        whole = patches_of(pixels, self.patch)
        if self.normalised:
            scale = (whole.var(-1, keepdim=True) + EPSILON).sqrt()
            predicted = predicted * scale + whole.mean(-1, keepdim=True)
        hidden = torch.ones_like(order, dtype=torch.bool).scatter(1, order[:, : self.visible], False)
        judged = pictures_of(hidden[..., None].expand(-1, -1, self.patch**2), self.patch)
        made = torch.where(judged, picture_bytes(pictures_of(predicted, self.patch)), pictures)
        return Remade(pictures.masked_fill(judged, GREY), made, judged)

    def simple(self, pictures: Tensor, given: Tensor, judged: Tensor) -> dict[str, Tensor]:
        """The mean of what is seen; where the mean of each patch is known to the network, that as well."""
        pixels, seen = normalise(pictures), ~judged
        mean = (pixels * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True)
        found = {"mean of the visible patches": mean.expand_as(pixels)}
        if self.normalised:
            cut = patches_of(pixels, self.patch)
            found["each patch's mean"] = pictures_of(cut.mean(-1, keepdim=True).expand_as(cut), self.patch)
        return {name: torch.where(judged, picture_bytes(value), pictures) for name, value in found.items()}

    def caption(self) -> str:
        hidden = self.patches - self.visible
        said = f"Given: {self.visible} of {self.patches} patches; made: the other {hidden} from these."
        told = " The network predicts patches without their mean and contrast: these two numbers are the truth's."
        return said + (told if self.normalised else "")


def patches_of(pixels: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] -> [B, N, patch · patch · C], row by row: y, x, channel, as transformers' decoder has them."""
    batch, channels, height, width = pixels.shape
    cut = pixels.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def pictures_of(patches: Tensor, patch: int) -> Tensor:
    """The square pictures [B, C, H, H] of which `patches_of` made [B, N, patch · patch · C]."""
    side = round(patches.shape[1] ** 0.5)
    cut = patches.unflatten(-1, (patch, patch, -1)).unflatten(1, (side, side))  # [B, rows, columns, y, x, C]
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, side * patch, side * patch)


def targets(patches: Tensor) -> tuple[Tensor, Tensor]:
    """[B, N, P] -> normalised [B, N, P], (x − mean) / √(variance + ε), and the (unbiased) variance [B, N, 1]."""
    variance = patches.var(-1, keepdim=True)
    return (patches - patches.mean(-1, keepdim=True)) / (variance + EPSILON).sqrt(), variance


def encode_visible(model: PreTrainedModel, pixels: Tensor, seen: Tensor) -> Tensor:
    """float [B, C, H, W] pixels, int64 [B, V] patches -> last hidden states [B, 1 + V, D]: the class token's, and those
    of the patches `seen`, in that order. The other patches never enter the layers of `model`, which `can_hide`."""
    with _only(seen, (pixels.shape[-1] // model.config.patch_size) ** 2):
        hidden: Tensor = model(pixel_values=pixels).last_hidden_state
    leading = hidden.shape[1] - seen.shape[1]
    return torch.cat([hidden[:, :1], hidden[:, leading:]], 1)  # without registers and distillation tokens


_kept: tuple[Tensor, int] | None = None


@contextmanager
def _only(seen: Tensor, patches: int) -> Iterator[None]:
    """Within it, networks that `can_hide` keep of their embeddings the leading tokens and of `patches` those seen."""
    global _kept
    _kept = seen, patches
    try:
        yield
    finally:
        _kept = None


def _hide(embeddings: nn.Module, args: tuple[Any, ...], tokens: Tensor) -> Tensor:
    """Hook of the embeddings, [B, L + N, D] -> [B, L + V, D]: a function of the module, so that copies of a network
    (teachers, exports) have it, too, and drag no objective along."""
    if _kept is None:
        return tokens
    seen, patches = _kept
    leading = tokens.shape[1] - patches
    return torch.cat([tokens[:, :leading], rows_at(tokens[:, leading:], seen)], 1)


def can_hide(model: PreTrainedModel) -> None:
    """Makes a vision transformer one that `encode_visible` may show some of the patches; elsewhere it sees all."""
    embeddings = model.get_submodule("embeddings")
    if _hide not in embeddings._forward_hooks.values():  # two objectives may share the backbone
        embeddings.register_forward_hook(_hide)


def rows_at(values: Tensor, index: Tensor) -> Tensor:
    """[B, N, D] values, int64 [B, M] -> [B, M, D]"""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
