"""Compile the linear cross-entropy kernels for every architecture, without a GPU, and check what comes out.

    python benchmarks/aot_linear_ce.py              # 1-2 minutes; writes results/linear_ce_aot_triton-VERSION.csv

The checks are those of `aot.py`; `softmax` and `columns` hold no products, so no matrix instructions are asked of them.
"""

import argparse
import csv
import dataclasses
import hashlib
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import aot  # first: it shuts the interpreter out
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bigssl_kernels.configs import Block
from bigssl_kernels.linear_ce import blocks, fused
from bigssl_kernels.linear_ce import fused_kernels as kernels

DTYPES = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32}
PRODUCT = {"ADD": True, "GAIN": False, "READ_LOW": False, "WRITE_LOW": False}
WIDE = {"READ_LOW": True, "WRITE_LOW": True}
LOGITS = {"BIAS": True, "CAP": True}
KERNELS = {
    "statistics": (kernels.statistics_kernel, "ce_statistics", LOGITS | {"DETAILS": True}),
    "logits": (kernels.panel_kernel, "ce_panel", LOGITS | {"GRADIENT": False, "GAIN": False}),
    "gradient": (kernels.panel_kernel, "ce_panel", LOGITS | {"GRADIENT": True, "GAIN": False}),
    "product_x": (kernels.product_kernel, "ce_product", PRODUCT | {"BY_TOKEN": True}),
    "product_w": (kernels.product_kernel, "ce_product", PRODUCT | {"BY_TOKEN": False}),
    "product_wide": (kernels.product_kernel, "ce_product", PRODUCT | {"BY_TOKEN": True} | WIDE),
    "softmax": (kernels.softmax_kernel, None, {"GRADIENT": True, "CAP": True, "DETAILS": True}),
    "columns": (kernels.columns_kernel, None, {"ADD": True, "GAIN": False}),
}
NUMBERS = {
    "tokens", "classes", "features", "hidden_stride", "weight_stride", "right_stride", "out_stride", "span",
    "first_row", "first_col", "width", "panel_stride",
}  # fmt: skip
ALIGNED = NUMBERS - {"tokens", "classes", "width"}  # by the launcher, or in any model whose sizes divide by 16
FLOATS = {"softcap", "z_loss", "smoothing"}
POINTERS = {"low": "*u8", "labels": "*i64", "order": "*i64", "count": "*i64", "best_out": "*i32"}
DATA = {"hidden", "weight", "bias", "panel", "right"}  # pointers to the dtype
BLOCK = list(Block.__dataclass_fields__)
FIELDS = ["architecture", "kernel", "dtype", *BLOCK]
WITHOUT = {"softmax": Block(1, fused.SOFTMAX_COLS, 0, 0, 8, 3), "columns": Block(32, 128, 0, 0, 4, 3)}


def source_hash() -> str:
    """Of the kernels and of the shipped blocks: a report belongs to one state of them."""
    folder = Path(kernels.__file__).parent
    names = (Path(kernels.__file__).name, "../tables/linear_ce.csv")
    content = b"".join((folder / name).read_bytes() for name in names)
    return hashlib.sha256(content).hexdigest()[:16]


def cases() -> list[dict[str, Any]]:
    """One row for each architecture x kernel x dtype, with its shipped block."""
    table = []
    for arch in aot.SHARED_LIMIT:
        for name, (_, family, _) in KERNELS.items():
            for dtype, kind in DTYPES.items():
                bytes_of = kind.primitive_bitwidth // 8
                if name == "product_wide" and bytes_of > 2:
                    continue  # float32 gradients are wide enough
                block = WITHOUT[name] if family is None else blocks.SHIPPED[arch, family, bytes_of]
                table.append(dict(zip(FIELDS, (arch, name, dtype, *dataclasses.astuple(block)), strict=True)))
    return table


def pointer(name: str, dtype: str, kernel: str) -> str:
    """Type of an argument that is no compile-time constant."""
    if name == "out" and kernel == "product_wide":
        return f"*{dtype}"
    if name in NUMBERS:
        return "i32"
    if name in FLOATS:
        return "fp32"
    return POINTERS.get(name, f"*{dtype}" if name in DATA else "*fp32")


def compile_case(case: dict[str, Any]) -> Any:
    """The compiled kernel with its costliest options."""
    hip = case["architecture"].startswith("gfx")
    kernel, _, options = KERNELS[case["kernel"]]
    constants = options | {
        "KIND": DTYPES[case["dtype"]], "PRECISION": "ieee" if hip or case["dtype"] != "fp32" else "tf32x3",
        "BM": case["rows"], "BN": case["cols"], "BK": case["features"],
    }  # fmt: skip
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in constants else pointer(name, case["dtype"], case["kernel"]) for name in names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*") or name in ALIGNED
    }
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items() if name in names},
        attrs=aligned,
    )
    target = GPUTarget("hip", "gfx942", 64) if hip else GPUTarget("cuda", int(case["architecture"][3:]), 32)
    return triton.compile(source, target=target, options={"num_warps": case["warps"], "num_stages": case["stages"]})


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """The case with what its code uses; kernels without products need no matrix instructions."""
    result = aot.measure(case, compile_case)
    if KERNELS[case["kernel"]][1] is None:
        result["ok"] = int(result["spills"] == 0 and result["shared"] <= aot.SHARED_LIMIT[case["architecture"]])
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose fields, joined by commas, match this pattern")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    chosen = [case for case in cases() if re.search(args.only, ",".join(map(str, case.values())))]
    with ProcessPoolExecutor(args.jobs) as pool:
        results = []
        for result in pool.map(measure, chosen):
            results.append(result)
            print(",".join(map(str, result.values())), flush=True)
    if not args.only:
        file = Path(__file__).with_name("results") / f"linear_ce_aot_triton-{triton.__version__}.csv"
        file.parent.mkdir(exist_ok=True)
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, [*FIELDS, *aot.MEASURED, "triton", "source"], lineterminator="\n")
            writer.writeheader()
            writer.writerows(row | {"triton": triton.__version__, "source": source_hash()} for row in results)
    failed = sum(not result["ok"] for result in results)
    print(f"{len(results) - failed} of {len(results)} pass", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
