"""Machines without machines: namespaces of Linux with a network card, a host name and processes of their own each."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
_KINDS = ["--net", "--pid", "--mount", "--uts", "--ipc"]


def why_not(*tools: str) -> str:
    """Why this machine cannot play several, or ""."""
    for tool in ("ip", "tc", "unshare", "nsenter", *tools):
        if shutil.which(tool) is None:
            return f"no {tool} on this machine (Debian: iproute2, util-linux, pdsh, openssh-server)"
    tried = subprocess.run(["unshare", *_KINDS, "--fork", "--mount-proc", "ip", "link", "add", "v0", "type", "veth"],
                           capture_output=True, text=True)  # fmt: skip
    return f"no namespaces with network cards for this user: {tried.stderr.strip()}" if tried.returncode else ""


class Host:
    """One of them. Its processes end with its first one, which ends with this process."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        self._started: list[subprocess.Popen[bytes]] = []
        words = ["unshare", *_KINDS, "--fork", "--kill-child", "--mount-proc", "sh", "-c", f"hostname {name}; exec cat"]
        self._outer = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not (inner := psutil.Process(self._outer.pid).children()) or inner[0].name() != "cat":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self.pid = inner[0].pid

    def words(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self.pid), *_KINDS, f"--wd={ROOT}", *command]

    def do(self, *command: str) -> None:
        """As root of this machine, with its network card and mounts."""
        words = ["nsenter", "-t", str(self.pid), "--net", *(["--mount"] if command[0] == "mount" else []), *command]
        subprocess.run(words, check=True, capture_output=True, text=True)

    def start(self, log: Path, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        """A command in it, its words going to `log`."""
        unlike = {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
        environment = {name: value for name, value in os.environ.items() if name not in unlike}
        environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(log.parent)} | variables
        with log.open("wb") as file:
            started = subprocess.Popen(self.words(*command), stdout=file, stderr=subprocess.STDOUT, env=environment,
                                       start_new_session=True)  # fmt: skip
        self._started.append(started)
        return started

    def processes(self, word: str) -> list[psutil.Process]:
        """Those in it with a word in their command line."""
        mine = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.readlink(f"/proc/{process.pid}/ns/pid") == mine and word in process.cmdline():
                    found.append(process)
        return found

    def kill(self) -> None:
        """As a power cut does: all of its processes, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._outer.communicate()
        for process in self._started:
            process.wait()


class Cluster:
    """`count` hosts at a switch, host-0 at 10.9.0.1 and so on. Each has its own name for 127.0.1.1, as Debian does."""

    def __init__(self, folder: Path, count: int) -> None:
        self._switch = Host("switch", "")
        self._switch.do("ip", "link", "add", "name", "bridge", "type", "bridge")
        self._switch.do("ip", "link", "set", "bridge", "up")
        self.hosts = [Host(f"host-{n}", f"10.9.0.{n + 1}") for n in range(count)]
        for number, host in enumerate(self.hosts):
            self._switch.do("ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0")
            self._switch.do("ip", "link", "set", "eth0", "netns", str(host.pid))
            self._switch.do("ip", "link", "set", f"port{number}", "master", "bridge", "up")
            for words in ("link set lo up", f"addr add {host.address}/24 dev eth0", "link set eth0 up"):
                host.do("ip", *words.split())
            names = folder / f"names-of-{host.name}"
            others = [f"{each.address} {each.name}" for each in self.hosts if each is not host]
            names.write_text("\n".join(["127.0.0.1 localhost", f"127.0.1.1 {host.name}", *others, ""]))
            host.do("mount", "--bind", str(names), "/etc/hosts")

    def serve_ssh(self, folder: Path) -> str:
        """A daemon on each host, for root by a key of its own; returns what ssh has to be told."""
        for name in ("host", "user"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(words, check=True)
        settings = {"HostKey": folder / "host", "AuthorizedKeysFile": folder / "user.pub", "StrictModes": "no",
                    "UsePAM": "no", "PidFile": "none", "PermitRootLogin": "prohibit-password"}  # fmt: skip
        config = folder / "sshd_config"
        config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        for host in self.hosts:
            host.do("mount", "-t", "tmpfs", "tmpfs", "/run")
            command = f"mkdir -p /run/sshd && exec {shutil.which('sshd') or '/usr/sbin/sshd'} -D -e -f {config}"
            host.start(folder / f"sshd-{host.name}.log", "sh", "-c", command)
        return f"-i {folder / 'user'} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"

    def cut(self, number: int) -> None:
        """As a cable that is pulled, on the switch's side: nothing tells the host."""
        self._switch.do("ip", "link", "set", f"port{number}", "down")

    def limit(self, number: int, rate: str) -> None:
        """Of what goes to a host, e.g. `20mbit`."""
        words = f"qdisc add dev port{number} root tbf rate {rate} burst 32kbit latency 200ms"
        self._switch.do("tc", *words.split())

    def end(self) -> None:
        for host in [*self.hosts, self._switch]:
            host.kill()
