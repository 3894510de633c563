"""By which interface this machine reaches the others, and how long it waits for them."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator, MutableMapping
from datetime import timedelta

import psutil
import torch.distributed as dist

from bigssl.config.errors import ConfigError
from bigssl.distributed import NoMeeting

MEETING = "BIGSSL_MEETING"
"""In the environment: seconds that ranks wait for each other at the start of a run."""
PATIENCE = timedelta(minutes=30)
"""How long a collective may take after it: the other rank may write a checkpoint, or compile. (torch's own.)"""
INTERFACES = {"gloo": "GLOO_SOCKET_IFNAME", "nccl": "NCCL_SOCKET_IFNAME"}
_REMINDER = 30.0  # seconds of waiting after which a rank says that it waits


def seconds_of(name: str, default: float) -> float:
    """A number of seconds from the environment, `default` where it is not set. Raises ConfigError."""
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{name}: value {text!r}; allowed: a number of seconds")
    return value


def interface_to(address: str) -> tuple[str, str]:
    """Interface by which this machine reaches `address` (a name or a number), and its own number there. Nothing is
    sent; of its own address, it is the one that has it.

    Raises:
        OSError: the name has no number, or there is no route.
    """
    problem: OSError | None = None
    for family, kind, protocol, _, place in socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(place)
                own = str(probe.getsockname()[0])
        except OSError as error:
            problem = error
            continue
        for name, numbers in psutil.net_if_addrs().items():
            if any(number.address.partition("%")[0] == own.partition("%")[0] for number in numbers):
                return name, own
    raise problem or OSError(f"no interface of this machine has the address by which it reaches {address}")


def choose_interfaces(backend: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Have gloo and the backend of GPUs talk by the interface that leads to MASTER_ADDR, where the user has not named
    one: gloo takes the one of the machine's own name, which is often 127.0.0.1 (other machines then wait for ever), and
    NCCL the first that it finds.

    Raises:
        NoMeeting: there is no way to MASTER_ADDR, or other machines cannot take it.
    """
    wanted = [variable for name, variable in INTERFACES.items() if name in ("gloo", backend)]
    unset = [name for name in wanted if not environment.get(name)]
    master = environment.get("MASTER_ADDR", "127.0.0.1")
    if not unset:
        return
    try:
        name, own = interface_to(master)
    except OSError as error:
        raise NoMeeting(
            f"MASTER_ADDR: value {master!r}: {error.strerror or error} on {socket.gethostname()}; allowed: an address "
            f"of the first machine that all reach (`hostname -I` on it lists them)"
        ) from None
    loop = _is_loop(own)
    if loop and 0 < _ranks_here(environment) < int(environment.get("WORLD_SIZE", "1")):
        others = {number.address: at for at, numbers in psutil.net_if_addrs().items() for number in numbers
                  if number.family == socket.AF_INET and at != name}  # fmt: skip
        loop, name = False, _way_out(others) if _is_own_name(master, environment) else ""
        if not name:
            raise NoMeeting(
                f"MASTER_ADDR: value {master!r} is {own} on {socket.gethostname()}, which other machines cannot reach; "
                f"allowed: its address in the network ({', '.join(others) or 'it has none'}), or set "
                f"{' and '.join(unset)} on every machine"
            )
    for variable in unset:
        if not loop or variable == INTERFACES["gloo"]:  # NCCL knows better ways within a machine
            environment[variable] = name


def _is_loop(number: str) -> bool:
    return number.startswith("127.") or number == "::1"


def _is_own_name(master: str, environment: MutableMapping[str, str]) -> bool:
    """Of the first machine, which Debian lets call itself 127.0.1.1: others know better."""
    first = int(environment.get("RANK", "0")) < _ranks_here(environment)
    return first and master != "localhost" and not _is_loop(master)


def _way_out(others: dict[str, str]) -> str:
    """Of the interfaces by their addresses: the only one, or that of the default route; "" where neither is."""
    if len(set(others.values())) == 1:
        return next(iter(others.values()))
    try:
        return interface_to("192.0.2.1")[0]  # an address that nobody has (RFC 5737); nothing is sent
    except OSError:
        return ""


def _ranks_here(environment: MutableMapping[str, str]) -> int:
    """0: the launcher does not say."""
    return int(environment.get("LOCAL_SIZE") or environment.get("LOCAL_WORLD_SIZE") or 0)  # DeepSpeed's, torchrun's


@contextlib.contextmanager
def waiting_for_others() -> Iterator[timedelta]:
    """Within it, ranks meet: the time that it may take. Says where it waits when that takes long; a collective after it
    may take PATIENCE.

    Raises:
        NoMeeting: they do not, within MEETING.
    """
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    networks = [f"{name} ({os.environ[name]})" for name in INTERFACES.values() if os.environ.get(name)]
    way = f"the network interface of {' and '.join(networks) or 'its own choice'}"
    span = seconds_of(MEETING, 600)
    who = f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()}"
    text = f"bigssl: {who}: waits for the other ranks at {place} by {way}, up to {span:g} s ({MEETING})"
    timer = threading.Timer(_REMINDER, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    if os.environ.get("LOCAL_RANK", "0") == "0":
        timer.start()
    try:
        yield timedelta(seconds=span)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.barrier()  # connects where the backend would do so at the first use
            # The only way to have another timeout for what follows than for the meeting.
            dist.distributed_c10d._set_pg_timeout(PATIENCE, dist.group.WORLD)
    except RuntimeError as error:
        why = str(error).strip().partition("\n")[0]
        raise NoMeeting(
            f"{who} cannot meet the other ranks at {place} (--master_addr, --master_port) by {way}: {why}"
        ) from error
    finally:
        timer.cancel()
