"""What of a recipe is compared on one process and several: its tasks, one by one, over small networks of its kinds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from bigssl.config.recipe import Recipe
from bigssl.engine.plan.preflight import load_tokenizer
from bigssl.nets.towers import hf_config
from bigssl.nets.vision.sizes import with_named_size
from bigssl.objectives.base import discover

WHOLE = "objective"
_FEWEST = 16  # samples of a pass, where ranks are few
_LAYERS, _WIDE, _HEADS = 2, 256, 4
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers")
_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim")
_HEADED = ("num_attention_heads", "n_head", "n_heads", "encoder_attention_heads", "decoder_attention_heads")
_INNER = ("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "n_inner", "hidden_dim")


def tasks_alone(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The recipe's task, and of a joint one each of its parts as a task by itself: by name, values of a recipe that
    trains it."""
    values: dict[str, Any] = json.loads(recipe.model_dump_json())
    found = {WHOLE: values}
    if values["objective"]["name"] == "joint":
        found |= {f"part {name}": _alone(values, part) for name, part in values["objective"]["parts"].items()
                  if part.get("shares") is None}  # fmt: skip
    return found


def _alone(values: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    own = {field: value for field, value in part.items() if field not in ("weight", "shares")}
    bodies = {own[field] for field in discover()[own["name"]].takes}
    return values | {
        "objective": own,
        "backbones": {name: body for name, body in values["backbones"].items() if name in bodies},
        "data": values["data"] | {"sources": {own["source"]: values["data"]["sources"][own["source"]]}},
    }


def smaller(recipe: Recipe, values: dict[str, Any], world: int, out: str) -> Iterator[tuple[dict[str, Any], str]]:
    """`values` with less to compute, and what was made smaller in words; the smallest first, further ones for where a
    network or task refuses it.

    What decides whether ranks agree is kept: every field of the task, the kinds of networks, precision, ZeRO stage and
    its options, sources, seed. A loss sees `batch.accum` passes, two at most, of few samples.
    """
    accum = 1 if recipe.batch.cached else min(_accum(recipe, world), 2)
    size = world * accum * max(2, math.ceil(_FEWEST / (world * accum)))
    sources = {name: source | {"batch": None} for name, source in values["data"]["sources"].items()}
    rest = values | {
        "out": out, "start_from": None, "probe": None, "evaluate": None, "optim": {"name": "adamw", "clip": 0.0},
        "batch": {"size": size, "accum": accum, "cached": recipe.batch.cached},
        "data": values["data"] | {"sources": sources, "workers": 0, "ledger": False},
    }  # fmt: skip
    passes = f"{size} samples of each source" + (f" in {accum} passes" if accum > 1 else "")
    for wide in (False, True):
        bodies = {name: _body(recipe, name, wide=wide) for name in values["backbones"]}
        yield rest | {"backbones": bodies}, f"{passes}, {_LAYERS} layers or blocks of each network" + (
            "" if wide else f", {_WIDE} wide at most")  # fmt: skip
    plain = {name: body | {"compile": False, "init_from": None, "allow_partial": False}
             for name, body in values["backbones"].items()}  # fmt: skip
    yield rest | {"backbones": plain}, f"{passes}, networks as they are"


def _accum(recipe: Recipe, world: int) -> int:
    batch = recipe.batch
    return batch.accum or (max(batch.size // (batch.micro * world), 1) if batch.micro else 1)


def _body(recipe: Recipe, name: str, *, wide: bool) -> dict[str, Any]:
    """A backbone's section with few layers, and where it is not to stay `wide`, narrow ones; weights from the seed."""
    section = recipe.backbones[name]
    tokenizer = load_tokenizer(section.tokenizer) if section.tokenizer else None
    hf = hf_config(f"backbones.{name}", section, tokenizer)
    fields: dict[str, Any] = dict(with_named_size(section).config)
    if section.init_from is not None:
        fields = {key: value for key, value in hf.to_diff_dict().items() if key in type(hf)().to_dict()} | fields
        for key in ("transformers_version", "model_type", "architectures", "dtype", "layer_types"):
            fields.pop(key, None)
    own, known = hf.to_dict(), type(hf)().to_dict()  # attributes go by further names, which are no fields
    own = {key: value for key, value in own.items() if key in known}
    fields |= {key: min(own[key], _LAYERS) for key in _DEPTHS if isinstance(own.get(key), int)}
    if isinstance(depths := own.get("depths"), list):
        fields["depths"] = [1] * len(depths)
    if not wide:
        fields |= _narrow(own)
    kept: dict[str, Any] = json.loads(section.model_dump_json())
    return kept | {"type": hf.model_type, "config": fields, "init_from": None, "allow_partial": False, "compile": False}


def _narrow(own: dict[str, Any]) -> dict[str, Any]:
    """Fields of a network that is as wide as _WIDE, of those of one that is wider."""
    wide = [key for key in _WIDTHS if isinstance(own.get(key), int) and own[key] > _WIDE]
    if not wide:
        return {}
    found: dict[str, Any] = dict.fromkeys(wide, _WIDE)
    found |= {key: _HEADS for key in _HEADED if isinstance(own.get(key), int)}
    found |= {key: 2 * _WIDE for key in _INNER if isinstance(own.get(key), int)}
    if isinstance(shared := own.get("num_key_value_heads"), int):
        found["num_key_value_heads"] = math.gcd(shared, _HEADS)
    if isinstance(own.get("head_dim"), int):
        found["head_dim"] = _WIDE // _HEADS
    return found
