"""The views of augment.py for a whole batch at once, on the device that trains.

The worker draws the numbers of each view (`View`), copies the picture once as bytes, and the device renders all views
together. No step waits for the host or copies from it: what only some samples undergo is computed for all and chosen by
`where`.

Cropping, resizing and blurring are one product with a matrix per sample and axis: [B, rows, columns] weights that are
Pillow's own (antialiased bicubic; blur by three boxes, Gwosdek et al. 2011), so both paths agree up to the bytes to
which Pillow rounds between the steps.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigssl.data.kinds.augment import CONTRAST, HUE, SATURATION, SOLARISE_FROM, View, to_array

_BOXES = 3  # passes of Pillow's Gaussian blur


def on_canvas(image: Image.Image, side: int) -> tuple[np.ndarray, float]:
    """(uint8 [3, side, side], scale): the picture in the upper left corner, the rest 0.

    One that is larger is reduced to fit; `scale` is its new size over the old one, 1 for all others.
    """
    scale = min(1.0, side / max(image.size))
    if scale < 1:
        width, height = (max(1, round(edge * scale)) for edge in image.size)
        image = image.resize((width, height), Image.Resampling.HAMMING)  # as good for reducing, at half the cost
    canvas = np.zeros((3, side, side), np.uint8)
    canvas[:, : image.height, : image.width] = to_array(image)
    return canvas, scale


def placed(view: View, width: int, height: int, scale: float) -> dict[str, object]:
    """Numbers of `view` for `render_batch`, of a picture of `width` × `height` that `on_canvas` scaled: the box and
    `extent` (width, height; float32 [2]) in pixels of the canvas."""
    extent = np.maximum(1, np.round(np.array([width, height]) * scale))
    box = np.array(view.box) * np.tile(extent / [width, height], 2)
    return view.arrays() | {"box": box.astype(np.float32), "extent": extent.astype(np.float32)}


@torch.no_grad()
def render_batch(canvases: Tensor, view: dict[str, Tensor], size: int, largest_sigma: float) -> Tensor:
    """One view of each picture: uint8 [B, 3, side, side] -> uint8 [B, 3, size, size].

    Args:
        view: collated `placed`: box [B, 4], extent [B, 2], factors [B, 3], turn, sigma [B] float32; order int64
            [B, 4]; flip, grey, solarise bool [B]. On the device of `canvases`.
        largest_sigma: no sample is blurred more; 0 leaves blurring out.
    """
    with torch.autocast(canvases.device.type, enabled=False):  # bf16 has fewer steps than a byte
        pixels = crop(canvases.float(), view["box"], view["extent"], size)
        pixels = _where(view["flip"], pixels.flip(3), pixels)
        pixels = jitter_batch(pixels, view["factors"], view["turn"], view["order"])
        pixels = _where(view["grey"], luma(pixels).expand_as(pixels), pixels)
        if largest_sigma > 0:
            pixels = blur_batch(pixels, view["sigma"], largest_sigma)
        pixels = _where(view["solarise"], torch.where(pixels < SOLARISE_FROM, pixels, 255 - pixels), pixels)
        return pixels.round_().to(torch.uint8)


def _where(chosen: Tensor, changed: Tensor, kept: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, 1, 1, 1), changed, kept)


def _transform(pixels: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """[B, 3, H, W] by [B, h, H] and [B, w, W] -> [B, 3, h, w], clipped after each axis as bytes are."""
    rows = (pixels @ horizontal.transpose(1, 2).unsqueeze(1)).clamp_(0, 255)  # [B, 3, H, w]
    return (vertical.unsqueeze(1) @ rows).clamp_(0, 255)


def crop(pixels: Tensor, box: Tensor, extent: Tensor, size: int) -> Tensor:
    """Boxes [B, 4] (left, top, right, bottom) of float [B, 3, S, S], resized to [B, 3, size, size] (antialiased
    bicubic). Pixels beyond `extent` [B, 2] (width, height) do not exist."""
    side = pixels.shape[-1]
    horizontal, vertical = (_bicubic(box[:, axis], box[:, axis + 2], extent[:, axis], side, size) for axis in (0, 1))
    return _transform(pixels, vertical, horizontal)


def _bicubic(start: Tensor, end: Tensor, extent: Tensor, side: int, size: int) -> Tensor:
    """[B, size, side]: weights of the pixels of one axis for each output pixel (Keys 1981, a = -1/2)."""
    scale = ((end - start) / size).view(-1, 1, 1)  # [B, 1, 1]
    places = torch.arange(side, device=start.device).view(1, 1, -1) + 0.5
    centres = start.view(-1, 1, 1) + (torch.arange(size, device=start.device).view(1, -1, 1) + 0.5) * scale
    distance = ((places - centres) / scale.clamp(min=1)).abs()  # [B, size, side]
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights = torch.where(places < extent.view(-1, 1, 1), weights, 0.0)
    return weights / weights.sum(2, keepdim=True)


def blur_batch(pixels: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Gaussian blur of float [B, 3, S, S] by `sigma` [B] <= `largest` pixels; below .25 nothing changes."""
    reach = math.ceil(box_radius(torch.tensor(largest, dtype=torch.float64)).item()) + 1  # on the host: no waiting
    weights = blur_weights(sigma, pixels.shape[-1], reach)
    return _transform(pixels, weights, weights)


def blur_weights(sigma: Tensor, side: int, reach: int) -> Tensor:
    """[B, side, side]: weights of the pixels of one axis for each blurred pixel. No box reaches further than
    `reach`."""
    places = torch.arange(-reach, side + reach, device=sigma.device)
    distance = (places.view(1, -1) - torch.arange(side, device=sigma.device).view(-1, 1)).abs()  # [S, S + 2 reach]
    radius = torch.where(sigma < 0.25, 0.0, box_radius(sigma)).view(-1, 1, 1)
    wide = (radius + 1 - distance).clamp(0, 1) / (2 * radius + 1)  # [B, S, S + 2 reach]
    weights = wide[:, :, reach:-reach].clone()  # what lies beyond an edge has the value of the edge
    weights[:, :, 0] += wide[:, :, :reach].sum(2)
    weights[:, :, -1] += wide[:, :, -reach:].sum(2)
    return torch.linalg.matrix_power(weights, _BOXES)


def box_radius(sigma: Tensor) -> Tensor:
    """Radius of a box with fractional ends that has, applied three times, the variance sigma² (Gwosdek et al. 2011)."""
    variance = sigma.square() / _BOXES
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1).square()))
    return whole + part


def jitter_batch(pixels: Tensor, factors: Tensor, turn: Tensor, order: Tensor) -> Tensor:
    """Changes of colour of float [B, 3, S, S] in the order of each sample; see `View`.

    The hue, the costly one, is turned once for all samples: before it come the blends that precede it in a sample's
    order, after it the others. A blend by 1 changes nothing.
    """
    hue_place = (order == HUE).int().argmax(1)  # [B]
    strength = torch.cat([factors, torch.ones_like(factors[:, :1])], 1).gather(1, order)  # [B, 4] in order
    for place in range(3):
        pixels = _blend(pixels, order[:, place], torch.where(hue_place > place, strength[:, place], 1.0))
    pixels = hue_batch(pixels, turn)
    for place in range(1, 4):
        pixels = _blend(pixels, order[:, place], torch.where(hue_place < place, strength[:, place], 1.0))
    return pixels


def _blend(pixels: Tensor, change: Tensor, factor: Tensor) -> Tensor:
    """Brightness, contrast or saturation of each sample: away from black, from the mean grey, from its own grey."""
    grey = luma(pixels)  # [B, 1, S, S]
    change, factor = change.view(-1, 1, 1, 1), factor.view(-1, 1, 1, 1)
    anchor = torch.where(change == CONTRAST, grey.mean((2, 3), keepdim=True), torch.zeros_like(grey))
    anchor = torch.where(change == SATURATION, grey, anchor)
    return torch.lerp(anchor, pixels, factor).clamp_(0, 255)


def luma(pixels: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W] by ITU-R 601."""
    red, green, blue = pixels.split(1, 1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def hue_batch(pixels: Tensor, turn: Tensor) -> Tensor:
    """Hue of float [B, 3, H, W] moved by `turn` [B] turns, value and saturation kept."""
    red, green, blue = pixels.unbind(1)  # [B, H, W]
    value, low = pixels.amax(1), pixels.amin(1)
    chroma = value - low
    scale = 1 / chroma.clamp(min=1e-6)
    sector = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    sector = sector + 6 * turn.view(-1, 1, 1)
    # how far each channel is from where it is lowest; [B, 3, H, W]
    place = torch.stack([sector + offset for offset in (5.0, 3.0, 1.0)], 1) % 6
    turned = value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(place, 4 - place).clamp_(0, 1)
    return torch.where((turn == 0).view(-1, 1, 1, 1), pixels, turned)
