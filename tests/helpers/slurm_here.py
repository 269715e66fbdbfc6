"""A Slurm of one node on this machine's loopback interface, for as long as a test or a command takes.

    python tests/helpers/slurm_here.py adadfq grid play runs/bands --vary lower=0,0.1 --engine slurm

Needs slurmctld, slurmd, the client commands and munged (Debian: slurmctld slurmd slurm-client munge). Everything it writes is
in one folder; an installed Slurm's or munge's own configuration is neither read nor changed. No accounting, no cgroups: it runs
in a container.
"""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
os.environ["PATH"] += os.pathsep + "/usr/sbin"  # where Debian has the daemons

CONFIGURATION = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=5
MessageTimeout=60
SlurmctldTimeout=300
SlurmdTimeout=300
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={megabytes} State=UNKNOWN
PartitionName=here Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The commands that are needed and not there."""
    return [name for name in NEEDED if shutil.which(name) is None]


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _ended(process: subprocess.Popen[bytes], seconds: float) -> None:
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def slurm(folder: Path, cpus: int = 2) -> Iterator[dict[str, str]]:
    """Starts the daemons in the foreground with their files in `folder`; yields the environment in which commands find them.

    Raises RuntimeError, with the daemons' last words, if the node is not up within a minute.
    """
    host, (ctld_port, slurmd_port) = socket.gethostname().split(".")[0], _free_ports(2)
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    configuration = folder / "slurm.conf"
    user = pwd.getpwuid(os.getuid()).pw_name
    megabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20 * 9 // 10
    configuration.write_text(CONFIGURATION.format(**locals()))
    environment = os.environ | {"SLURM_CONF": str(configuration)}
    munged = ["munged", "--foreground", "--force", "--num-threads=2", f"--socket={folder}/munge.socket", f"--key-file={key}"]
    munged += [f"--{name}-file={folder}/munged.{name}" for name in ("log", "pid", "seed")]
    daemons = [munged, ["slurmctld", "-D", "-c", "-f", configuration], ["slurmd", "-D", "-c", "-f", configuration]]
    with ExitStack() as stack:
        for command in daemons:
            log = stack.enter_context((folder / f"{command[0]}.out").open("wb"))
            process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(_ended, process, 15)
            if command is munged:
                time.sleep(1)  # the others ask it at once
        _wait_until_up(folder, environment)
        try:
            yield environment
        finally:
            subprocess.run(["scancel", "--me"], env=environment, capture_output=True, check=False)
            _until(lambda: not _asked(["squeue", "--noheader"], environment).strip(), 30)


def _asked(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def _until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.5)
    return met


def _wait_until_up(folder: Path, environment: dict[str, str]) -> None:
    if not _until(lambda: _asked(["sinfo", "--noheader", "--format=%t"], environment).strip() in ("idle", "mix", "alloc"), 60):
        words = "\n".join(f"{path.name}:\n{path.read_text(errors='replace')[-1500:]}" for path in sorted(folder.glob("*.out")))
        raise RuntimeError(f"Slurm did not start\n{words}")


if __name__ == "__main__":
    if missing():
        sys.exit(f"there is no {', '.join(missing())}; Debian: apt-get install slurmctld slurmd slurm-client munge")
    with tempfile.TemporaryDirectory() as where, slurm(Path(where) / "slurm") as environment:
        sys.exit(subprocess.run(sys.argv[1:], env=environment, check=False).returncode)
