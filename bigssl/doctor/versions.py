"""Do the installed packages fit each other, the driver and the GPUs?"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from pathlib import Path

import torch

from bigssl.doctor.findings import Diagnoses, first_line

TRITON = {(2, 9): (3, 5), (2, 10): (3, 6), (2, 11): (3, 6), (2, 12): (3, 7), (2, 13): (3, 7)}
"""By version of torch, that of the triton it is released with; a build of torch for CUDA names its own."""
_DRIVER = Path("/proc/driver/nvidia/version")


def examine_versions(section: Diagnoses) -> None:
    """Findings on Python, torch, its driver, triton, NCCL, DeepSpeed and packages that break these."""
    section.ok("python", f"{platform.python_version()} at {sys.executable}, {platform.platform()}")
    section.attempt("torch", lambda: _torch(section), "`python -c 'import torch; torch.cuda.init()'` shows more")
    section.attempt("triton", lambda: _triton(section), "pip install --force-reinstall triton")
    section.attempt("deepspeed", lambda: _deepspeed(section),
                    "DS_BUILD_OPS=0 pip install --no-build-isolation -c constraints.txt deepspeed")  # fmt: skip
    if torch.cuda.is_available():
        section.attempt("nccl", lambda: section.ok("nccl", ".".join(map(str, torch.cuda.nccl.version()))),
                        "pip install --force-reinstall torch")  # fmt: skip
    _torchvision(section)
    _kernels_package(section)


def _torch(section: Diagnoses) -> None:
    version, built = torch.__version__, torch.version.cuda
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == "" or os.environ.get("DS_ACCELERATOR") == "cpu"
    driver = _DRIVER.is_file()
    if torch.cuda.is_available():
        _cards(section, version, str(built))
    elif driver and not hidden and built is None:
        section.fail("torch", f"{version} is a build without CUDA, but this machine has an NVIDIA driver: it would "
                     "train on the CPU", "pip install torch from an index with CUDA builds")  # fmt: skip
    elif driver and not hidden:
        section.fail("torch", f"{version} (CUDA {built}) sees no GPU, but there is a driver: {_why_no_cuda()}",
                     "`nvidia-smi` says whether the driver works; containers need --gpus all")  # fmt: skip
    else:
        section.ok("torch", f"{version}, on the CPU ({'GPUs are hidden' if driver else 'no NVIDIA driver'})")


def _why_no_cuda() -> str:
    try:
        torch.cuda.init()
    except Exception as error:  # what the driver says
        return first_line(error)
    return "no reason given"


def _cards(section: Diagnoses, version: str, built: str) -> None:
    """torch's CUDA against the driver's, and whether torch has code for each card."""
    of_driver = driver_cuda()
    names = ", ".join(dict.fromkeys(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())))
    said = f"{version} for CUDA {built}; driver {_driver_version()} for CUDA {'.'.join(map(str, of_driver))}; "\
           f"{torch.cuda.device_count()} x {names}"  # fmt: skip
    wanted = tuple(map(int, built.split(".")[:2]))
    if of_driver[0] < wanted[0]:
        section.fail("torch", f"{said}: the driver is older than this CUDA",
                     f"a newer driver, or torch built for CUDA {of_driver[0]}.x")  # fmt: skip
    elif of_driver < wanted:
        section.warn("torch", f"{said}: runs by compatibility within CUDA {wanted[0]}, new features do not",
                     "a newer driver")  # fmt: skip
    else:
        section.ok("torch", said)
    known = [int(arch.rpartition("_")[2].rstrip("af")) for arch in torch.cuda.get_arch_list() if arch.startswith("sm")]
    for number in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(number)
        if not any(arch // 10 == major and arch % 10 <= minor for arch in known):
            section.fail(f"gpu {number}", f"{torch.cuda.get_device_name(number)} has capability {major}.{minor}; torch "
                         f"has code for {', '.join(torch.cuda.get_arch_list())}", "another build of torch")  # fmt: skip
        elif (free := torch.cuda.mem_get_info(number))[0] < 0.8 * free[1]:
            section.warn(f"gpu {number}", f"{free[0] / 2**30:.1f} of {free[1] / 2**30:.1f} GiB are free: somebody else "
                         "is on it", "`nvidia-smi` says who")  # fmt: skip


def driver_cuda() -> tuple[int, int]:
    """The CUDA version that the driver offers."""
    number = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
    return number // 1000, number % 1000 // 10


def _driver_version() -> str:
    found = re.search(r"\s(\d+\.\d+[\d.]*)\s", _DRIVER.read_text()) if _DRIVER.is_file() else None
    return found.group(1) if found else "of unknown version"


def _triton(section: Diagnoses) -> None:
    """On a CPU nothing runs it, and a wrong one is only said."""
    report = section.fail if torch.cuda.is_available() else section.warn
    found, wanted = _installed("triton") or _installed("pytorch-triton"), paired_triton()
    if found is None:
        if torch.cuda.is_available():
            section.fail("triton", "not installed: losses would run in plain torch", f"pip install triton=={wanted}")
        else:
            section.ok("triton", "not installed; needed on a GPU only")
    elif wanted is None:
        section.note("triton", f"{found}; not known which belongs to torch {torch.__version__}")
    elif found.split(".")[: wanted.count(".") + 1] != wanted.split("."):
        report("triton", f"{found}, but torch {torch.__version__} is made for {wanted}",
               f"pip install 'triton=={wanted}{'.*' * (wanted.count('.') < 2)}'")  # fmt: skip
    else:
        section.ok("triton", f"{found}, as torch {torch.__version__} wants it")


def paired_triton() -> str | None:
    """The version of triton that belongs to this torch: the exact one where torch names it, else major and minor."""
    for line in importlib.metadata.requires("torch") or []:
        if found := re.match(r"(?:pytorch-)?triton\s*==\s*([\d.]+)", line):
            return found.group(1)
    major, minor = map(int, torch.__version__.split(".")[:2])
    pair = TRITON.get((major, minor))
    return pair and ".".join(map(str, pair))


def _deepspeed(section: Diagnoses) -> None:
    importlib.import_module("bigssl.engine.zero")
    section.ok("deepspeed", f"{_installed('deepspeed')}, imports")


def _torchvision(section: Diagnoses) -> None:
    """transformers takes it wherever it is installed, and one made for another torch ends the import."""
    if importlib.util.find_spec("torchvision") is None:
        section.ok("torchvision", "not installed; nothing needs it")
        return
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # "operator torchvision::nms does not exist", and others
        section.fail("torchvision", f"{_installed('torchvision') or 'installed'}: cannot be imported beside torch "
                     f"{torch.__version__} ({first_line(error)}), and transformers tries to",
                     "pip uninstall torchvision")  # fmt: skip
    else:
        section.ok("torchvision", f"{_installed('torchvision')}, imports; nothing here needs it")


def _kernels_package(section: Diagnoses) -> None:
    """transformers takes any module `kernels` for Hugging Face's package."""
    spec = importlib.util.find_spec("kernels")
    if spec is None or (spec.origin is None and _installed("kernels") is None and not _is_ours(spec)):
        section.ok("kernels package", "no module of this name on the path")
    elif _is_ours(spec):
        section.warn("kernels package", f"the folder `kernels` of this repository ({os.getcwd()} or PYTHONPATH) is "
                     "importable, and transformers takes it for Hugging Face's package",
                     "start by `bigssl ...`, without PYTHONPATH, or from another folder")  # fmt: skip
    elif (version := _installed("kernels")) is None:
        section.fail("kernels package", f"{spec.origin} is taken by transformers for Hugging Face's package `kernels`",
                     "rename it, or take its folder off the path")  # fmt: skip
    else:
        section.note("kernels package", f"Hugging Face's kernels {version}: transformers may take layers from the hub",
                     "not needed here: pip uninstall kernels")  # fmt: skip


def _is_ours(spec: importlib.machinery.ModuleSpec) -> bool:
    return any((Path(place) / "bigssl_kernels").is_dir() for place in spec.submodule_search_locations or ())


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
