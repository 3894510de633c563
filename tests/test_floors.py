"""A file imports only from lower floors; no folder of the repository becomes an importable `kernels`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {  # inside data/ the floors go on
    "bigssl_kernels": 0,
    "bigssl.config": 1, "bigssl.discovery": 1, "bigssl.files": 1, "bigssl.distributed": 1, "bigssl.report": 1,
    "bigssl.exits": 1,
    "bigssl.data.errors": 2.0, "bigssl.data.sample": 2.0, "bigssl.data.npy": 2.0,
    "bigssl.data.remote": 2.1, "bigssl.data.shards": 2.2, "bigssl.data.order": 2.3, "bigssl.data.loading": 2.4,
    "bigssl.data.kinds": 2.4, "bigssl.data.tools": 2.5,
    "bigssl.nets": 2,
    "bigssl.objectives": 3,
    "bigssl.engine": 4, "bigssl.engine.plan": 4,
    "bigssl.transfer": 5, "bigssl.starter": 5.5,
    "bigssl.doctor": 6, "bigssl.train": 6, "bigssl.cli": 6, "bigssl.api": 6, "bigssl.__main__": 6,
}  # fmt: skip
STRANGERS = [  # rooms of which neither knows the other, whatever their floors
    ("bigssl.data", "bigssl.nets"),
    ("bigssl.transfer", "bigssl.objectives"),
    *((f"bigssl.data.{room}", "bigssl.data.kinds") for room in ("remote", "shards", "order", "loading")),
    ("bigssl.data.loading", "bigssl.data.tools"),
]
FILES = sorted([*ROOT.glob("bigssl/**/*.py"), *ROOT.glob("kernels/**/*.py")])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("kernels", "__init__"))


def inside(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def area(module: str) -> str | None:
    """The longest entry of FLOORS that `module` lies in."""
    found = [name for name in FLOORS if inside(module, name)]
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
    if module_name(path) in ("bigssl", "bigssl.data"):
        assert not imports(path)
        return
    assert here is not None, f"{module_name(path)} stands on no floor; give it one in FLOORS"
    for name in imports(path) - {"bigssl.__version__"}:  # which every floor may know
        there = area(name)
        assert there is not None, f"{module_name(path)} imports {name}, which stands on no floor"
        assert FLOORS[there] <= FLOORS[here], f"{module_name(path)} (floor {FLOORS[here]}) imports {name} above it"
        for one, other in STRANGERS:
            for near, far in ((one, other), (other, one)):
                both = inside(module_name(path), near) and inside(name, far)
                assert not both, f"{module_name(path)} imports {name}, and {near} and {far} know nothing of each other"


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


def test_every_room_says_its_question() -> None:
    """The first line of a folder tells what belongs into it; one that says nothing becomes a hall again."""
    rooms = sorted(p for p in FILES if p.name == "__init__.py" and p.parent.name not in ("bigssl", "bigssl_kernels"))
    assert len(rooms) >= 16
    for path in rooms:
        line = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
        assert "?" in line or "->" in line, f"{path.relative_to(ROOT)}: {line!r} is no question"


def test_no_room_is_a_hall() -> None:
    one_a_task = {ROOT / "bigssl" / "objectives", ROOT / "bigssl" / "transfer" / "tasks"}  # as many as there are tasks
    counts = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in FILES} - one_a_task}
    assert not {str(folder.relative_to(ROOT)): count for folder, count in counts.items() if count > 20}


def test_public_names_are_unique() -> None:
    """Two functions of one name are told apart by nobody who reads the call. (Implementations of one kernel share
    theirs on purpose, and a command is called what its user types.)"""
    seen: dict[str, str] = {}
    ours = [path for path in FILES if path.is_relative_to(ROOT / "bigssl")]
    for path in [path for path in ours if not path.is_relative_to(ROOT / "bigssl" / "cli")]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                here = f"{path.relative_to(ROOT)}: {node.name}"
                assert node.name == "main" or node.name not in seen, f"{here} stands in {seen[node.name]} too"
                seen[node.name] = here
