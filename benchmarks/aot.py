"""Compile every shipped block of every Triton kernel for every architecture, without a GPU, and check what comes out.

    python benchmarks/aot.py                        # a few minutes; writes benchmarks/results/aot_triton-VERSION.csv
    PYTHONPATH=FOLDER python benchmarks/aot.py      # another triton: pip install --no-deps --target FOLDER triton==...

Checked: shared memory within the card's limit (the compiler does not look), no spills to local memory, matrix
instructions in the code. Exit status 1 if a check fails.
"""

import argparse
import csv
import dataclasses
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bigssl_kernels import configs
from bigssl_kernels.contrastive import triton_kernels
from bigssl_kernels.contrastive.similarity_triton import fitted

SHARED_LIMIT = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
MATRIX = {"sm_80": "HMMA", "sm_90": "HGMMA|HMMA", "sm_100": "UTC[A-Z]*MMA|HMMA", "gfx942": "v_mfma"}
DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4}
KERNELS = {"reduce": triton_kernels.reduce_kernel, "gradient": triton_kernels.gradient_kernel}
BLOCK = list(configs.Block.__dataclass_fields__)
FIELDS = ["architecture", "kernel", "loss", "dtype", "bucket", *BLOCK]
MEASURED = ["shared", "registers", "spills", "matrix", "ok"]


def source_hash() -> str:
    """Of the kernels and of the shipped blocks: a report belongs to one state of them."""
    folder = Path(triton_kernels.__file__).parent
    content = b"".join((folder / name).read_bytes() for name in ("triton_kernels.py", "../tables/contrastive.csv"))
    return hashlib.sha256(content).hexdigest()[:16]


def cases() -> list[dict[str, Any]]:
    """One row for each shipped block x dtype x loss."""
    table = []
    for (arch, kernel, width, bucket), block in configs.SHIPPED.items():
        for dtype in (name for name, size in DTYPES.items() if size == width):
            for loss in ("softmax", "sigmoid"):
                shape = dataclasses.astuple(block)
                table.append(dict(zip(FIELDS, (arch, kernel, loss, dtype, bucket, *shape), strict=True)))
    return table


def compile_case(case: dict[str, Any]) -> Any:
    """The compiled kernel, with both sides' terms and every output switched on."""
    block = configs.Block(**{name: case[name] for name in BLOCK})
    width, single = fitted(block, case["bucket"])
    sigmoid, hip = case["loss"] == "sigmoid", case["architecture"].startswith("gfx")
    constants = {
        "OWN": not sigmoid, "SIGMOID": sigmoid, "SLOPE": True, "ROW": True, "COL": True, "SINGLE": single,
        "PRECISION": "ieee" if hip or case["dtype"] != "fp32" else "tf32x3",
        "BM": block.rows, "BN": block.cols, "BD": width, "BO": min(block.out, case["bucket"]),
    }  # fmt: skip
    kernel = KERNELS[case["kernel"]]
    names = kernel.arg_names
    numbers = dict.fromkeys(("m", "n", "features", "own", "span"), "i32")
    signature = {
        name: "constexpr"
        if name in constants
        else numbers.get(name, f"*{case['dtype']}" if name in ("rows", "cols") else "*fp32")
        for name in names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in constants and name != "own"
    }
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items() if name in names},
        attrs=aligned,
    )
    target = GPUTarget("hip", "gfx942", 64) if hip else GPUTarget("cuda", int(case["architecture"][3:]), 32)
    return triton.compile(source, target=target, options={"num_warps": block.warps, "num_stages": block.stages})


def measure(case: dict[str, Any], compile_one: Callable[[dict[str, Any]], Any] = compile_case) -> dict[str, Any]:
    """The case with what its code uses, and whether that is all right."""
    compiled, arch = compile_one(case), case["architecture"]
    if arch.startswith("gfx"):
        code = compiled.asm["amdgcn"]
        registers, spills = (_number(rf"\.{name}:\s+(\d+)", code) for name in ("vgpr_count", "vgpr_spill_count"))
    else:
        code, registers = _disassemble(compiled.asm["cubin"])
        spills = len(re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(?:LDL|STL)\b", code, re.M))
    matrix = len(re.findall(rf"\b(?:{MATRIX[arch]})", code))
    shared = compiled.metadata.shared
    ok = spills == 0 and matrix > 0 and shared <= SHARED_LIMIT[arch]
    return case | dict(zip(MEASURED, (shared, registers, spills, matrix, int(ok)), strict=True))


def _number(pattern: str, text: str) -> int:
    (number,) = re.findall(pattern, text)
    return int(number)


def _disassemble(cubin: bytes) -> tuple[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([tool, *flags, file.name], capture_output=True, text=True, check=True).stdout
            for tool, flags in ((knobs.nvidia.cuobjdump.path, ["-res-usage"]), (knobs.nvidia.nvdisasm.path, ["-c"]))
        )
    return code, _number(r"REG:(\d+)", usage)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose fields, joined by commas, match this pattern")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/aot_triton-VERSION.csv; '-' for none")
    args = parser.parse_args()
    chosen = [case for case in cases() if re.search(args.only, ",".join(map(str, case.values())))]
    print(",".join([*FIELDS, *MEASURED]))
    results = []
    with ProcessPoolExecutor(args.jobs) as pool:
        for result in pool.map(measure, chosen):
            results.append(result)
            print(",".join(map(str, result.values())), flush=True)
    if not args.only:
        file = args.out or Path(__file__).with_name("results") / f"aot_triton-{triton.__version__}.csv"
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, [*FIELDS, *MEASURED, "triton", "source"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(row | {"triton": triton.__version__, "source": source_hash()} for row in results)
    failed = sum(not result["ok"] for result in results)
    print(f"{len(results) - failed} of {len(results)} pass", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
