"""Can ranks find each other from here, and does the environment hold settings that spoil a run?"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil
import torch

from bigssl.doctor.findings import Diagnoses
from bigssl.engine.launcher import free_port, port_taken

_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_SPOILING = {
    "TRITON_INTERPRET": ("1", "triton's kernels are interpreted, thousands of times slower"),
    "CUDA_LAUNCH_BLOCKING": ("1", "the host waits for each kernel"),
    "BIGSSL_KERNELS": ("reference", "losses hold their whole matrix"),
    "NCCL_P2P_DISABLE": ("1", "GPUs of a machine talk through host memory"),
    "NCCL_IB_DISABLE": ("1", "machines do not talk by InfiniBand"),
    "TORCH_DISTRIBUTED_DEBUG": ("DETAIL", "each collective is checked by further ones"),
}


def examine_surroundings(section: Diagnoses) -> None:
    """Findings on host name, interfaces, port and variables."""
    _host(section)
    _interfaces(section)
    _port(section)
    for name, (value, why) in _SPOILING.items():
        if os.environ.get(name) == value:
            section.warn(name, f"value {value}: {why}", f"unset {name}")
    _hub(section)


def _host(section: Diagnoses) -> None:
    """gloo would listen on the address that the host name has; bigssl names it the interface that leads to MASTER_ADDR
    (engine/meeting/network.py)."""
    name = socket.gethostname()
    variable = _INTERFACES[torch.cuda.is_available()]
    try:
        said = f"{name} is {socket.gethostbyname(name)}"
    except OSError as error:
        section.fail("host name", f"{name} has no address ({error.strerror})",
                     f"a line `ADDRESS {name}` in /etc/hosts, or GLOO_SOCKET_IFNAME")  # fmt: skip
        return
    chosen = f"{variable} chooses" if os.environ.get(variable) else "the route to MASTER_ADDR chooses"
    section.ok("host name", f"{said}; {chosen} the interface")


def _outward() -> list[str]:
    """Interfaces that are up and reach further than this machine."""
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    return sorted(name for name, addresses in psutil.net_if_addrs().items() if name in up and any(
        each.family == socket.AF_INET and not each.address.startswith("127.") for each in addresses))  # fmt: skip


def _interfaces(section: Diagnoses) -> None:
    there = psutil.net_if_addrs()
    for variable in _INTERFACES:
        value = os.environ.get(variable)
        if not value or value[0] in "^=":  # NCCL's patterns
            continue
        wanted = value.split(",")
        exact = variable.startswith("GLOO")
        if not any(name == each if exact else name.startswith(each) for name in there for each in wanted):
            section.fail("interface", f"{variable}: value {value}: this machine has {', '.join(sorted(there))}",
                         f"{variable}={(_outward() or ['lo'])[0]}")  # fmt: skip
        else:
            section.ok("interface", f"{variable}={value} is there")


def _port(section: Diagnoses) -> None:
    given, rank = os.environ.get("MASTER_PORT"), os.environ.get("RANK")
    if rank is not None:
        _meeting_place(section)
        return
    port = given or "29500"
    if why := port_taken(port):
        report = section.fail if given else section.warn
        report("port", f"{'MASTER_PORT' if given else 'the default of launchers'}, {port}: {why}",
               f"export MASTER_PORT={free_port()}, or --master_port of the launcher")  # fmt: skip
    else:
        section.ok("port", f"{port} is free")


def _meeting_place(section: Diagnoses) -> None:
    """As a rank, before it meets the others there. Rank 0 will listen, where torchrun's agent does not already."""
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    listens = os.environ["RANK"] == "0" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        socket.getaddrinfo(address, int(port))
        why = port_taken(port) if listens else ""
    except (OSError, ValueError) as error:
        why = str(error)
    if why:
        section.fail("port", f"ranks are to meet at MASTER_ADDR:MASTER_PORT = {address}:{port}: {why}",
                     "the address of rank 0's machine, and a port that is free there")  # fmt: skip
    else:
        section.ok("port", f"ranks meet at {address}:{port}")


def _hub(section: Diagnoses) -> None:
    """Without a network, an attempt at the hub costs minutes of timeouts on every rank."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    said = "HF_HUB_OFFLINE is set: folders only" if offline else \
        "HF_HUB_OFFLINE is not set: names that are no folder are asked for at the hub, by every rank"
    if home.exists() and not os.access(home, os.W_OK):
        section.warn("hub", f"{said}; {home} cannot be written to", "HF_HOME=FOLDER of your own")
    else:
        section.ok("hub", said)
