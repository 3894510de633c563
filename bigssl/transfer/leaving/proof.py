"""A proof that an export is right: reloaded by the library it is for, in a process of its own where bigssl cannot be
imported, it gives what our network gives, for real samples that went through the written preprocessor.

    folder, raw samples ── foreign.py (another process) ── outputs, tensors that are missing ┐
    network, samples ───── our view and pass ─────────────────────────────────── outputs ────┴─ Proof, or ProofError
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from bigssl.data.errors import DataError

FILE = "proof.json"
TOLERANCE = 1e-5
SAMPLES = 8
SCRIPT = Path(__file__).with_name("foreign.py")
SHOWN = 3


class ProofError(DataError):
    """An export that its library does not load, or loads as another network."""


@dataclass(frozen=True)
class Proof:
    """What was found, as it is written to FILE.

    Attributes:
        format: as `bigssl export --format` has it.
        library, version: what reloaded it.
        loader: the call that did.
        samples: how many were compared.
        max_abs_difference: between our outputs and theirs, all of them.
        largest: the largest absolute value of an output of ours.
        tolerance: of the difference, times `largest` where that is above 1.
        tensors_loaded, tensors_total: of the reloaded network; loaded ones equal those of the file bit by bit.
        missing, unexpected: names of tensors that the network has and the file has not, and the other way round.
        untrained: names of those that nothing has trained and features do not pass through; they are in the file as
            transformers makes them, since its class cannot do without.
    """

    format: str
    library: str
    version: str
    loader: str
    samples: int
    max_abs_difference: float
    largest: float
    tolerance: float
    tensors_loaded: int
    tensors_total: int
    missing: list[str]
    unexpected: list[str]
    untrained: list[str]

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n")


@dataclass(frozen=True)
class Claim:
    """What is to be proven of a folder.

    Attributes:
        part: what leaves, by its name in the export.
        folder: holds the files of the format.
        format: as in `Proof`.
        loader: the call that loads it, for people, with {folder} in place of the folder.
        load: how `foreign.py` loads and calls it, JSON: see there.
        samples: raw contents: files of pictures, UTF-8 texts, `.npy` of series and sounds.
        outputs: of our network for these samples, by name: float32, or whole numbers, which have to be equal.
        tensors: all that is to be found in the reloaded network, by name there; see `digests`.
        untrained: as in `Proof`.
        before: what is to be done to samples before the written preprocessor sees them, in sentences.
    """

    part: str
    folder: Path
    format: str
    loader: str
    load: Mapping[str, Any]
    samples: Sequence[bytes]
    outputs: Mapping[str, np.ndarray] = field(repr=False)
    tensors: Mapping[str, str] = field(repr=False)
    untrained: Sequence[str] = ()
    before: str = ""

    @property
    def call(self) -> str:
        return self.loader.format(folder="DIR")


def arguments(options: Mapping[str, Any]) -> str:
    """Of a call, behind its first one."""
    return "".join(f", {key}={value}" for key, value in options.items())


def digests(state: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of each tensor, on the CPU: outputs of a small network say little of a single one of its weights."""
    return {name: hashlib.sha256(value.detach().contiguous().numpy().tobytes()).hexdigest()
            for name, value in state.items()}  # fmt: skip


def prove(claims: Sequence[Claim], python: str = sys.executable) -> list[Proof]:
    """A proof of each claim.

    Args:
        python: the interpreter of an environment that has the libraries.
    Raises:
        ProofError: a claim is wrong; the message says what of it.
    """
    proofs = []
    for found in judged(claims, python):
        if isinstance(found, ProofError):
            raise found
        proofs.append(found)
    return proofs


def judged(claims: Sequence[Claim], python: str = sys.executable) -> list[Proof | ProofError]:
    """The proof of each claim, or what is wrong with it. One process reloads them all."""
    with tempfile.TemporaryDirectory(prefix="bigssl-proof-") as scratch:
        work = Path(scratch)
        (work / "jobs.json").write_text(json.dumps([_job(work, number, each) for number, each in enumerate(claims)]))
        done = subprocess.run([python, "-I", str(SCRIPT), str(work)], cwd=work, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise ProofError(f"{python}: the process that reloads the export ended with {done.returncode}: {said}")
        return [_judged(claim, work / f"{number}") for number, claim in enumerate(claims)]


def _job(work: Path, number: int, claim: Claim) -> dict[str, Any]:
    folder = work / f"{number}"
    folder.mkdir()
    names = []
    for place, data in enumerate(claim.samples):
        names.append(str(folder / f"sample-{place:03d}"))
        Path(names[-1]).write_bytes(data)
    return {"folder": str(claim.folder.resolve()), "format": claim.format, "samples": names, "out": str(folder),
            "tensors": dict(claim.tensors), **claim.load}  # fmt: skip


def _judged(claim: Claim, out: Path) -> Proof | ProofError:
    try:
        return _proven(claim, out)
    except ProofError as error:
        return error


def _proven(claim: Claim, out: Path) -> Proof:
    report = json.loads((out / "report.json").read_text())
    where = f"part {claim.part!r}, {claim.format}"
    if "error" in report:
        raise ProofError(f"{where}: {claim.call} failed: {report['error']}")
    wrong = {"missing": report["missing"], "of other values": report["other"], "not part of it": report["unexpected"]}
    if any(wrong.values()):
        said = "; ".join(f"{what}: {_some(names)}" for what, names in wrong.items() if names)
        raise ProofError(f"{where}: {claim.call} loads {report['loaded']} of {report['total']} tensors; {said}")
    with np.load(out / "outputs.npz") as found:
        theirs = dict(found)
    worst = largest = 0.0
    for name, ours in claim.outputs.items():
        difference, size = _compared(f"{where}: {name}", claim, ours, theirs.get(name))
        worst, largest = max(worst, difference), max(largest, size)
    return Proof(
        claim.format, report["library"], report["version"], claim.call, len(claim.samples), worst, largest,
        TOLERANCE, report["loaded"], report["total"], report["missing"], report["unexpected"], list(claim.untrained),
    )  # fmt: skip


def _compared(where: str, claim: Claim, ours: np.ndarray, theirs: np.ndarray | None) -> tuple[float, float]:
    """(largest difference, largest value) of an output; of whole numbers (ids), which have to be equal, (0, 0)."""
    if theirs is None or theirs.shape != ours.shape:
        found = "not given" if theirs is None else f"of shape {list(theirs.shape)}"
        raise ProofError(f"{where} is {found} there; ours is {list(ours.shape)}")
    if ours.dtype.kind in "iu":
        if not np.array_equal(ours, theirs):
            raise ProofError(f"{where} gives {theirs.tolist()} after {claim.call}; ours is {ours.tolist()}")
        return 0.0, 0.0
    difference = float(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0))
    size = float(np.abs(ours).max(initial=0))
    if not difference <= (allowed := TOLERANCE * max(1.0, size)):
        raise ProofError(f"{where} of {len(claim.samples)} samples differ by up to {difference:.2g} from ours after "
                         f"{claim.call}; allowed: {allowed:.2g}")
    return difference, size


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
