"""A real Slurm of two nodes on this machine: munged, slurmctld and two slurmd, without systemd or cgroups."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
# Addresses of this machine: `scontrol show hostnames` then gives what ranks can connect to.
NODES = ("127.0.0.2", "127.0.0.3")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
KillWait=5
InactiveLimit=0
MpiDefault=none
NodeName=127.0.0.2 NodeAddr=127.0.0.2 Port={port2} CPUs=8 State=UNKNOWN
NodeName=127.0.0.3 NodeAddr=127.0.0.3 Port={port3} CPUs=8 State=UNKNOWN
PartitionName=tiny Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no cluster can be started here; None where it can."""
    absent = [name for name in (*DAEMONS, "sbatch") if not shutil.which(name, path=_PATH)]
    if absent:
        packages = "slurmctld slurmd slurm-client munge"
        return f"{', '.join(absent)} not found; apt-get install {packages}"
    return None if os.geteuid() == 0 else "slurmd must be started by root"


_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


@dataclass(frozen=True)
class Cluster:
    """A running cluster; `environment` makes Slurm's commands talk to it."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of this cluster's user."""
        finished = subprocess.run(
            list(map(str, command)), env=self.environment, capture_output=True, text=True, check=False
        )
        if check:
            assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished

    def stop(self) -> None:
        """Cancel all jobs, then end the daemons by their pid files."""
        self.run("scancel", "--user=root", check=False)
        time.sleep(1)
        names = (*(f"slurmd-{node}" for node in NODES), "slurmctld", "munged")
        files = [path for name in names if (path := self.folder / f"{name}.pid").exists()]
        pids = [int(path.read_text()) for path in files]
        for sent in (signal.SIGTERM, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sent)
            deadline = time.monotonic() + 10
            while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
                time.sleep(0.1)


def start(folder: Path) -> Cluster:
    """Start the daemons in a folder and wait until both nodes are idle."""
    ports = [_free_port() for _ in range(3)]
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(
            host=socket.gethostname(), folder=folder, port=ports[0], port2=ports[1], port3=ports[2]
        )
    )
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    hidden = {name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"SLURM_CONF": str(configuration), "PATH": _PATH, "USER": "root", "LOGNAME": "root"}
    cluster = Cluster(folder, environment)
    munge = ("--key-file", key, "--socket", folder / "munge.socket", "--pid-file", folder / "munged.pid")
    logs = ("--log-file", folder / "munged.log", "--seed-file", folder / "munged.seed")
    try:
        cluster.run("munged", "--force", *munge, *logs)
        cluster.run("slurmctld", "-c")
        for node in NODES:
            cluster.run("slurmd", "-N", node)
        deadline = time.monotonic() + 60
        while cluster.run("sinfo", "-h", "-o", "%T", check=False).stdout.split() != ["idle"]:
            assert time.monotonic() < deadline, _logs(folder)
            time.sleep(0.3)
    except BaseException:
        cluster.stop()
        raise
    return cluster


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _logs(folder: Path) -> str:
    return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in folder.glob("*.log"))
