"""Processes for tests, forked from one that has imported Megatron: each would take seconds to import it.

What runs in them is what a user starts: a module or a script with its arguments, its exit status, its output.
Several ranks get the environment that torchrun gives them.
"""

import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS = 600

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preloaded"])


def run(
    *command: object, ranks: int = 1, timeout: float = SECONDS, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run `-m MODULE ARGUMENTS` or `SCRIPT ARGUMENTS` to its end, whatever becomes of it."""
    return Processes(*command, ranks=ranks, env=env).wait(timeout)


def longrope2(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `longrope2 VERB ...` to its end, whatever becomes of it."""
    return run("-m", "megatron_longrope2", *words, **options)  # type: ignore[arg-type]


def torchrun(ranks: int, *command: object, timeout: float = SECONDS) -> str:
    """Run a command on so many ranks; its output.

    Raises:
        AssertionError: a rank failed; the end of the output.
    """
    done = run(*command, ranks=ranks, timeout=timeout)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout + done.stderr


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Processes:
    """A command that is under way, on one or several ranks."""

    def __init__(self, *command: object, ranks: int = 1, env: Mapping[str, str] | None = None) -> None:
        self.command = [str(word) for word in command]
        self._folder = Path(tempfile.mkdtemp(prefix="processes-"))
        streams = [str(self._folder / name) for name in ("stdout", "stderr")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            environment.pop(name, None)
        port = free_port() if ranks > 1 else 0
        self.ranks: list[BaseProcess] = []
        for rank in range(ranks):
            own = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "LOCAL_WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            self.ranks.append(fork(self.command, environment | (own if ranks > 1 else {}), streams))

    @property
    def running(self) -> bool:
        """Whether a rank has not ended yet."""
        return any(process.is_alive() for process in self.ranks)

    @property
    def output(self) -> str:
        """What has been written to standard output so far."""
        return self._read("stdout")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send every rank a signal."""
        for process in self.ranks:
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    def wait(self, timeout: float = SECONDS) -> subprocess.CompletedProcess[str]:
        """Wait for the end. As under torchrun, the first rank that fails ends the others.

        Raises:
            TimeoutError: it did not end in time; it is killed.
        """
        deadline = time.monotonic() + timeout
        while self.running:
            if any(process.exitcode for process in self.ranks):
                time.sleep(0.2)
                self.kill(signal.SIGTERM)
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(
                    f"{self.command}: not over after {timeout} s\n{self._read('stderr')[-3000:]}"
                )
            time.sleep(0.02)
        codes = [process.exitcode or 0 for process in self.ranks]
        failed = next((code for code in codes if code > 0), min(codes))
        return subprocess.CompletedProcess(self.command, failed, self.output, self._read("stderr"))

    def _read(self, stream: str) -> str:
        return (self._folder / stream).read_text(errors="replace") if (self._folder / stream).exists() else ""


def fork(
    command: list[str], environment: Mapping[str, str], streams: list[str], folder: str = str(ROOT)
) -> BaseProcess:
    """Start a command in a forked process.

    Args:
        environment: beside what importing Megatron has set.
        streams: the files that take standard output and standard error.
        folder: the working directory.
    """
    process = _context.Process(target=_main, args=(command, environment, streams, folder))
    process.start()
    return process


def _main(command: list[str], environment: Mapping[str, str], streams: list[str], folder: str) -> None:
    """In the forked process: become the command."""
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that a user starts
    os.chdir(folder)
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(command[0]).parent))
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")
