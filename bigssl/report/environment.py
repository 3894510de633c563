"""The hardware and versions a run was made with, recorded in the run folder so that its numbers can be read later."""

import importlib.metadata
import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path

from bigssl.files import write_atomic

FILE = "environment.json"
PACKAGES = ("bigssl", "torch", "triton", "deepspeed", "transformers", "webdataset", "numpy")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux: the platform module knows less, but something
    return platform.processor() or platform.machine()


def _cores() -> int:
    # The cores this process may use, which in a container is fewer than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def installed() -> dict[str, object]:
    """Python, operating system, CPU, memory, GPUs and the versions of the packages that matter; JSON-ready."""
    import torch  # late, so that tools that only read reports start fast

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cores": _cores(),
        "memory_gib": _memory_gib(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "world": int(os.environ.get("WORLD_SIZE", "1")),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def record(folder: Path) -> dict[str, object]:
    """Writes `installed()` to `folder/environment.json` and returns it. A resumed run describes its latest machine."""
    facts = installed()
    write_atomic(folder / FILE, (json.dumps(facts, indent=1) + "\n").encode())
    return facts


def is_recorded(folder: Path) -> bool:
    """Whether a run has written FILE there, which no other program's file of that name looks like."""
    try:
        facts = json.loads((folder / FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and facts.keys() >= {"python", "system", "cores", "memory_gib", "world", "packages"}
