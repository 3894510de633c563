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
import os
import runpy
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

sys.modules["bigssl"] = None  # type: ignore[assignment] # `import bigssl` fails from here on, here and in libraries
sys.modules["bigssl_kernels"] = None  # type: ignore[assignment]

import numpy as np  # noqa: E402

INPUTS = runpy.run_path(str(Path(__file__).with_name("foreign_inputs.py")))  # with -I there is no import of a neighbour
Job = dict[str, Any]
Found = tuple[dict[str, Any], dict[str, np.ndarray]]


def main(work: Path) -> None:
    os.environ["HF_MODULES_CACHE"] = str(work / "modules")  # where transformers copies code that lies beside weights
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


# transformers


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
    if hidden.dim() == 3:  # of all channels together
        hidden, seen = hidden[:, None], seen.amax(1, keepdim=True)
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
    inputs = INPUTS["transformers_inputs"](job)
    with torch.no_grad():
        found = (model.get_encoder() if job.get("reads") else model)(**inputs, **_shown(job, inputs))
        outputs = {name: OUTPUTS[name](job, model, inputs, found) for name in job["outputs"]}
    return report, {name: value.numpy() for name, value in outputs.items()}


def _shown(job: Job, inputs: dict[str, Any]) -> dict[str, Any]:
    """Of a network that writes: the tokens of the text, one position late."""
    import torch

    ids = inputs.get("input_ids")
    if "start" not in job or ids is None:
        return {}
    return {"decoder_input_ids": torch.cat([torch.full_like(ids[:, :1], job["start"]), ids[:, :-1]], 1)}


def _written(job: Job, model: Any, inputs: dict[str, Any], found: Any) -> Any:
    """Ids of the first tokens that it writes of itself, the one that it begins with apart."""
    import torch

    new = job["new"]
    made = model.generate(**inputs, max_new_tokens=new + 1, do_sample=False, num_beams=1)[:, 1 : new + 1]
    return torch.nn.functional.pad(made, (0, new - made.shape[1]), value=model.config.pad_token_id)


def _real_logits(job: Job, model: Any, inputs: dict[str, Any], found: Any) -> Any:
    """[tokens, V] of the first tokens that are no padding."""
    logits = found.logits if "logits" in found else found.prediction_logits
    return logits[inputs["attention_mask"].bool()][: job["tokens"]]


def _pair_logits(job: Job, model: Any, inputs: dict[str, Any], found: Any) -> Any:
    """[pairs, 2] of pairs of texts, whose segments are what the written tokenizer says."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(job["folder"])
    firsts, seconds = map(list, zip(*job["pairs"], strict=True))
    told = model(**tokenizer(firsts, seconds, padding=True, return_tensors="pt"))
    return next(told[name] for name in ("seq_relationship_logits", "sop_logits", "logits") if name in told)


def _pipeline(job: Job, model: Any, inputs: dict[str, Any], found: Any) -> Any:
    """Ids of the tokens that the pipeline puts in place of the mask, or behind the text, one for each prompt."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(job["folder"])
    if job.get("pipeline_class"):
        model = getattr(transformers, job["pipeline_class"]).from_pretrained(job["folder"])
    run = transformers.pipeline(job["pipeline"], model=model, tokenizer=tokenizer)
    if job["pipeline"] == "fill-mask":
        return torch.tensor([run(prompt, top_k=1)[0]["token"] for prompt in job["prompts"]])
    new = [run(p, max_new_tokens=1, do_sample=False, return_tensors=True)[0] for p in job["prompts"]]
    return torch.tensor([each["generated_token_ids"][-1] for each in new])


def _patches(job: Job, model: Any, inputs: dict[str, Any], found: Any) -> Any:
    """What the head makes of each patch of a series, with nothing hidden (the class hides at random)."""
    return model.head(model.model.encoder(model.model.patchifier(model.model.scaler(
        inputs["past_values"], inputs[job["observed"]])[0])).last_hidden_state)


OUTPUTS: dict[str, Callable[..., Any]] = {
    "features": lambda job, model, inputs, found: _mean(job, model, inputs, found.last_hidden_state),
    "logits": lambda job, model, inputs, found: found.logits,
    "token_logits": _real_logits,
    "pipeline": _pipeline,
    "written": _written,
    "pair_logits": _pair_logits,
    "patches": _patches,
    "forecast": lambda job, model, inputs, found: found.prediction_outputs,
}


# onnxruntime


def _by_onnx(job: Job) -> Found:
    import onnx
    import onnxruntime

    file = str(Path(job["folder"]) / "model.onnx")
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(file).graph.initializer}
    report = _report(onnxruntime, job, stored)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    inputs = INPUTS["onnx_inputs"](job)
    found = dict(zip([each.name for each in session.get_outputs()], session.run(None, inputs), strict=True))
    if "logits" in found:
        found["logits"] = found["logits"][inputs["attention_mask"].astype(bool)][: job["tokens"]]
    return report, found


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
        found = model.forward_features(INPUTS["timm_pixels"](job, model))
    tokens = found.mean((2, 3)) if found.dim() == 4 else found[:, model.num_prefix_tokens :].mean(1)
    return report, {"features": tokens.numpy()}


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
    return report, {"embeddings": model.encode(INPUTS["texts_of"](job), convert_to_numpy=True, show_progress_bar=False)}


FORMATS: dict[str, Callable[[Job], Found]] = {
    "transformers": _by_transformers, "onnx": _by_onnx, "sentence-transformers": _by_sentence_transformers,
    "timm": _by_timm,
}  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]))
