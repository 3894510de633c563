"""`bigssl export`: a finished run in the format of another library."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from cyclopts import Parameter
from safetensors import SafetensorError

from bigssl import exits
from bigssl.cli.recipes import model
from bigssl.cli.transfer.public import licences, placeless, placeless_in
from bigssl.config.errors import ConfigError, say
from bigssl.config.places import CONFIG, EXPORT, seen_from
from bigssl.config.recipe import Recipe, load_recipe
from bigssl.data.loading import process
from bigssl.transfer.leaving.leave import Format

if TYPE_CHECKING:
    from bigssl.transfer.leaving.card import Made
    from bigssl.transfer.leaving.parts import Listed

SHOWN = ("objective", "backbones", "steps", "batch", "optim", "precision", "seed")  # of a recipe, in the card


def export(
    run: Path, /, *, format: Format, to: Path, part: str | None = None, data: str | None = None,
    license: str = "other", push: str | None = None, python: Annotated[str, Parameter(show_default=False)] = "",
) -> int:  # fmt: skip
    """Weights, tokenizer or preprocessor, a model card, and proof.json: reloaded by the library in a process without
    bigssl, with every tensor, and giving the same for real samples. What cannot be proven is not written, and ends with
    exit status 1.

    Args:
        run: a finished run, for example runs/demo
        format: transformers, timm, onnx or sentence-transformers
        to: a new or empty folder
        part: a network of the run's export (or a head of two, such as clip), whose files go into --to itself; without,
            all that the format can hold, each in a folder of its name
        data: shards for the proof, where those of the run are not at hand
        license: of the weights, as a hub calls it (apache-2.0 ...), for the card
        push: OWNER/NAME on the Hugging Face hub, made private where it is new; only what is asked for is uploaded
        python: interpreter of another environment that has the library, to prove it there
    """
    from bigssl.transfer.leaving.leave import check_libraries, leave
    from bigssl.transfer.leaving.parts import chosen_parts
    from bigssl.transfer.leaving.proof import ProofError

    interpreter = python or sys.executable
    recipe = _recipe_of(run)
    check_libraries(format, interpreter)
    place = _place(to)
    parts = chosen_parts(_parts(run), part)
    process.use_data_settings(recipe.data)
    urls = [data] if data else [url for source in recipe.data.sources.values() for url in source.urls.values()]
    options = {"format": format, "to": str(to), "part": part, "data": data, "push": push,
               "license": license if license != "other" else None, "python": python}  # fmt: skip
    made = _made(run, recipe, _command(run, options), license)
    try:
        proofs, left_out = leave(run / EXPORT, parts, format, place, made, urls, python=interpreter, apart=part is None)
    except ProofError as error:
        say(error, "not exported: ")
        return exits.FAILED
    for line in left_out:
        print(f"left out: {line}")
    for name, found in proofs.items():
        for proof in found:
            print(f"{name}: {proof.loader}, {proof.tensors_loaded} of {proof.tensors_total} tensors, "
                  f"{proof.samples} samples differ by at most {proof.max_abs_difference:.1e}")  # fmt: skip
    print(f"exported to {to}")
    return _pushed(place, push) if push else exits.DONE


def _recipe_of(run: Path) -> Recipe:
    if not (run / CONFIG).is_file():
        why = f"no such folder{seen_from(run)}" if not run.exists() else f"not a run folder (no {CONFIG} in it)"
        raise ConfigError(f"{run}: {why}; run folders are under runs/")
    return load_recipe(run / CONFIG, [], model())


def _parts(run: Path) -> dict[str, Listed]:
    """Raises ConfigError where the run has no export, or one that does not say what its heads belong to."""
    from bigssl.objectives.exported import about_export, heads_of_export
    from bigssl.transfer.leaving.parts import parts_of

    if not (run / EXPORT).is_dir():
        raise ConfigError(f"{run}: no export in it; it is written at the end of a run: run the same training command "
                          "again")  # fmt: skip
    try:
        about_export(run / EXPORT)
        heads = heads_of_export(run / EXPORT)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"{run / EXPORT}: of an older version, or not whole ({error}); run the same training command "
                          "again") from None  # fmt: skip
    return parts_of(run / EXPORT, heads)


def _place(to: Path) -> Path:
    """The folder itself, where `to` is a link to it. Raises ConfigError where nothing can be put in its place."""
    place = to.resolve()
    why = ""
    if os.path.lexists(to) and not to.is_dir():
        why = "is no folder"
    elif place.is_dir() and any(place.iterdir()):
        why = f"holds {min(path.name for path in place.iterdir())}"
    elif place == Path.cwd() or (place.is_dir() and os.path.ismount(place)):
        why = "cannot be replaced, being " + ("where you are" if place == Path.cwd() else "where a disk is mounted")
    if why:
        raise ConfigError(f"--to: value {str(to)!r}: {why}; allowed: a new or empty folder")
    return place


def _command(run: Path, options: Mapping[str, str | None]) -> str:
    given = [word for name, value in options.items() if value for word in (f"--{name}", placeless(value))]
    return shlex.join(["bigssl", "export", placeless(str(run)), *given])


def _made(run: Path, recipe: Recipe, command: str, license: str) -> Made:
    from bigssl.transfer.leaving.card import Made
    from bigssl.transfer.scorecard import FILE

    written: dict[str, Any] = yaml.safe_load((run / CONFIG).read_text())
    rows = json.loads((run / FILE).read_text())["tasks"] if (run / FILE).is_file() else {}
    urls = {name: list(source.urls.values()) for name, source in recipe.data.sources.items()}
    data = {name: ", ".join(map(placeless, own)) for name, own in urls.items()}
    recipe_shown = placeless_in({name: written[name] for name in SHOWN if name in written})
    return Made(run.resolve().name, command, data, recipe_shown, license, licences(urls), rows)


def _pushed(to: Path, repository: str) -> int:
    from huggingface_hub import HfApi

    from bigssl.transfer.leaving.push import push_to_hub

    try:
        print(f"pushed to {push_to_hub(to, repository, HfApi())}")
    except Exception as error:  # of whichever client the hub is asked by: its errors have no common base
        said = " ".join(str(error).split())[:300] or type(error).__name__
        say(RuntimeError(f"--push: value {repository!r}: {said}; {to} is written and proven"), "not pushed: ")
        return exits.FAILED
    return exits.DONE
