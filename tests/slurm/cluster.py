"""A real Slurm of several nodes on one machine, for tests: needs root, no systemd, no /etc.

Each node has its own UTS, PID and mount namespaces: its processes see the node's name as the host
name, and :meth:`Cluster.crash` ends all of them at once, as a power cut does. (If slurmd alone were
killed, a dead node's task would run on beside the requeued job.) Munge, ports, state and logs are
the cluster's own, in one temporary folder. Jobs in partition ``urgent`` pre-empt those in ``main``.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from slurm import processes

WITH_US = ("setpriv", "--pdeathsig", "KILL")
"""Starts a daemon so that it is killed when the test run is."""
NEEDS = (
    "setpriv",
    "munged",
    "munge",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "squeue",
    "scontrol",
)
CPUS, MEMORY_MB, GPUS = 2, 4096, 2
SMALL_DISK_MB = 48
COMPLAINT = re.compile("error|fatal", re.IGNORECASE)
USUAL = re.compile("pmix|MPI:|MailProg|state file|state save", re.IGNORECASE)
"""What Slurm complains about at every start: optional plugins, no saved state."""

# cred_expire is also how long a requeued job waits before it may start again: 120 s by default, at
# least 5.
CONF = """\
ClusterName=gamtest
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
StateSaveLocation={root}/state
SlurmctldPidFile={root}/slurmctld.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdPidFile={root}/nodes/%n/slurmd.pid
SlurmdSpoolDir={root}/nodes/%n/spool
SlurmdLogFile={root}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=10
KillWait=20
UnkillableStepTimeout=10
MinJobAge=600
MessageTimeout=10
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
JobRequeue=1
PriorityType=priority/basic
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={root}/log/jobcomp.txt
DebugFlags=NO_CONF_HASH
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{gres}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP \
DefMemPerCPU=1024 PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE DefaultTime=10 State=UP DefMemPerCPU=1024 \
PriorityTier=10 PreemptMode=OFF
"""
CGROUP = "CgroupPlugin=cgroup/v1\nIgnoreSystemd=yes\nCgroupAutomount=no\n"
# The first bash is the node's PID 1: it reaps what job steps leave behind. Names resolve by the
# node's own /etc/hosts, so that the machine's stays as it is.
NODE = """\
hostname "$2" && mount --bind "$1/hosts" /etc/hosts || exit 1
slurmd -D -N "$2" & d=$!
trap 'kill -TERM $d' TERM
while kill -0 $d 2>/dev/null; do wait $d; done
"""


def why_not() -> str | None:
    """Return why a Slurm cannot be started here, or None if it can."""
    missing = [name for name in NEEDS if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)} here; `make test-slurm` installs slurm-wlm and munge"
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root (its nodes are namespaces)"
    done = subprocess.run(["unshare", "--uts", "--mount", "--pid", "--fork", "true"])
    return "this machine allows no namespaces (unshare failed)" if done.returncode else None


def wait_until(true: Callable[[], object], seconds: float, what: str, every: float = 0.1) -> None:
    """Wait until ``true()`` is true; fail after ``seconds``, saying ``what`` did not happen."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(every)


class Cluster:
    """``with Cluster(n) as cluster:`` starts node1 to node``n`` and ends everything it started."""

    def __init__(self, n_nodes: int) -> None:
        self.nodes = [f"node{i + 1}" for i in range(n_nodes)]
        self.root = Path(tempfile.mkdtemp(prefix="slurm"))
        self.env = os.environ | {"SLURM_CONF": str(self.root / "slurm.conf")}
        self.small_disk = self.root / "small"
        self._holders: dict[str, subprocess.Popen] = {}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "Cluster":
        try:
            self._write_config()
            # Nodes see only what is mounted before they start.
            self.small_disk.mkdir()
            size = f"size={SMALL_DISK_MB}m"
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", size, "none", self.small_disk], check=True
            )
            self._start_daemons()
            for node in self.nodes:
                self.start(node)
            wait_until(lambda: self.idle() == set(self.nodes), 60, "all nodes idle")
        except BaseException:
            print(self.logs())
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in list(self._holders):
            self.crash(node)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        subprocess.run(["umount", "--lazy", self.small_disk], stderr=subprocess.DEVNULL)
        shutil.rmtree(self.root, ignore_errors=True)

    def run(self, *command: object, env: dict[str, str] | None = None) -> str:
        """Run a Slurm client and return its output; if the client fails, so does the test."""
        done = subprocess.run(
            [str(word) for word in command],
            env=self.env | (env or {}),
            text=True,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, job_id: str) -> dict[str, str]:
        """Return what ``scontrol show job`` says, by key."""
        text = self.run("scontrol", "-o", "show", "job", job_id)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def idle(self) -> set[str]:
        """Return the nodes that are up and have nothing to do."""
        return {node for node, state in self._node_states() if state == "idle"}

    def drained(self) -> set[str]:
        """Return the nodes that Slurm gives no more work until somebody resumes them."""
        return {node for node, state in self._node_states() if state == "drained"}

    def _node_states(self) -> list[list[str]]:
        done = subprocess.run(
            ["sinfo", "-h", "-N", "-o", "%N %T"], env=self.env, text=True, capture_output=True
        )
        return [words for line in done.stdout.splitlines() if len(words := line.split()) == 2]

    def start(self, node: str) -> None:
        """Boot a node."""
        (self.root / "nodes" / node / "spool").mkdir(parents=True, exist_ok=True)
        unshare = [
            *WITH_US,
            "unshare",
            "--uts",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]
        log = open(self.root / "log" / f"{node}.out", "a")  # noqa: SIM115 (the child keeps it)
        self._holders[node] = subprocess.Popen(
            [*unshare, "bash", "-c", NODE, "slurm-node", str(self.root), node],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()

    def resume(self, node: str) -> None:
        """Let a node have work again.

        Slurm refuses to resume an idle node, and a node that was down may be idle again by itself.
        """
        command = ("scontrol", "update", f"nodename={node}", "state=resume")
        done = subprocess.run(command, env=self.env, text=True, capture_output=True, timeout=60)
        assert not done.returncode or node in self.idle(), f"{command}: {done.stdout}{done.stderr}"

    def crash(self, node: str) -> None:
        """End every process of a node at once."""
        holder = self._holders.pop(node)
        for pid in processes.children(holder.pid):  # a namespace ends with its first process
            os.kill(pid, signal.SIGKILL)
        holder.kill()
        holder.wait()

    def freeze(self, node: str) -> None:
        """Stop every process of a node, which then is up but does not answer."""
        self._signal(node, signal.SIGSTOP)

    def thaw(self, node: str) -> None:
        """Let a frozen node go on."""
        self._signal(node, signal.SIGCONT)

    def kill_task(self, node: str, word: str) -> None:
        """SIGKILL a node's processes whose command has ``word``, as Linux does when memory is full.

        The job step that started them survives: its command has other words.
        """
        for pid in self._tasks(node, word):
            os.kill(pid, signal.SIGKILL)

    def hold_until_signalled(self, node: str, word: str, number: int, seconds: float) -> None:
        """Stop a node's processes with ``word`` until Slurm sends one of them signal ``number``.

        Without this, a fast machine would end the training before the signal. With some signals
        Slurm also continues stopped processes, so a process that runs again was signalled.
        """
        held = self._tasks(node, word)
        for pid in held:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: all(map(processes.is_stopped, held)), 10, f"{word} on {node} stopped")
        try:
            what = f"signal {number} to {word} on {node}"
            wait_until(lambda: any(processes.was_sent(pid, number) for pid in held), seconds, what)
        finally:
            for pid in held:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _tasks(self, node: str, word: str) -> list[int]:
        found = processes.with_word(self._members(node), word)
        assert found, f"no process of {node} has {word} in its command"
        return found

    def _members(self, node: str) -> list[int]:
        (init,) = processes.children(self._holders[node].pid)
        return processes.beside(init)

    def logs(self) -> str:
        """Return the last complaints of all daemons, for a failing test's report."""
        found = []
        for file in sorted((self.root / "log").glob("*")):
            lines = file.read_text(errors="replace").splitlines()
            bad = [line for line in lines if COMPLAINT.search(line) and not USUAL.search(line)]
            found += [f"{file.name}: {line}" for line in bad[-5:]]
        return "\n".join(found)

    def _signal(self, node: str, number: int) -> None:
        for pid in self._members(node):
            with_name = Path(f"/proc/{pid}")
            if with_name.exists():
                os.kill(pid, number)

    def _write_config(self) -> None:
        root = self.root
        root.chmod(0o755)
        for name in ("log", "state", "nodes", "munge"):
            (root / name).mkdir()
        (root / "munge").chmod(0o755)
        hosts = [f"127.0.1.{i + 1} {node}" for i, node in enumerate(self.nodes)]
        (root / "hosts").write_text("127.0.0.1 localhost\n" + "\n".join(hosts) + "\n")
        gres = self._pretend_gpus()
        ports = _free_ports(len(self.nodes) + 1)
        lines = [
            f"NodeName={node} NodeHostname={node} NodeAddr=127.0.1.{i + 1} Port={ports[i + 1]} "
            f"CPUs={CPUS} Sockets=1 CoresPerSocket={CPUS} ThreadsPerCore=1 "
            f"RealMemory={MEMORY_MB} {gres} State=UNKNOWN"
            for i, node in enumerate(self.nodes)
        ]
        text = CONF.format(
            root=root,
            port=ports[0],
            nodes="\n".join(lines),
            gres="GresTypes=gpu" if gres else "",
        )
        (root / "slurm.conf").write_text(text)
        (root / "cgroup.conf").write_text(CGROUP)

    def _pretend_gpus(self) -> str:
        """Make null devices that pose as GPUs, for Slurm to count and assign; return their Gres."""
        files = [self.root / f"gpu{i}" for i in range(GPUS)]
        for file in files:
            os.mknod(file, 0o666 | 0o020000, os.makedev(1, 3))
        where = f"NodeName=node[1-{len(self.nodes)}] Name=gpu File={self.root}/gpu[0-{GPUS - 1}]"
        (self.root / "gres.conf").write_text(where + "\n")
        return f"Gres=gpu:{GPUS}"

    def _start_daemons(self) -> None:
        munge = self.root / "munge"
        key = munge / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._daemon(
            "munged",
            "--foreground",
            f"--key-file={key}",
            f"--socket={munge / 'socket'}",
            f"--pid-file={munge / 'pid'}",
            f"--log-file={self.root / 'log' / 'munged.log'}",
            f"--seed-file={munge / 'seed'}",
        )
        wait_until((munge / "socket").exists, 20, "munge's socket")
        self._daemon("slurmctld", "-D", "-c")

    def _daemon(self, *command: str) -> None:
        log = open(self.root / "log" / f"{command[0]}.out", "a")  # noqa: SIM115
        self._daemons.append(
            subprocess.Popen(
                [*WITH_US, *command], env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        )
        log.close()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
