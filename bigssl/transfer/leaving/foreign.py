"""Run by `proof.py` in a process of its own: reloads exports by the library that each is for, without bigssl, and calls
them with raw samples that go through the written preprocessors.

    python -I foreign.py WORK       WORK/jobs.json: [{folder, format, samples, out, and what the format needs}, ...]
                                    out/report.json: library, version, loaded, total, missing, other, unexpected;
                                                     or error
                                    out/outputs.npz: outputs by name
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

sys.modules["bigssl"] = None  # type: ignore[assignment] # `import bigssl` fails from here on, here and in libraries
sys.modules["bigssl_kernels"] = None  # type: ignore[assignment]

import numpy as np  # noqa: E402

Job = dict[str, Any]
Found = tuple[dict[str, Any], dict[str, np.ndarray]]


def main(work: Path) -> None:
    for job in json.loads((work / "jobs.json").read_text()):
        out = Path(job["out"])
        try:
            report, outputs = FORMATS[job["format"]](job)
            np.savez(out / "outputs.npz", **outputs)  # type: ignore[arg-type]
        except Exception as error:  # whatever the library raises: the other exports are looked at all the same
            report = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
        (out / "report.json").write_text(json.dumps(report))


def _report(
    library: Any, job: Job, state: Mapping[str, np.ndarray], missing: Iterable[str] = (), unexpected: Iterable[str] = ()
) -> dict[str, Any]:
    """Compares the tensors of the reloaded network with those that were trained, by their digests. One that another
    version of the library calls otherwise is found by its digest alone."""
    there = {name: hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest() for name, value in state.items()}
    values, wanted = set(there.values()), job["tensors"]
    lacking = {name for name in wanted if name not in there and wanted[name] not in values} | set(missing)
    other = {name for name in wanted if name in there and there[name] != wanted[name]} - lacking
    return {"library": library.__name__, "version": library.__version__, "total": len(wanted),
            "loaded": len(wanted) - len(lacking) - len(other), "missing": sorted(lacking), "other": sorted(other),
            "unexpected": sorted(unexpected)}  # fmt: skip


def _arrays_of(model: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def _settings(folder: str) -> dict[str, Any]:
    """Of a preprocessor, as they were written."""
    settings: dict[str, Any] = json.loads((Path(folder) / "preprocessor_config.json").read_text())
    return settings


# raw samples


def _picture(path: str) -> Any:
    """Upright, transparent ones on white, RGB."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _texts(job: Job) -> list[str]:
    return [Path(path).read_bytes().decode("utf-8").removeprefix("\ufeff") for path in job["samples"]]


def _arrays(job: Job) -> list[np.ndarray]:
    return [np.load(path, allow_pickle=False).astype(np.float32) for path in job["samples"]]


# what a network is called with, by numpy alone, as the written settings say


def pixels(job: Job, size: int, mean: list[float], std: list[float]) -> np.ndarray:
    """Shorter side to `size` (bicubic), middle square, scaled: float32 [B, 3, size, size]."""
    from PIL import Image

    found = []
    for path in job["samples"]:
        image = _picture(path)
        width, height = (int(size * side / min(image.size)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
        values = (np.asarray(image, np.float64) / 255 - mean) / std
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
    encoded = tokenizer.encode_batch(_texts(job))
    return {"input_ids": np.array([each.ids for each in encoded], np.int64),
            "attention_mask": np.array([each.attention_mask for each in encoded], np.int64)}  # fmt: skip


def _series(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """[B, length, channels] and which values were observed."""
    settings = _settings(job["folder"])
    shape = (len(job["samples"]), settings["length"], settings["channels"])
    values, observed = np.zeros(shape, np.float32), np.zeros(shape, bool)
    for row, series in enumerate(_arrays(job)):
        series = (series[:, None] if series.ndim == 1 else series)[: shape[1]]
        there = np.isfinite(series)
        values[row, : len(series)], observed[row, : len(series)] = np.where(there, series, 0), there
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


# transformers


def _transformers_inputs(job: Job) -> dict[str, Any]:
    """Through the classes that load the written preprocessor."""
    import torch
    import transformers

    folder, modality = job["folder"], job["modality"]
    if modality == "image":
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        return dict(processor([_picture(path) for path in job["samples"]], return_tensors="pt"))
    if modality == "text":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        padding = tokenizer.pad_token is not None
        many = _texts(job) if padding else _texts(job)[:1]
        found = tokenizer(many, padding=padding, truncation=True, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}
    if modality == "audio":
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        return dict(extractor(_arrays(job), sampling_rate=extractor.sampling_rate, max_length=extractor.max_length,
                              truncation=True, padding="max_length", return_tensors="pt"))  # fmt: skip
    values, observed = map(torch.from_numpy, _series(job))
    return {"past_values": values, job["observed"]: observed.float()}


def _mean(job: Job, model: Any, inputs: dict[str, Any], hidden: Any) -> Any:
    """The mean of `last_hidden_state`, as the model card says: [B, D]."""
    if hidden.dim() == 4 and job["modality"] == "image":
        return hidden.mean((2, 3))
    if job["modality"] == "image":
        return hidden[:, job["leading"] :].mean(1)
    if job["modality"] == "series":
        return _series_mean(model.config, hidden, inputs[job["observed"]])
    mask = inputs["attention_mask"]
    mask = model._get_feature_vector_attention_mask(hidden.shape[1], mask) if job["modality"] == "audio" else mask
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _series_mean(config: Any, hidden: Any, observed: Any) -> Any:
    """Over channels and patches [B, C, P, D] of which a value was observed."""
    count = (config.context_length - config.patch_length) // config.patch_stride + 1
    begin = config.context_length - (config.patch_length + config.patch_stride * (count - 1))
    seen = observed[:, begin:].unfold(1, config.patch_length, config.patch_stride).amax(-1).transpose(1, 2)
    hidden = hidden[:, :, hidden.shape[2] - count :]
    return (hidden * seen[..., None]).sum((1, 2)) / seen.sum((1, 2))[:, None]


def _by_transformers(job: Job) -> Found:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kind = getattr(transformers, job["class"])
    model, info = kind.from_pretrained(
        job["folder"], output_loading_info=True, dtype=torch.float32, **job.get("options", {})
    )
    shapes = [name for name, *_ in info["mismatched_keys"]]
    report = _report(transformers, job, _arrays_of(model), {*info["missing_keys"], *shapes}, info["unexpected_keys"])
    model.eval()
    inputs = _transformers_inputs(job)
    with torch.no_grad():
        found = model(**inputs)
        outputs = {name: OUTPUTS[name](job, model, inputs, found) for name in job["outputs"]}
    return report, {name: value.numpy() for name, value in outputs.items()}


def _real_logits(job: Job, model: Any, inputs: dict[str, Any], found: Any) -> Any:
    """[tokens, V] of the first tokens that are no padding."""
    return found.logits[inputs["attention_mask"].bool()][: job["tokens"]]


def _pipeline(job: Job, model: Any, inputs: dict[str, Any], found: Any) -> Any:
    """Ids of the tokens that the pipeline puts in place of the mask, or behind the text, one for each prompt."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(job["folder"])
    run = transformers.pipeline(job["pipeline"], model=model, tokenizer=tokenizer)
    if job["pipeline"] == "fill-mask":
        return torch.tensor([run(prompt, top_k=1)[0]["token"] for prompt in job["prompts"]])
    new = [run(p, max_new_tokens=1, do_sample=False, return_tensors=True)[0] for p in job["prompts"]]
    return torch.tensor([each["generated_token_ids"][-1] for each in new])


OUTPUTS: dict[str, Callable[..., Any]] = {
    "features": lambda job, model, inputs, found: _mean(job, model, inputs, found.last_hidden_state),
    "logits": lambda job, model, inputs, found: found.logits,
    "token_logits": _real_logits,
    "pipeline": _pipeline,
}


# onnxruntime


def _by_onnx(job: Job) -> Found:
    import onnx
    import onnxruntime

    file = str(Path(job["folder"]) / "model.onnx")
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(file).graph.initializer}
    report = _report(onnxruntime, job, stored)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    inputs = _onnx_inputs(job)
    found = dict(zip([each.name for each in session.get_outputs()], session.run(None, inputs), strict=True))
    if "logits" in found:
        found["logits"] = found["logits"][inputs["attention_mask"].astype(bool)][: job["tokens"]]
    return report, found


def _onnx_inputs(job: Job) -> dict[str, np.ndarray]:
    if job["modality"] == "image":
        settings = _settings(job["folder"])
        return {"pixel_values": pixels(job, settings["crop_size"]["height"], settings["image_mean"],
                                       settings["image_std"])}  # fmt: skip
    if job["modality"] == "text":
        return _tokens(job)
    if job["modality"] == "audio":
        return _sounds(job)
    main, observed = job["inputs"]
    values = _series(job)
    return {main: values[0], observed: values[1].astype(np.float32)}


# timm


def _by_timm(job: Job) -> Found:
    from functools import partial

    import timm
    import torch
    from safetensors.numpy import load_file

    options: dict[str, Any] = {"norm_layer": partial(torch.nn.LayerNorm, eps=job["eps"])} if job["eps"] else {}
    model: Any = timm.create_model(f"local-dir:{job['folder']}", pretrained=True, **options).eval()
    stored = load_file(Path(job["folder"]) / "model.safetensors")
    state = _arrays_of(model)
    report = _report(timm, job, state, state.keys() - stored.keys(), stored.keys() - state.keys())
    with torch.no_grad():
        found = model.forward_features(_timm_pixels(job, model))
    tokens = found.mean((2, 3)) if found.dim() == 4 else found[:, model.num_prefix_tokens :].mean(1)
    return report, {"features": tokens.numpy()}


def _timm_pixels(job: Job, model: Any) -> Any:
    """By timm's own transforms, which are torchvision's; where that is a stand-in, by its settings."""
    import importlib.metadata

    import torch

    settings = model.pretrained_cfg
    try:
        importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return torch.from_numpy(pixels(job, settings["input_size"][1], settings["mean"], settings["std"]))
    import timm.data

    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    return torch.stack([transform(_picture(path)) for path in job["samples"]])


# sentence-transformers


def _by_sentence_transformers(job: Job) -> Found:
    import re

    import sentence_transformers
    from safetensors.numpy import load_file

    model = sentence_transformers.SentenceTransformer(job["folder"], device="cpu")
    stored: set[str] = set()
    for path in Path(job["folder"]).rglob("*.safetensors"):
        number = path.parent.name.partition("_")[0] if path.parent != Path(job["folder"]) else "0"
        stored |= {f"{number}.{name}" for name in load_file(path)}
    state = {re.sub(r"^0\.(auto_)?model\.", "0.", name): value for name, value in _arrays_of(model).items()}
    report = _report(sentence_transformers, job, state, state.keys() - stored, stored - state.keys())
    return report, {"embeddings": model.encode(_texts(job), convert_to_numpy=True, show_progress_bar=False)}


FORMATS: dict[str, Callable[[Job], Found]] = {
    "transformers": _by_transformers, "onnx": _by_onnx, "sentence-transformers": _by_sentence_transformers,
    "timm": _by_timm,
}  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
