"""What a recipe names beside numbers: folders of networks, and tokenizers. Looked into before anything is loaded.

A hub is asked for a name alone (`bert-base-uncased`, `google/vit-base-patch16-224`), never for what looks like a path
that is not there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bigssl.config.errors import ConfigError
from bigssl.config.places import EXPORT, instead
from bigssl.config.recipe import BackboneConfig
from bigssl.nets.pool import IMAGE_MEAN, IMAGE_STD

CONFIG, TOKENIZER, PREPROCESSOR = "config.json", "tokenizer.json", "preprocessor_config.json"
REST = "README.md"  # in an export, beside the networks
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")


def check_pretrained(where: str, config: BackboneConfig) -> None:
    """Refuse a folder that holds no network, or another than the fields of the backbone say.

    Args:
        where: the recipe field of the backbone.
    Raises:
        ConfigError: field, value, what is there.
    """
    given = config.init_from
    if given is None or not _is_path(given):
        return
    folder, field = Path(given), f"{where}.init_from: value {given!r}"
    if not (folder / CONFIG).is_file():
        why = f"no folder of this name{_tilde(given)}" if not folder.is_dir() else f"no {CONFIG} in it"
        raise ConfigError(f"{field}: {why}{instead(folder, _is_network)}")
    if not _has_weights(folder):
        raise ConfigError(f"{field}: it has a {CONFIG}, but no weights ({', '.join(WEIGHTS[:1])}); allowed: a folder "
                          "with both, or no init_from and the fields of this network under config")  # fmt: skip
    kind = _read(f"{field}: {CONFIG}", folder / CONFIG).get("model_type")
    if kind is not None and kind != config.type:
        raise ConfigError(f"{where}.type: value {config.type!r}; allowed: {kind}, which {given} holds")
    _check_rate(where, config, folder)


def with_network_folder(name: str, config: BackboneConfig) -> BackboneConfig:
    """`config` whose `init_from` is the folder of a network: of a run, or its export, that of the backbone `name`, or
    the only one of its type. As it is where there is none (`check_pretrained` then says so), or it is no folder."""
    if config.init_from is None or (Path(config.init_from) / CONFIG).is_file():
        return config
    export = next((p for p in (Path(config.init_from), Path(config.init_from) / EXPORT) if (p / REST).is_file()), None)
    if export is None:
        return config
    mine = [path.parent for path in sorted(export.glob(f"*/{CONFIG}"))
            if _read(f"backbones.{name}.init_from", path).get("model_type") == config.type]  # fmt: skip
    found = [path for path in mine if path.name == name] or mine
    return config.model_copy(update={"init_from": str(found[0])}) if len(found) == 1 else config


def check_tokenizer(where: str, config: BackboneConfig) -> None:
    """Refuse a tokenizer that is not there, or gives tokens other ids than the one in the folder of the network.

    Raises:
        ConfigError: field, value, what is there.
    """
    if config.tokenizer is None:
        return
    field, path = f"{where}.tokenizer: value {config.tokenizer!r}", Path(config.tokenizer)
    file = path / TOKENIZER if path.is_dir() else path
    if not file.is_file():
        why = f"no {TOKENIZER} in it" if path.is_dir() else "no such file or folder"
        raise ConfigError(f"{field}: {why}{instead(path, _is_tokenizer)}; or train one with `bigssl tokenizer train`")
    if config.init_from is not None and (own := Path(config.init_from) / TOKENIZER).is_file():
        _same_ids(field, config.init_from, ids_of(_read(field, file)), ids_of(_read(field, own)))


_NORMALISING = {"image_mean", "image_std", "mean", "std", "do_normalize", "do_rescale"}


def other_normalisation(folder: str) -> str:
    """What to know of a network that has learnt from pictures of other numbers than it will see here."""
    said = foreign_numbers(Path(folder))
    return said and f"; it has learnt from pictures normalised by {said}, and sees {IMAGE_MEAN} and {IMAGE_STD} here"


def foreign_numbers(folder: Path) -> str:
    """How the files beside a network, of transformers or timm, want pictures normalised, where that is not as it is
    done here; else ""."""
    files = [path for path in (folder / PREPROCESSOR, folder / CONFIG) if path.is_file()]
    settings = [_read("init_from", path) for path in files]
    kept = next((each for each in (*settings, *(s.get("pretrained_cfg") or {} for s in settings))
                 if _NORMALISING & each.keys() and "sampling_rate" not in each), {})  # fmt: skip
    steps = [f"{step} false" for step in ("do_rescale", "do_normalize") if kept.get(step) is False]
    said = []
    for name, ours in (("mean", IMAGE_MEAN), ("std", IMAGE_STD)):
        value = kept.get("image_" + name, kept.get(name, ours))
        said += [] if value in (ours, [ours], [ours] * 3) else [f"{name} {value}"]
    return " and ".join(steps + said)


def _same_ids(field: str, pretrained: str, given: dict[str, int], own: dict[str, int]) -> None:
    """A network has learnt its tokens by their ids; further ones may follow them."""
    other = [token for token, number in own.items() if given.get(token) != number]
    if other:
        token = other[0]
        now = f"is {given[token]} here" if token in given else "is none here"
        raise ConfigError(
            f"{field}: {len(other)} of {len(own)} tokens of {pretrained} have other ids in it ({token!r} is "
            f"{own[token]} there and {now}), so the network would take them for others; allowed: {pretrained}"
        )


def ids_of(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Ids by token of the content of a tokenizer.json."""
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: [token, score]
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    return vocabulary | {added["content"]: added["id"] for added in tokenizer.get("added_tokens") or []}


def _check_rate(where: str, config: BackboneConfig, folder: Path) -> None:
    """A network of sound has learnt at one rate; nothing else would tell of another."""
    if config.rate is None or not (folder / PREPROCESSOR).is_file():
        return
    rate = _read(f"{where}.init_from: {PREPROCESSOR}", folder / PREPROCESSOR).get("sampling_rate")
    if rate not in (None, config.rate):
        raise ConfigError(f"{where}.rate: value {config.rate}; allowed: {rate}, at which {folder} was trained")


def _read(what: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{what}: {path} cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{what}: {path} is no JSON object")
    return found


def _is_path(name: str) -> bool:
    """Whether it is here, or cannot be meant for a hub, whose names are NAME or OWNER/NAME."""
    first, *rest = name.split("/")
    return (
        Path(name).exists() or len(rest) > 1 or name.endswith("/") or first in ("", "runs") or first[0] in ".~"
        or (bool(rest) and Path(first).is_dir())
    )  # fmt: skip


def _tilde(name: str) -> str:
    return f" (~ is not expanded here; write {Path(name).expanduser()})" if name.startswith("~/") else ""


def _is_network(path: Path) -> bool:
    return (path / CONFIG).is_file() and _has_weights(path)


def _has_weights(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in WEIGHTS)


def _is_tokenizer(path: Path) -> bool:
    return path.match("tokenizer*.json") and path.name != "tokenizer_config.json" and path.is_file()
