"""Who makes SimCLR's two views in benchmarks/views.py: ours, ours of before (Pillow), and peers that install here.

Each takes bytes of a JPEG and gives two arrays [3, size, size]: the same crops, flips, colours, grey and blur by
distribution, in the form in which a provider's own documentation uses it, one thread.
"""

import importlib
import io
import math
from collections.abc import Callable

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

from bigssl.data.kinds import decode
from bigssl.data.kinds.augment import HUE, SimClrAugment, View

Views = tuple[np.ndarray, np.ndarray]
Render = Callable[[bytes, np.random.Generator], Views]
TOGETHER = 32  # pictures of a batch, for the peer that takes batches


def simclr(size: int) -> SimClrAugment:
    return SimClrAugment(size, min_scale=0.08)


def ours(size: int) -> Render:
    augment = simclr(size)

    def render(data: bytes, rng: np.random.Generator) -> Views:
        pixels = decode.picture_array(data, size=2 * size)
        return augment(pixels, rng), augment(pixels, rng)

    return render


def pillow(size: int) -> Render:
    """What the project had before: the same numbers, every step by Pillow."""
    augment = simclr(size)

    def render(data: bytes, rng: np.random.Generator) -> Views:
        image = decode.image(data, size=2 * size)
        first, second = (pillow_view(image, augment.draw(*image.size, rng), size) for _ in range(2))
        return first, second

    return render


def pillow_view(image: Image.Image, view: View, size: int) -> np.ndarray:
    """uint8 [3, size, size]: one C call a step."""
    changed = image.resize((size, size), Image.Resampling.BICUBIC, box=view.box)
    changed = ImageOps.mirror(changed) if view.flip else changed
    for change in view.order:
        if change == HUE:
            changed = _hue(changed, view.turn)
        elif view.factors[change] != 1:
            changed = Image.blend(_anchor(changed, change), changed, view.factors[change])
    changed = changed.convert("L").convert("RGB") if view.grey else changed
    changed = changed.filter(ImageFilter.GaussianBlur(view.sigma)) if view.sigma >= 0.25 else changed
    return np.ascontiguousarray(np.asarray(changed).transpose(2, 0, 1))


def _anchor(image: Image.Image, change: int) -> Image.Image:
    """Black, the mean grey or the own grey, away from which brightness, contrast and saturation move."""
    if change == 0:
        return Image.new("RGB", image.size)
    grey = image.convert("L")
    if change == 2:
        return grey.convert("RGB")
    return Image.new("RGB", image.size, (grey.reduce(image.size).getpixel((0, 0)),) * 3)


def _hue(image: Image.Image, turn: float) -> Image.Image:
    if not (shift := round(turn * 255) % 256):
        return image
    pixels = np.array(image.convert("HSV"))
    pixels[..., 0] += np.uint8(shift)
    return Image.frombytes("HSV", image.size, pixels.tobytes()).convert("RGB")


def albumentations(size: int) -> Render:
    """Built on OpenCV; what it reduces is not antialiased."""
    a = importlib.import_module("albumentations")
    largest = 2.0 * size / 224
    transform = a.Compose([
        a.RandomResizedCrop((size, size), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), interpolation=cv2.INTER_CUBIC),
        a.HorizontalFlip(p=0.5),
        a.ColorJitter((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2), p=0.8),
        a.ToGray(p=0.2),
        a.GaussianBlur(blur_limit=(2 * math.ceil(3 * largest) + 1,) * 2, sigma_limit=(0.05 * largest, largest), p=0.5),
    ])  # fmt: skip

    def render(data: bytes, rng: np.random.Generator) -> Views:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        first, second = (transform(image=pixels)["image"].transpose(2, 0, 1) for _ in range(2))
        return np.ascontiguousarray(first), np.ascontiguousarray(second)

    return render


def torchvision(size: int) -> Render:
    """Its transforms v2, of byte tensors."""
    v2 = importlib.import_module("torchvision.transforms.v2")
    largest = 2.0 * size / 224
    blur = v2.GaussianBlur(2 * math.ceil(3 * largest) + 1, (0.05 * largest, largest))
    transform = v2.Compose([
        v2.RandomResizedCrop(size, (0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([blur], 0.5),
    ])  # fmt: skip

    def render(data: bytes, rng: np.random.Generator) -> Views:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        pixels = torch.from_numpy(decoded).permute(2, 0, 1)
        first, second = (transform(pixels).numpy() for _ in range(2))
        return first, second

    return render


def kornia(size: int) -> Callable[[list[bytes]], tuple[torch.Tensor, torch.Tensor]]:
    """Takes batches of pictures of one size, as float tensors: float32 [B, 3, size, size] twice."""
    k = importlib.import_module("kornia.augmentation")
    largest = 2.0 * size / 224
    transform = k.AugmentationSequential(
        k.RandomResizedCrop((size, size), scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), cropping_mode="resample"),
        k.RandomHorizontalFlip(p=0.5),
        k.ColorJitter((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2), p=0.8),
        k.RandomGrayscale(p=0.2),
        k.RandomGaussianBlur((2 * math.ceil(3 * largest) + 1,) * 2, (0.05 * largest, largest), p=0.5),
    )

    def render(batch: list[bytes]) -> tuple[torch.Tensor, torch.Tensor]:
        pictures = np.stack([cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) for data in batch])
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        return transform(pixels), transform(pixels)

    return render


def missing(name: str) -> str:
    """Why a peer cannot be imported; empty where it can."""
    try:
        importlib.import_module(name)
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")[:120]
    return ""


def encoded(pixels: np.ndarray) -> bytes:
    """A JPEG of uint8 [H, W, 3], quality 90."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
