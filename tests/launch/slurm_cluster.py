"""Slurm on this machine, for the tests of `launch/slurm.sbatch`: a controller and two nodes.

Each node is a network namespace with a name of its own, on a bridge that only they are on. All of it lives in
namespaces of processes, mounts and networks that end with the first of their processes, whatever happens to the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NODES = {"n1": "10.111.0.1", "n2": "10.111.0.2"}
_CONTROLLER = "10.111.0.9"
PROGRAMS = ("unshare", "nsenter", "ip", "tc", "munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")

_CONFIG = """
ClusterName=small
SlurmctldHost=controller({controller})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerParameters=bf_interval=1,sched_interval=1
MpiDefault=none
ReturnToService=2
KillWait=5
SlurmctldTimeout=60
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=60
"""

# As Debian has it, a machine calls itself 127.0.1.1: ranks that told others so would never meet.
_WORLD = """
set -eu
folder=$1
mount --make-rprivate /
mount -t tmpfs tmpfs /run
hostname controller
ip link set lo up
ip link add bridge type bridge
ip address add {controller}/24 dev bridge
ip link set bridge up
echo '127.0.0.1 localhost' >$folder/hosts
{hosts}
mount --bind $folder/hosts /etc/hosts
: >$folder/nobody # to ask for other names: each question would take 10 seconds
mount --bind $folder/nobody /etc/resolv.conf
munged --force --key-file=$folder/key --socket=$folder/munge.socket --pid-file=$folder/munged.pid \
  --log-file=$folder/munged.log --seed-file=$folder/seed
slurmctld -i
cat >$folder/node.sh <<'NODE'
set -eu
hostname $1
ip link set lo up
sed "s/^[0-9.]* $1$/127.0.1.1 $1/" {folder}/hosts >{folder}/hosts-$1
umount /etc/hosts
mount --bind {folder}/hosts-$1 /etc/hosts
echo $$ >{folder}/$1.pid
while [ ! -f {folder}/$1.linked ]; do sleep 0.02; done
ip link set here name eth0
ip address add $2/24 dev eth0
ip link set eth0 up
ip route add default via {controller}
slurmd
exec sleep infinity
NODE
for node in {names}; do
  address=$(sed -n "s/ $node$//p" $folder/hosts)
  unshare --net --uts --mount bash $folder/node.sh $node $address &
  while [ ! -s $folder/$node.pid ]; do sleep 0.02; done
  ip link add to-$node type veth peer name here netns $(cat $folder/$node.pid)
  ip link set to-$node master bridge up
  touch $folder/$node.linked
done
touch $folder/up
exec sleep infinity
"""


def why_not() -> str:
    """Why there can be no such cluster here, or ""."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if missing := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        return f"not installed: {', '.join(missing)} (apt-get install slurm-wlm munge iproute2)"
    if os.getuid() != 0:
        return "slurmd needs root"
    command = "ip link add one type veth peer name two; tc qdisc add dev one root tbf rate 1mbit burst 16kb latency 1s"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "sh", "-ec", command],
                           capture_output=True, text=True)  # fmt: skip
    return f"no namespaces, or no limits of networks: {tried.stderr.strip()}" if tried.returncode else ""


class SlurmCluster:
    """folder: short (sockets have short names), of our own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        theirs = ("SLURM", "TORCH_EXTENSIONS_DIR", "OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "BIGSSL")
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith(theirs)}
        self._environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        nodes = "\n".join(f"NodeName={name} NodeAddr={address} CPUs=2 Gres=gpu:2" for name, address in NODES.items())
        (folder / "slurm.conf").write_text(_CONFIG.format(folder=folder, controller=_CONTROLLER, nodes=nodes))
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")  # nobody uses them
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o400)
        (folder / "state").mkdir()
        hosts = "\n".join(f"echo '{address} {name}' >>$folder/hosts" for name, address in
                          {**NODES, "controller": _CONTROLLER}.items())  # fmt: skip
        world = _WORLD.format(folder=folder, controller=_CONTROLLER, hosts=hosts, names=" ".join(NODES))
        self._log = (folder / "world.log").open("w")
        apart = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
        self._process = subprocess.Popen([*apart, "bash", "-c", world, "world", str(folder)], env=self._environment,
                                         stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)  # fmt: skip

    def wait_until_idle(self) -> None:
        self.until(lambda: (self.folder / "up").exists(), 30)
        first = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()[0]
        self._enter = ["nsenter", "--target", first, "--all", f"--wd={os.getcwd()}"]
        self.until(lambda: self.run("sinfo", "-h", "-o", "%D %t").split() == [str(len(NODES)), "idle"], 30)

    def run(self, *words: str, cwd: Path | None = None) -> str:
        """What a command on the controller prints."""
        enter = [*self._enter[:-1], f"--wd={cwd or os.getcwd()}"]
        done = subprocess.run([*enter, *words], env=self._environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def limit_network(self, kilobits: int) -> None:
        """What a node receives a second; 0: as much as it can."""
        for name in NODES:
            rate = ["tbf", "rate", f"{kilobits}kbit", "burst", "16kb", "latency", "2s"] if kilobits else []
            self.run("tc", "qdisc", "replace" if kilobits else "del", "dev", f"to-{name}", "root", *rate)

    def state(self, job: str) -> dict[str, str]:
        """Of a job: JobState, ExitCode, Restarts, Reason, ..."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def until(self, reached: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline and self._process.poll() is None, self.logs()
            time.sleep(0.1)

    def logs(self) -> str:
        """The last words of all that runs here."""
        files = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"== {file.name}\n" + file.read_text(errors="replace")[-3000:] for file in files)

    def end(self) -> None:
        """The first process of the namespace is killed with `unshare`, and with it all the others."""
        self._process.kill()
        self._process.wait()
        self._log.close()
