"""`bigssl init`: from somebody's data to a small recipe that runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from shlex import join
from typing import Any

from pydantic import ValidationError

from bigssl.cli.fields import Fields
from bigssl.cli.found import found_data, words_of
from bigssl.cli.options import local
from bigssl.cli.recipes import model
from bigssl.cli.shards import train
from bigssl.config.errors import ConfigError, describe, nearest
from bigssl.config.recipe import Recipe
from bigssl.data.tools.classes import LABEL
from bigssl.engine.plan import preflight
from bigssl.files import write_atomic
from bigssl.objectives.base import Objective, discover, task_name
from bigssl.starter.drafting import Parts, drafted, missing, refuse_unservable
from bigssl.starter.judging import evaluations
from bigssl.starter.looking import Look, check_label
from bigssl.starter.notes import classes_in_words, head_lines, minutes_of, remarks, unjudged
from bigssl.starter.vocabulary import vocabulary_size
from bigssl.starter.writing import page

PROBES = 4  # of a run


def init(
    objective: str, data: str, /, *, out: str | None = None, tokenizer: str | None = None, overwrite: bool = False,
    fields: Fields | None = None,
) -> None:  # fmt: skip
    """
    What does not lie in shards is packed into DATA-shards first, by the options of bigssl shards pack; where nothing
    is held out, a part is; for texts, a tokenizer is trained. Each is shown as the command that does the same.

    Args:
        objective: the pretext, e.g. simclr, byol, mae, clip, mlm
        data: a folder of shards; or files, a table or texts, as `bigssl shards pack` takes them
        out: the recipe that is written (default: DATA-OBJECTIVE.yaml); run and tokenizer are called like it
        tokenizer: a tokenizer.json (default: one is trained on the training part)
        overwrite: replace the recipe, and the tokenizer and shards that were made for it, where they differ
    """
    kind, fields = _task(objective, data), fields or Fields()
    file = local(out or f"{_name(data, objective)}.yaml")
    name = _plain(file.stem)
    _refuse_existing(file, overwrite, "--out with another file")
    words = _words(kind, str(file.with_name(f"{name}-tokenizer.json")), tokenizer, overwrite)
    parts = found_data(data, fields, lambda look: _refuse_unserved(objective, kind, data, look), overwrite)
    _refuse_unserved(objective, kind, data, parts.look)
    label = _label(parts, fields.label)
    _say_found(parts, label)
    options = [*words_of(fields), *(["--out", out] if out else []), *(["--tokenizer", tokenizer] if tokenizer else [])]
    command = join(["bigssl", "init", objective, data, *options])
    if words and not tokenizer:
        _train_tokenizer(parts, data, words)
    values = drafted(name, objective, kind, parts, words)
    values |= _judged(values, parts, label)
    preflight.plan(_valid(values), 1)
    above = head_lines(command, str(file), minutes_of(values))
    below = unjudged(values.get("evaluate", {}), parts, command)
    write_atomic(file, page(above, values, remarks(values, kind, parts), below).encode())
    print(f"{file}: {_in_words(values)}\nnext: {join(['bigssl', 'train', str(file)])}")


def _task(objective: str, data: str) -> type[Objective]:
    known = discover()
    if objective not in known:
        allowed = ", ".join(name for name, kind in known.items() if not kind.__dict__.get("composite"))
        meant = next((name for name in known if name == objective.lower()), "")
        near = f"; nearest: {meant}" if meant else nearest(objective, sorted(known))
        near = f"; the objective comes first: `{join(['bigssl', 'init', data, objective])}`" if data in known else near
        raise ConfigError(f"init: no objective {objective!r}; allowed: {allowed}{near}")
    refuse_unservable(objective, known[objective])
    return known[objective]


def _name(data: str, objective: str) -> str:
    """Of the run: DATA-OBJECTIVE, of DATA the last part without what `init` itself adds."""
    last = local(data).resolve() if "://" not in data else Path(data)
    stem = last.parent.name if last.name == "train" else last.name if last.is_dir() else last.stem
    return f"{_plain(re.sub(r'-(shards|split)$', '', stem))}-{objective}"


def _plain(name: str) -> str:
    """`name` without what a shell or a path may take for something else."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "data"


def _refuse_existing(file: Path, overwrite: bool, allowed: str) -> None:
    if file.is_dir():
        raise ConfigError(f"init: {file} is a folder; allowed: {allowed}")
    if file.exists() and not overwrite:
        raise ConfigError(f"init: {file} exists; allowed: {allowed}, or --overwrite")


def _refuse_unserved(objective: str, kind: type[Objective], data: str, look: Look) -> None:
    """The early no: what is missing, and what these data serve."""
    if not (lack := missing(kind, look)):
        return
    simple = {name: each for name, each in discover().items() if not each.__dict__.get("composite")}
    serving = [name for name, each in simple.items() if not missing(each, look)]
    partly = any(look.partly(takes.modality) for takes in kind.takes.values())
    remedies = ["remove these samples, or add what they lack"] if partly else []
    remedies += [f"allowed with these data: {', '.join(serving)}"] if serving else []
    then = "; ".join(remedies) or _unserved(simple, look)
    raise ConfigError(f"init {objective}: {data} has {look.described()}, but {lack}; {then}")


def _unserved(simple: Mapping[str, type[Objective]], look: Look) -> str:
    found = ", ".join(look.held)
    if not found:
        return "no objective takes such data; `bigssl shards pack --help` says what becomes samples"
    held = set(look.held)
    if takers := [name for name, each in simple.items() if {takes.modality for takes in each.takes.values()} <= held]:
        return f"{', '.join(takers)} would take {found}, but not as they are"
    return (
        f"no objective takes {found} yet: `bigssl shards pack`, `stats`, `clean` and `split` work on them, there are "
        "backbones for them (README), and docs/extend.md shows how an objective is added, in one file"
    )


def _label(parts: Parts, asked: str | None) -> str | None:
    """The field of the json by which is judged; None where there is none. asked: --label."""
    looks = [look for look in (parts.look, parts.look_at_held) if look is not None]
    if parts.label is not None:
        check_label(parts.label, asked, *looks)
        return parts.label
    return LABEL if LABEL in parts.look.classes() and all(LABEL in look.labels for look in looks) else None


def _say_found(parts: Parts, label: str | None) -> None:
    held = f", {parts.look_at_held.samples} held out in {parts.held}" if parts.look_at_held else f"; {parts.why}"
    print(f"found: {parts.look.samples} samples with {parts.look.described()}{held}")
    if label:
        print(f"found: {classes_in_words(parts.look, label)}")
    elif LABEL in parts.look.labels:
        print(f"found: one {LABEL} for all samples, by which nothing can be judged")


def _words(kind: type[Objective], file: str, tokenizer: str | None, overwrite: bool) -> str:
    """The tokenizer of the recipe: the one that is given, or `file`, to be trained; "" where none is needed."""
    if not any(takes.modality == "text" for takes in kind.takes.values()):
        if tokenizer:
            raise ConfigError(f"init: --tokenizer {tokenizer} has no effect: {task_name(kind)} takes no text")
        return ""
    if not tokenizer:
        use = f"--tokenizer {file} to read it, --out with another file to have one trained beside that"
        _refuse_existing(Path(file), overwrite, use)
    return tokenizer or file


def _train_tokenizer(parts: Parts, data: str, file: str) -> None:
    size = vocabulary_size(parts.look, data)
    print(join(["bigssl", "tokenizer", "train", parts.train, file, "--vocab-size", str(size)]))
    train(parts.train, file, vocab_size=size)


def _judged(values: Mapping[str, Any], parts: Parts, label: str | None) -> dict[str, Any]:
    """The sections `probe` and `evaluate`."""
    if not parts.held:
        return {}
    sections = evaluations(_valid(values), parts, label)
    if not sections:
        return {}
    first = next(iter(sections))
    return {"probe": {"every": max(1, values["steps"] // PROBES), first: sections[first]}, "evaluate": sections}


def _valid(values: Mapping[str, Any]) -> Recipe:
    kind = model()
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(*describe(error, "init", kind.model_json_schema())) from None


def _in_words(values: Mapping[str, Any]) -> str:
    networks = ", ".join(f"{name} ({section['type']})" for name, section in values["backbones"].items())
    judged = f", judged by {', '.join(values['evaluate'])}" if "evaluate" in values else ""
    return f"{values['steps']} steps of {values['batch']['size']} samples; {networks}{judged}"
