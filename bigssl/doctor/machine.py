"""Does this machine give a run what it needs: limits, shared memory, disks, compilers, cores?"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import sysconfig
import tempfile
import time
from pathlib import Path

import psutil
import torch

from bigssl.config.recipe import Recipe
from bigssl.doctor.findings import Diagnoses
from bigssl.files import GIB, existing

SHM = Path("/dev/shm")
STALE = 30 * 60  # seconds after which nobody builds any more: as launch/setup.sh has it
_FILES, _PROCESSES = 4096, 1024
_REMOTE = {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "ceph", "fuse.sshfs", "fuse.s3fs", "afs", "9p"}


def examine_machine(section: Diagnoses, recipe: Recipe | None, ranks: int, batches: int) -> None:
    """Findings on what is limited here.

    Args:
        ranks: of a run on this machine. batches: bytes of batches that the loaders of one rank hold ahead.
    """
    workers = 1 if recipe is None else recipe.data.workers
    _limits(section, ranks, workers)
    _shared_memory(section, ranks)
    _memory(section, ranks * batches)
    _cores(section, ranks, workers)
    section.attempt("extensions", lambda: _extensions(section), "set TORCH_EXTENSIONS_DIR to a folder of your own")
    if recipe is not None:
        _run_folder(section, recipe)
    _compilers(section)


def _limits(section: Diagnoses, ranks: int, workers: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = max(_FILES, 256 * (workers + 1))
    low = 0 <= soft < needed
    raised = f"`ulimit -n {needed}` before the launcher" if not 0 <= hard < needed else \
        f"it cannot be raised above {hard} here: LimitNOFILE= of the service, --ulimit nofile= of the container"
    if low and soft < 1024:
        section.fail("nofile", f"{soft} open files a process: shards, sockets and loaders need more", raised)
    elif low:
        section.warn("nofile", f"{soft} open files a process; many shards need up to {needed}", raised)
    else:
        section.ok("nofile", f"{soft if soft >= 0 else 'unlimited'} open files a process")
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if 0 <= soft < _PROCESSES + ranks * (workers + 1) and os.getuid() != 0:
        section.warn("nproc", f"{soft} processes and threads of this user; {ranks} ranks with {workers} loaders each, "
                     "and their threads, may need more", "`ulimit -u 65536`")  # fmt: skip
    else:
        section.ok("nproc", f"{soft if soft >= 0 else 'unlimited'} processes and threads")
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if torch.cuda.is_available() and 0 <= soft < GIB and Path("/sys/class/infiniband").is_dir():
        section.fail("memlock", f"{soft // 1024} KiB may be locked, but InfiniBand registers its buffers so",
                     "`ulimit -l unlimited` (containers: --ulimit memlock=-1)")  # fmt: skip
    else:
        section.ok("memlock", f"{'unlimited' if soft < 0 else f'{soft // 1024} KiB'} may be locked; matters with "
                   "InfiniBand, which is not here or has enough")  # fmt: skip


def _shared_memory(section: Diagnoses, ranks: int) -> None:
    """NCCL's channels between GPUs of a machine lie in it. (Our loaders use memory files, which need none.)"""
    gpus = torch.cuda.is_available() and ranks > 1
    todo = "containers: --shm-size=8g; Kubernetes: an emptyDir with medium: Memory at /dev/shm; `mount -o "\
           "remount,size=8g /dev/shm`"  # fmt: skip
    try:
        usage = shutil.disk_usage(SHM)
        with tempfile.TemporaryFile(dir=SHM) as file:
            file.write(b"0")
            file.flush()
    except OSError as error:
        section.fail("shared memory", f"{SHM}: {error.strerror}", todo)
        return
    said = f"{SHM}: {_mib(usage.free)} free of {_mib(usage.total)}"
    if usage.free < 64 << 20 and gpus:
        section.fail("shared memory", f"{said}; NCCL needs more between {ranks} GPUs", todo)
    elif usage.free < (1 << 30 if gpus else 64 << 20):
        section.warn("shared memory", f"{said}, which is little (64 MiB is what containers get by default)", todo)
    else:
        section.ok("shared memory", said)


def _memory(section: Diagnoses, batches: int) -> None:
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # of a container
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text()) - used)
    said = f"{free / GIB:.1f} GiB available"
    if batches > free / 2:
        section.fail("memory", f"{said}; batches that loaders prepare ahead need {batches / GIB:.1f} GiB on this "
                     "machine", "fewer data.workers, or a smaller batch.micro")  # fmt: skip
    elif free < 2 * GIB:
        section.warn("memory", said, "a rank needs 1 to 2 GiB for its libraries alone")
    else:
        section.ok("memory", f"{said}; batches prepared ahead need {_mib(batches)}" if batches else said)


def _cores(section: Diagnoses, ranks: int, workers: int) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS", "")
    said = f"{cores} cores for {ranks} ranks with {workers} loaders each, OMP_NUM_THREADS {given or 'not set'}"
    fits = max(cores // ranks, 1)
    if given and (not given.isdigit() or int(given) < 1):
        section.fail("threads", f"OMP_NUM_THREADS: value {given!r}; allowed: a number >= 1", f"OMP_NUM_THREADS={fits}")
    elif given and int(given) * ranks > 2 * cores:
        section.warn("threads", f"{said}: {int(given) * ranks} threads take each other's cores",
                     f"OMP_NUM_THREADS={fits}")  # fmt: skip
    elif not given and ranks > 1 and not torch.cuda.is_available():
        section.note("threads", f"{said}: each rank takes all cores", f"OMP_NUM_THREADS={fits} is faster on a CPU")
    else:
        section.ok("threads", said)


def _extensions(section: Diagnoses) -> None:
    """Where DeepSpeed compiles: it waits for ever for a lock that a killed build has left."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    folder = Path(given or "~/.cache/torch_extensions").expanduser()
    locks = sorted(folder.rglob("lock")) if folder.is_dir() else []
    stale = [lock for lock in locks if time.time() - lock.stat().st_mtime > STALE]
    if stale:
        hours = (time.time() - stale[0].stat().st_mtime) / 3600
        section.fail("extensions", f"{stale[0]}: a lock of {hours:.1f} hours ago, of a build that was killed; "
                     "DeepSpeed would wait for it for ever", f"rm {' '.join(map(str, stale))}")  # fmt: skip
    elif locks:
        section.warn("extensions", f"{locks[0]}: somebody is building, or was killed just now",
                     f"if nobody is: rm {locks[0]}")  # fmt: skip
    elif why := _unwritable(folder):
        section.fail("extensions", f"{folder}: {why}", "set TORCH_EXTENSIONS_DIR to a folder of your own")
    elif (kind := file_system(folder)) in _REMOTE:
        section.warn("extensions", f"{folder} lies on {kind}: machines that build at the same time wait for each other",
                     "set TORCH_EXTENSIONS_DIR to a local folder of each machine")  # fmt: skip
    else:
        section.ok("extensions", f"{folder}: no stale lock, can be written to")


def _run_folder(section: Diagnoses, recipe: Recipe) -> None:
    """Beyond `bigssl plan`, which says whether its checkpoints fit (section data)."""
    there = existing(recipe.folder)
    if why := _unwritable(recipe.folder):
        section.fail("run folder", f"{recipe.folder}: {there} cannot be written to ({why})",
                     "out=FOLDER, one with room that every rank's machine can write to")  # fmt: skip
        return
    usage, kind = shutil.disk_usage(there), file_system(there)
    said = f"{recipe.folder}: {usage.free / GIB:.1f} GiB free on {kind or 'a file system of unknown kind'}"
    if usage.free < GIB / 4:
        section.fail("run folder", f"{said}: the disk is full", "make room, or out=FOLDER on another disk")
    else:
        section.ok("run folder", said)


def _unwritable(folder: Path) -> str:
    """Why nothing can be written into `folder`, or where it is to be made; empty where it can."""
    try:
        there = existing(folder)
        if not there.is_dir():
            return f"{there} is no folder"
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(1 << 16))  # permission bits tell root nothing, and quotas nobody
            file.flush()
    except OSError as error:
        return "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror)
    return ""


def file_system(path: Path) -> str:
    """Kind of the file system that `path` lies, or would lie, on; empty where nobody says."""
    with contextlib.suppress(OSError):
        place, found = existing(path).resolve(), ("", "")
        for line in Path("/proc/mounts").read_text().splitlines():
            where, kind = line.split()[1:3]
            where = where.replace("\\040", " ")
            if place.is_relative_to(where) and len(where) >= len(found[0]):
                found = where, kind
        return found[1]
    return ""


def _compilers(section: Diagnoses) -> None:
    """Triton compiles a small C module for each kernel; on a CPU nothing is compiled, and nvcc is never needed."""
    if not torch.cuda.is_available():
        section.ok("compilers", "none is needed without a GPU")
        return
    found = next((name for name in (os.environ.get("CC"), "gcc", "clang", "cc") if name and shutil.which(name)), None)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if found is None:
        section.fail("compilers", "no gcc or clang on the path, which triton starts its kernels by",
                     "apt-get install gcc, or CC=PATH")  # fmt: skip
    elif not header.is_file():
        section.fail("compilers", f"no {header}, which triton's launcher includes",
                     f"apt-get install python3-dev (for {sysconfig.get_python_version()})")  # fmt: skip
    else:
        section.ok("compilers", f"{found}, {header}; nvcc is not needed")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
