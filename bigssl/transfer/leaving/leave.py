"""Parts of an export in the format of another library: all proven, or nothing is there."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

from bigssl.config.errors import ConfigError
from bigssl.files import fsync
from bigssl.transfer.leaving.card import Made, left_card
from bigssl.transfer.leaving.export import ExportError, made_readable
from bigssl.transfer.leaving.parts import Listed, UnfitError
from bigssl.transfer.leaving.proof import SAMPLES, Claim, Proof, prove
from bigssl.transfer.leaving.samples import some_samples
from bigssl.transfer.leaving.to_onnx import to_onnx
from bigssl.transfer.leaving.to_sentence_transformers import to_sentence_transformers
from bigssl.transfer.leaving.to_timm import to_timm
from bigssl.transfer.leaving.to_transformers import to_transformers

Format = Literal["transformers", "timm", "onnx", "sentence-transformers"]
WRITERS: dict[str, Callable[..., list[Claim]]] = {
    "transformers": to_transformers, "timm": to_timm, "onnx": to_onnx,
    "sentence-transformers": to_sentence_transformers,
}  # fmt: skip
assert set(WRITERS) == set(get_args(Format))
WRITTEN_WITH = {"onnx": ("onnx", "onnxscript")}
PROVEN_WITH = {"timm": ("timm", "torchvision"), "onnx": ("onnx", "onnxruntime"),
               "sentence-transformers": ("sentence_transformers",)}  # fmt: skip


def check_libraries(name: Format, python: str) -> None:
    """Raises ConfigError where what the format needs is not installed: here, and in the environment of the proof as far
    as that is this one."""
    needed = [*WRITTEN_WITH.get(name, ()), *(PROVEN_WITH.get(name, ()) if python == sys.executable else ())]
    lacking = [module for module in dict.fromkeys(needed) if importlib.util.find_spec(module) is None]
    if lacking:
        raise ConfigError(
            f"--format: value {name!r}: {' and '.join(lacking)} not installed here; allowed: after "
            f"pip install 'bigssl[{name}]'" + ("" if WRITTEN_WITH.get(name) else ", or --python of an environment "
                                               "that has it")
        )
    if shutil.which(python) is None:
        raise ConfigError(f"--python: value {python!r}: no program of this name; allowed: the interpreter of an "
                          "environment that has the library")  # fmt: skip


def leave(
    export: Path, parts: Sequence[Listed], name: Format, to: Path, made: Made, data: Sequence[str],
    *, python: str = sys.executable, apart: bool,
) -> tuple[dict[str, list[Proof]], list[str]]:  # fmt: skip
    """Writes `to` in one step: weights, preprocessor, README.md and proof.json of each part. Returns the proofs by
    part, and what was left out, in sentences.

    Args:
        parts: those that the format cannot hold are left out, unless it is none.
        to: a new or empty folder.
        made: what the card says of the run.
        data: URLs of shards that hold samples to prove with.
        python: interpreter of the environment that the proof is made in.
        apart: each part in a folder of its name below `to`, also a single one.
    Raises:
        UnfitError: the format can hold none of them.
        ProofError: the library reloads another network. Nothing is left in `to`.
        DataError: there are no samples, or something of the export is not there.
    """
    staging = to.with_name(f".{to.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        claims, left_out = _written(export, parts, name, staging, data, apart)
        proofs: dict[str, list[Proof]] = {}
        found = iter(prove([claim for part in claims.values() for claim in part], python))
        for part, own in claims.items():
            proofs[part] = [next(found) for _ in own]
            for claim, proof in zip(own, proofs[part], strict=True):
                proof.write(claim.folder)
            root = staging / part if apart else staging
            (root / "README.md").write_text(left_card(part, own, proofs[part], made, root))
        _publish(staging, to)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return proofs, left_out


def _written(
    export: Path, parts: Sequence[Listed], name: Format, staging: Path, data: Sequence[str], apart: bool
) -> tuple[dict[str, list[Claim]], list[str]]:
    claims: dict[str, list[Claim]] = {}
    unfit: list[UnfitError] = []
    for listed in parts:
        part, folder = listed.load(export), staging / listed.name if apart else staging
        seen = {role: some_samples(data, member.takes, SAMPLES) for role, member in part.members.items()}
        folder.mkdir(exist_ok=True)
        try:
            claims[part.name] = WRITERS[name](part, folder, seen)
        except UnfitError as error:
            shutil.rmtree(folder)
            unfit.append(error)
    if not claims:
        raise unfit[0] if len(unfit) == 1 else ExportError(f"--format: value {name!r} holds no part of this export: "
                                                           + "; ".join(map(str, unfit)))
    return claims, [str(error) for error in unfit]


def _publish(staging: Path, to: Path) -> None:
    made_readable(staging, next(staging.rglob("README.md")).stat().st_mode)
    for path in staging.rglob("*"):
        if path.is_file():
            fsync(path)
    if to.is_dir():
        to.rmdir()  # empty
    staging.rename(to)
    fsync(to.parent)
