"""A `python` for scripts under test: what would import Megatron is forked from a process that has.

Shell scripts, torchrun and Slurm start it as they start any Python: it passes signals on, ends as the forked
process ends, and takes it along when it is killed. Only what it is started with `-m` for, the package's
command lines and torchrun, is forked; anything else is run by the real Python.
"""

import contextlib
import json
import os
import socketserver
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.processes import fork

FORKED = ("megatron_longrope2", "megatron_longrope2.launch", "torch.distributed.run")

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys

words = [word for word in sys.argv[1:] if word != "-u"]
if words[:1] != ["-m"] or words[1] not in {forked}:
    os.execv("{python}", ["{python}", *sys.argv[1:]])
connection = socket.socket(socket.AF_UNIX)
connection.connect("{address}")


def send(text):
    connection.sendall(text.encode() + b"\\n")


send(json.dumps(dict(words=words, pid=os.getpid(), folder=os.getcwd(), environment=dict(os.environ))))
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGURG):
    signal.signal(number, lambda number, _: send(str(int(number))))
code = int(connection.makefile().readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class _Handler(socketserver.StreamRequestHandler):
    """One process: what it is comes in a line, then signals; its exit code goes back."""

    def handle(self) -> None:
        request = json.loads(self.rfile.readline())
        streams = [f"/proc/{request['pid']}/fd/{number}" for number in (1, 2)]
        process = fork(request["words"], request["environment"], streams, request["folder"])

        def pass_on() -> None:
            for line in self.rfile:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid or 0, int(line))
            process.kill()  # the client is gone

        threading.Thread(target=pass_on, daemon=True).start()
        process.join()
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(f"{process.exitcode}\n".encode())


@contextlib.contextmanager
def forked_python() -> Iterator[Path]:
    """The path of an executable that stands in for `sys.executable`."""
    with tempfile.TemporaryDirectory(prefix="python-") as folder:
        client, address = Path(folder) / "python", f"{folder}/socket"
        client.write_text(CLIENT.format(python=sys.executable, forked=FORKED, address=address))
        client.chmod(client.stat().st_mode | stat.S_IXUSR)
        with socketserver.ThreadingUnixStreamServer(address, _Handler) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield client
            server.shutdown()
