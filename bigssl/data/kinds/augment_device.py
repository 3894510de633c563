"""The views of augment.py for a whole batch at once, on the device that trains.

The worker draws the numbers of each view (`View`), copies the picture once as bytes, and the device renders all views
together. No step waits for the host or copies from it: what only some samples undergo is computed for all and chosen by
`where`.

Cropping, resizing and blurring are one product with a matrix per sample and axis: [B, rows, columns] weights that are
those of augment.py, so both paths agree up to the bytes to which it cuts between the steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bigssl.config.errors import ConfigError
from bigssl.data.kinds.augment import CONTRAST, HUE, SATURATION, View, resize, to_planes
from bigssl.data.kinds.colours import LEAST_SIGMA, SOLARISE_FROM, blur_reach


def canvas_side(given: int | None, size: int, section: str) -> int:
    """Side of a canvas of which views of `size` pixels are made: what is `given` in a section of the recipe, or as much
    as leaves the usual photograph of 500 pixels as it is for 224: to reduce costs more than to decode.

    Raises:
        ConfigError: it would have fewer pixels than a view.
    """
    if given is not None and given < size:
        raise ConfigError(
            f"{section}.canvas: value {given}, but views of {size} pixels a side are made of it; allowed: >= {size}"
        )
    return given or 9 * size // 4


def on_canvas(pixels: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """(uint8 [C, side, side], scale) of uint8 [H, W, C]: the picture in the upper left corner, the rest 0.

    One that is larger is reduced to fit; `scale` is its new size over the old one, 1 for all others.
    """
    height, width, channels = pixels.shape
    scale = min(1.0, side / max(width, height))
    if scale < 1:
        width, height = (max(1, round(edge * scale)) for edge in (width, height))
        pixels = resize(pixels, width, height)
    canvas = np.zeros((channels, side, side), np.uint8)
    canvas[:, :height, :width] = to_planes(pixels, channels)
    return canvas, scale


def placed(view: View, width: int, height: int, scale: float) -> dict[str, object]:
    """Numbers of `view` for `render_batch`, of a picture of `width` × `height` that `on_canvas` scaled: its box in
    pixels of the canvas."""
    extent = np.maximum(1, np.round(np.array([width, height]) * scale))
    box = np.array(view.box) * np.tile(extent / [width, height], 2)
    return view.arrays() | {"box": box.astype(np.float32)}


@torch.no_grad()
def render_batch(canvases: Tensor, view: dict[str, Tensor], size: int, largest_sigma: float) -> Tensor:
    """One view of each picture: uint8 [B, C, side, side] -> uint8 [B, C, size, size], C = 3 or 1.

    Args:
        view: collated `placed`: box [B, 4], factors [B, 3], turn, sigma [B] float32; order int64
            [B, 4]; flip, grey, solarise bool [B]. On the device of `canvases`.
        largest_sigma: no sample is blurred more; 0 leaves blurring out.
    """
    with torch.autocast(canvases.device.type, enabled=False):  # bf16 has fewer steps than a byte
        pixels = crop(canvases.float(), view["box"], size)
        pixels = _where(view["flip"], pixels.flip(3), pixels)
        pixels = jitter_batch(pixels, view["factors"], view["turn"], view["order"])
        pixels = _where(view["grey"], luma(pixels).expand_as(pixels), pixels)
        if largest_sigma > 0:
            pixels = blur_batch(pixels, view["sigma"], largest_sigma)
        pixels = _where(view["solarise"], torch.where(pixels < SOLARISE_FROM, pixels, 255 - pixels), pixels)
        return pixels.round_().to(torch.uint8)


def _where(chosen: Tensor, changed: Tensor, kept: Tensor) -> Tensor:
    return torch.where(chosen.view(-1, 1, 1, 1), changed, kept)


def crop(pixels: Tensor, box: Tensor, size: int) -> Tensor:
    """Boxes [B, 4] (left, top, right, bottom) of float [B, C, S, S], resized to [B, C, size, size] as augment.py says.
    Pixels outside a box do not exist."""
    edges = box[:, 2:] - box[:, :2]  # [B, 2]
    reduced = (edges > size).any(1).view(-1, 1, 1)
    horizontal, vertical = (
        torch.where(
            reduced,
            _antialiased(box[:, axis], box[:, axis + 2], pixels.shape[-1], size),
            _enlarging(box[:, axis], box[:, axis + 2], pixels.shape[-1], size),
        )
        for axis in (0, 1)
    )
    rows = pixels @ horizontal.transpose(1, 2).unsqueeze(1)  # [B, C, S, size]
    rows = torch.where(reduced.unsqueeze(1), rows.clamp(0, 255), rows)
    return (vertical.unsqueeze(1) @ rows).clamp_(0, 255)


def _centres(start: Tensor, end: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Of the pixels of a view in those of an axis, [B, size, 1], and how many of these one of them is, [B, 1, 1]."""
    scale = ((end - start) / size).view(-1, 1, 1)
    places = torch.arange(size, device=start.device).view(1, -1, 1) + 0.5
    return start.view(-1, 1, 1) + places * scale, scale


def _keys(distance: Tensor, a: float) -> Tensor:
    """The cubic kernel at distances >= 0 (Keys 1981)."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def _antialiased(start: Tensor, end: Tensor, side: int, size: int) -> Tensor:
    """[B, size, side]: weights of the pixels of one axis for each output pixel, the kernel as wide as the reduction."""
    centres, scale = _centres(start, end, size)
    places = torch.arange(side, device=start.device).view(1, 1, -1) + 0.5
    weights = _keys(((places - centres) / scale.clamp(min=1)).abs(), -0.5)  # [B, size, side]
    inside = (places > start.view(-1, 1, 1)) & (places < end.view(-1, 1, 1))
    weights = torch.where(inside, weights, 0.0)
    return weights / weights.sum(2, keepdim=True)


def _enlarging(start: Tensor, end: Tensor, side: int, size: int) -> Tensor:
    """The same of four pixels, of which those beyond an edge have the value of the edge."""
    centres, _ = _centres(start, end, size)
    first, last = (start.floor().view(-1, 1, 1), end.ceil().view(-1, 1, 1) - 1)
    places = torch.arange(side, device=start.device).view(1, 1, -1)
    before = (centres - 0.5).floor()
    weights = torch.zeros(1, device=start.device)
    for tap in range(-1, 3):
        there = torch.minimum(torch.maximum(before + tap, first), last)  # [B, size, 1]
        weights = weights + torch.where(places == there, _keys((centres - 0.5 - before - tap).abs(), -0.75), 0.0)
    return weights


def blur_batch(pixels: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Gaussian blur of float [B, C, S, S] by `sigma` [B] <= `largest` pixels; below LEAST_SIGMA nothing changes."""
    weights = blur_weights(sigma, pixels.shape[-1], blur_reach(largest))
    return weights.unsqueeze(1) @ (pixels @ weights.transpose(1, 2).unsqueeze(1))


def blur_weights(sigma: Tensor, side: int, reach: int) -> Tensor:
    """[B, side, side]: weights of the pixels of one axis for each blurred pixel. No blur reaches further than
    `reach`."""
    places = torch.arange(-reach, side + reach, device=sigma.device)
    distance = (places.view(1, -1) - torch.arange(side, device=sigma.device).view(-1, 1)).abs()  # [S, S + 2 reach]
    sigma = sigma.view(-1, 1, 1)
    wide = torch.exp(-0.5 * (distance / sigma.clamp(min=LEAST_SIGMA)).square())  # [B, S, S + 2 reach]
    wide = torch.where(distance <= (3 * sigma).ceil(), wide, 0.0)
    wide = torch.where(sigma < LEAST_SIGMA, (distance == 0).float(), wide)
    wide = wide / wide.sum(2, keepdim=True)
    weights = wide[:, :, reach : reach + side].clone()  # what lies beyond an edge has the value of the edge
    weights[:, :, 0] += wide[:, :, :reach].sum(2)
    weights[:, :, -1] += wide[:, :, reach + side :].sum(2)
    return weights


def jitter_batch(pixels: Tensor, factors: Tensor, turn: Tensor, order: Tensor) -> Tensor:
    """Changes of colour of float [B, C, S, S] in the order of each sample; see `View`.

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
    """Brightness, contrast or saturation of each sample: away from black, from the mean grey, from its own grey. (A
    picture of one channel is its own grey.)"""
    grey = luma(pixels)  # [B, 1, S, S]
    change, factor = change.view(-1, 1, 1, 1), factor.view(-1, 1, 1, 1)
    anchor = torch.where(change == CONTRAST, grey.mean((2, 3), keepdim=True), torch.zeros_like(grey))
    anchor = torch.where(change == SATURATION, grey, anchor)
    return torch.lerp(anchor, pixels, factor).clamp_(0, 255)


def luma(pixels: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W] by ITU-R 601; one channel as it is."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.split(1, 1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def hue_batch(pixels: Tensor, turn: Tensor) -> Tensor:
    """Hue of float [B, 3, H, W] moved by `turn` [B] turns, value and saturation kept; one channel has none."""
    if pixels.shape[1] == 1:
        return pixels
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
