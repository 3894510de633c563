"""Every type of backbone in every format that can hold it, reloaded without bigssl. Too long for CI (minutes);
`bash launch/foreign.sh` runs it.

    python tests/transfer/leaving/every_type.py FORMAT[,FORMAT ...] [--python INTERPRETER] [--only TYPE,TYPE ...]

Prints a line for each: the largest difference, or why it is refused; ends with 1 where a proof fails.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "tests" / "nets")]
warnings.simplefilter("ignore")

import test_kinds as tiny  # noqa: E402

from bigssl.config.recipe import BackboneConfig  # noqa: E402
from bigssl.data.kinds.text import load_tokenizer  # noqa: E402
from bigssl.data.sample import Sample  # noqa: E402
from bigssl.data.shards.index import DatasetIndex  # noqa: E402
from bigssl.nets import towers  # noqa: E402
from bigssl.nets.heads.base import Head, masked_head  # noqa: E402
from bigssl.nets.heads.writing import BIAS  # noqa: E402
from bigssl.nets.modality import modality_of_type  # noqa: E402
from bigssl.nets.modality.kinds import AUDIO, CAUSAL, ENCODER_DECODER, IMAGE, SERIES, TEXT  # noqa: E402
from bigssl.transfer.features import read_samples  # noqa: E402
from bigssl.transfer.inputs import input_of  # noqa: E402
from bigssl.transfer.leaving import proof  # noqa: E402
from bigssl.transfer.leaving.export import export_run  # noqa: E402
from bigssl.transfer.leaving.leave import WRITERS  # noqa: E402
from bigssl.transfer.leaving.parts import Listed, UnfitError  # noqa: E402
from bigssl.transfer.leaving.proof import Claim, ProofError  # noqa: E402


def tower(kind: str, modality: str, files: dict[int, Path]) -> towers.Tower:
    fields: dict[str, object] = {"type": kind, "config": tiny.config(kind)}
    if modality == "text":
        file = files[int(kind == "mpnet")]
        fields |= {"tokenizer": str(file), "length": 16}
    tokenizer = load_tokenizer(files[int(kind == "mpnet")]) if modality == "text" else None
    fields |= {"image": {"size": tiny.SIZES.get(kind, 32)}, "series": {"channels": 6, "length": 16},
               "audio": {"rate": 8000, "length": 800}}.get(modality, {})  # fmt: skip
    torch.manual_seed(0)
    found = towers.Tower("net", BackboneConfig(**fields), tokenizer)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, value in found.model.state_dict().items():
            if value.is_floating_point() and "running" not in name:
                value.add_(0.1 * torch.rand(value.shape))
    return found


def samples(modality: str) -> list[Sample]:
    if modality == "audio":
        import soundfile

        found = []
        for number in range(4):
            file = io.BytesIO()
            soundfile.write(file, np.random.default_rng(number).normal(size=500 + 200 * number), 8000, format="WAV")
            found.append(Sample(f"s{number}", {"wav": file.getvalue()}, number, 0, "x.tar", "s"))
        return found
    data = "series/basic_motions" if modality == "series" else "emoji"
    return list(read_samples(DatasetIndex.load(str(ROOT / "bigssl" / "demo" / data / "train")), 4))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("formats")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        claims = list(written(work, options.formats.split(","), set(filter(None, options.only.split(",")))))
        failed = 0
        for claim, found in zip(claims, proof.judged(claims, options.python), strict=True):
            failed += isinstance(found, ProofError)
            print(f"FAILED {found}" if isinstance(found, ProofError) else said(claim, found))
    print(f"{len(claims)} exports, {failed} failed")
    return bool(failed)


def said(claim: Claim, found: proof.Proof) -> str:
    untrained = f", untrained {', '.join(found.untrained)}" if found.untrained else ""
    return (f"{claim.part} {claim.format}: {claim.loader.partition('(')[0]}, {found.tensors_loaded} of "
            f"{found.tensors_total} tensors, {found.max_abs_difference:.1e} of {found.largest:.1f}{untrained}")


def written(work: Path, formats: list[str], only: set[str]) -> list[Claim]:
    files = {0: tiny.DEMO / "tokenizer.json", 1: work / "padded.json"}
    values = json.loads(files[0].read_text())
    swap = {"[PAD]": 1, "[UNK]": 0}
    values["model"]["vocab"].update(swap)
    for token in values["added_tokens"]:
        token["id"] = swap.get(token["content"], token["id"])
    files[1].write_text(json.dumps(values))
    claims: list[Claim] = []
    for kind in (*IMAGE, *TEXT, *CAUSAL, *ENCODER_DECODER, *SERIES, *AUDIO):
        if only and kind not in only:
            continue
        row = modality_of_type(kind)
        assert row is not None
        net = tower(kind, row.name, files)
        head = masked_head(net.token_embedding, net.model.config) if kind in TEXT else None
        tensors = {n: v for n, v in head.named_parameters() if n != "weight"} if head is not None else {}
        writing = Head("writing", {"text": "net"}, {BIAS: torch.randn(len(net.token_embedding))})
        masked = Head("mlm", {"text": "net"}, tensors)
        own = {"mlm": masked} if tensors else {"writing": writing} if kind in ENCODER_DECODER else {}
        export_run(work / kind, {"net": net.model}, {"net": input_of(net)}, own, {})
        heads = {"network": None, **{name: name for name in own}} | ({"causal": None} if kind in CAUSAL else {})
        for name, file in heads.items():
            part = Listed(f"{kind}/{name}", name, {row.name: "net"}, file).load(work / kind / "export")
            for form in formats:
                folder = work / kind / form / name
                folder.mkdir(parents=True)
                try:
                    claims += WRITERS[form](part, folder, {row.name: samples(row.name)})
                except UnfitError as error:
                    print(f"refused: {form}: {error}", flush=True)
    return claims


if __name__ == "__main__":
    sys.exit(main())
