"""Ranks on this machine by DeepSpeed's launcher, as `bigssl train` starts them, but heard only if they fail."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from bigssl.config.errors import ConfigError
from bigssl.doctor import rank
from bigssl.engine.launcher import free_port

_PATIENCE = 900  # seconds
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def start_ranks(count: int, words: list[str], folder: Path) -> str:
    """Run `count` ranks of `bigssl doctor` with `words` to their end; why they failed, in a sentence, or "". folder:
    where what they print is kept meanwhile."""
    environment = dict(os.environ)
    visible = environment.get(_VISIBLE, "").split(",")[:count]  # which --num_gpus would have it ignore
    devices = ["--include", f"localhost:{','.join(visible)}"] if visible[0] else ["--num_gpus", str(count)]
    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
        environment.pop(_VISIBLE, None)  # which the launcher would count
    elif count > (cards := torch.cuda.device_count()):
        raise ConfigError(f"--ranks: value {count}; allowed: at most {cards}, a rank for each GPU of this machine")
    port = environment.get("MASTER_PORT") or free_port()
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "critical", "--hostfile", "",
               "--master_port", port, *devices, str(rank.__file__), *words]  # fmt: skip
    said = folder / "said.txt"
    with said.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
        try:
            code = process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # of the session: the launcher, and ranks that it has left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code == 0:
        return ""
    how = f"not done after {_PATIENCE} s" if code is None else f"ended with code {code}"
    return f"{how}; {_last_words(said)}"


def _last_words(said: Path) -> str:
    """The line that tells most of what was printed: the last error, else the last line."""
    lines = [line.strip() for line in said.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or line.startswith("bigssl:")]
    return (errors or lines or ["nothing was printed"])[-1][:400]
