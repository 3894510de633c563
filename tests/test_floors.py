"""A file imports only from lower floors; no folder of the repository becomes an importable `kernels`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "bigssl_kernels": 0,
    "bigssl.config": 1, "bigssl.config_conflicts": 1, "bigssl.config_errors": 1, "bigssl.config_evaluate": 1,
    "bigssl.config_section": 1, "bigssl.config_yaml": 1, "bigssl.files": 1, "bigssl.limits": 1,
    "bigssl.distributed": 1, "bigssl.report": 1,
    "bigssl.data": 2, "bigssl.nets": 2,
    "bigssl.objectives": 3,
    "bigssl.engine": 4,
    "bigssl.transfer": 5,
    "bigssl.train": 6, "bigssl.cli": 6, "bigssl.shards_cli": 6,
    "bigssl.shards_cli_pack": 6, "bigssl.shards_cli_clean": 6, "bigssl.shards_cli_options": 6,
    "bigssl.replay_cli": 6, "bigssl.plan_cli": 6,
}  # fmt: skip
STRANGERS = [("bigssl.data", "bigssl.nets"), ("bigssl.transfer", "bigssl.objectives")]
FILES = sorted([*ROOT.glob("bigssl/**/*.py"), *ROOT.glob("kernels/**/*.py")])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("kernels", "__init__"))


def area(module: str) -> str | None:
    """The longest entry of FLOORS that `module` lies in."""
    found = [name for name in FLOORS if module == name or module.startswith(name + ".")]
    return max(found, key=len, default=None)


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in ("bigssl", "bigssl_kernels")}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    here = area(module_name(path))
    if module_name(path) == "bigssl":
        return
    assert here is not None, f"{module_name(path)} stands on no floor; give it one in FLOORS"
    for name in imports(path):
        there = area(name)
        if there is None or there == here:
            continue
        assert FLOORS[there] <= FLOORS[here], f"{module_name(path)} (floor {FLOORS[here]}) imports {name} above it"
        assert (here, there) not in STRANGERS and (there, here) not in STRANGERS, f"{here} imports {there}"


def test_only_the_engine_wrapper_imports_deepspeed() -> None:
    importers = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(m.split(".")[0] == "deepspeed" for m in modules):
                importers.append(module_name(path))
    assert set(importers) == {"bigssl.engine.zero"}


def test_kernels_is_not_importable(tmp_path: Path) -> None:
    """The Hugging Face package `kernels` must stay free of ours."""
    code = "import importlib.util, bigssl, bigssl_kernels; print(importlib.util.find_spec('kernels'))"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "None"


def test_files_are_short() -> None:
    long = [f"{module_name(p)}: {n}" for p in FILES if (n := len(p.read_text().splitlines())) > 300]
    assert not long
