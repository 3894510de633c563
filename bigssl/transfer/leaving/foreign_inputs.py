"""What `foreign.py` calls reloaded networks with: raw samples through the preprocessors as they were written, and
nothing of bigssl."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np

Job = dict[str, Any]


def _settings(folder: str) -> dict[str, Any]:
    """Of a preprocessor, as they were written."""
    settings: dict[str, Any] = json.loads((Path(folder) / "preprocessor_config.json").read_text())
    return settings


# raw samples


def _picture(path: str, channels: int, window: list[float] | None) -> Any:
    """Upright, transparent ones on white, deep ones as bytes, RGB or grey: what the cards say is to be done first."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode[0] in "IF":
        low, high = window or (0, 65536)
        values = (np.asarray(image, np.float64) - low) * ((255 if window else 256) / (high - low))
        image = Image.fromarray(np.clip(values + (0.5 if window else 0), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def texts_of(job: Job) -> list[str]:
    return [Path(path).read_bytes().decode("utf-8").removeprefix("\ufeff") for path in job["samples"]]


def _arrays(job: Job) -> list[np.ndarray]:
    return [np.load(path, allow_pickle=False).astype(np.float32) for path in job["samples"]]


# what a network is called with, by numpy alone, as the written settings say


def _pixels(job: Job, size: int, mean: list[float], std: list[float], window: list[float] | None) -> np.ndarray:
    """Shorter side to `size` (bicubic), middle square, scaled: float32 [B, C, size, size], a channel for each mean."""
    from PIL import Image

    found = []
    for path in job["samples"]:
        image = _picture(path, len(mean), window)
        width, height = (int(size * side / min(image.size)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
        values = (np.asarray(image, np.float64).reshape(size, size, -1) / 255 - mean) / std
        found.append(values.transpose(2, 0, 1).astype(np.float32))
    return np.stack(found)


def _tokens(job: Job) -> dict[str, np.ndarray]:
    from tokenizers import Tokenizer

    folder = Path(job["folder"])
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(settings["model_max_length"])
    pad = settings.get("pad_token")
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad) if pad else 0)
    encoded = tokenizer.encode_batch(texts_of(job))
    return {"input_ids": np.array([each.ids for each in encoded], np.int64),
            "attention_mask": np.array([each.attention_mask for each in encoded], np.int64)}  # fmt: skip


def _series(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """[B, length, channels], each channel's mean where nothing was observed, and where something was."""
    settings = _settings(job["folder"])
    shape = (len(job["samples"]), settings["length"], settings["channels"])
    values, observed = np.zeros(shape, np.float32), np.zeros(shape, bool)
    for row, series in enumerate(_arrays(job)):
        series = (series[:, None] if series.ndim == 1 else series)[: shape[1]]
        there = np.isfinite(series)
        known = np.where(there, series, 0)
        values[row] = known.sum(0) / np.maximum(there.sum(0), 1)
        values[row, : len(series)][there], observed[row, : len(series)] = known[there], there
    return values, observed


def _sounds(job: Job) -> dict[str, np.ndarray]:
    settings = _settings(job["folder"])
    shape = (len(job["samples"]), settings["max_length"])
    values, mask = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
    for row, sound in enumerate(_arrays(job)):
        sound = sound[: shape[1]].astype(np.float64)
        values[row, : len(sound)] = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-7)
        mask[row, : len(sound)] = 1
    return {"input_values": values, "attention_mask": mask}


def transformers_inputs(job: Job) -> dict[str, Any]:
    """Through the classes that load the written preprocessor."""
    import torch
    import transformers

    folder, modality = job["folder"], job["modality"]
    if modality == "image":
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        settings = _settings(folder)
        seen = [_picture(path, len(settings["image_mean"]), settings.get("window")) for path in job["samples"]]
        return dict(processor(seen, return_tensors="pt"))
    if modality == "text":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        padding = tokenizer.pad_token is not None
        many = texts_of(job) if padding else texts_of(job)[:1]
        found = tokenizer(many, padding=padding, truncation=True, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}
    if modality == "audio":
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        return dict(extractor(_arrays(job), sampling_rate=extractor.sampling_rate, max_length=extractor.max_length,
                              truncation=True, padding="max_length", return_tensors="pt"))  # fmt: skip
    values, observed = map(torch.from_numpy, _series(job))
    return {"past_values": values, job["observed"]: observed.float()}


def onnx_inputs(job: Job) -> dict[str, np.ndarray]:
    if job["modality"] == "image":
        settings = _settings(job["folder"])
        return {"pixel_values": _pixels(job, settings["crop_size"]["height"], settings["image_mean"],
                                       settings["image_std"], settings.get("window"))}  # fmt: skip
    if job["modality"] == "text":
        return _tokens(job)
    if job["modality"] == "audio":
        return _sounds(job)
    main, observed = job["inputs"]
    values = _series(job)
    return {main: values[0], observed: values[1].astype(np.float32)}


def timm_pixels(job: Job, model: Any) -> Any:
    """By timm's own transforms, which are torchvision's; where that is a stand-in, by its settings."""
    import torch

    settings = model.pretrained_cfg
    window = json.loads((Path(job["folder"]) / "config.json").read_text()).get("window")
    try:
        importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return torch.from_numpy(_pixels(job, settings["input_size"][1], settings["mean"], settings["std"],
                                        window))
    import timm.data

    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    return torch.stack([transform(_picture(path, len(settings["mean"]), window)) for path in job["samples"]])
