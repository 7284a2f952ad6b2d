"""Running a recipe: stages that are commands, each with a log, a time, and a mark when it is done."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json, write_json

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Stage:
    """One command of a recipe.

    Attributes:
        name: names the log, the mark and the report's row.
        command: the words after `python`: a script, or `-m` and a module, and their options.
        processes: torchrun starts them if there are more than one.
        outputs: removed before a stage that was cut off is run again. A stage that can continue from what it
            wrote names none.
    """

    name: str
    command: tuple[str, ...]
    processes: int = 1
    outputs: tuple[Path, ...] = ()

    @property
    def words(self) -> list[str]:
        """The whole command line."""
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        return [sys.executable, *(launcher if self.processes > 1 else []), *self.command]


def longrope2(*words: object) -> tuple[str, ...]:
    """The command `longrope2 WORDS` of a stage."""
    return ("-m", "megatron_longrope2", *map(str, words))


def run_stages(stages: Sequence[Stage], folder: Path) -> list[dict[str, object]]:
    """Run the stages in order; those that an earlier, cut-off run completed are not run again.

    Args:
        folder: the run's folder; `stages/NAME.json` and `logs/NAME.log` are written there.

    Returns:
        {name, seconds} of each stage.

    Raises:
        InputError: a stage failed; the message shows the end of its log.
    """
    rows = []
    for number, stage in enumerate(stages, start=1):
        mark = folder / "stages" / f"{stage.name}.json"
        title = f"[{number:2}/{len(stages)}] {stage.name}"
        done = read_json(mark) if mark.exists() else {}
        if done.get("command") == list(stage.command):
            print(f"{title}: done before", flush=True)
        else:
            for output in stage.outputs:
                if output.is_dir():
                    shutil.rmtree(output)
                else:
                    output.unlink(missing_ok=True)
            seconds = _run(stage, title, folder / "logs" / f"{stage.name}.log")
            done = {"name": stage.name, "seconds": round(seconds, 1), "command": list(stage.command)}
            write_json(mark, done)
        rows.append({"name": stage.name, "seconds": done["seconds"]})
    return rows


def _run(stage: Stage, title: str, log: Path) -> float:
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    # Processes share the cores; one process alone takes them all.
    threads = str(max(1, (os.cpu_count() or 1) // stage.processes))
    with log.open("w") as stream:
        print("$", shlex.join(stage.words), file=stream, flush=True)
        process = subprocess.Popen(
            stage.words,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"},
        )
        try:
            while process.poll() is None:
                _show(title, time.monotonic() - start, log)
                time.sleep(0.5)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    seconds = time.monotonic() - start
    clear = "\r\033[K" if sys.stdout.isatty() else ""
    print(f"{clear}{title}: {seconds:.0f} s", flush=True)
    if process.returncode:
        end = log.read_text(errors="replace")[-3000:]
        raise InputError(f"{log}: the stage ended with exit status {process.returncode}:\n{end}")
    return seconds


def _show(title: str, seconds: float, log: Path) -> None:
    """On a terminal: time so far and the last line of the log, such as a progress bar."""
    if not sys.stdout.isatty():
        return
    with log.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - 2000))
        lines = stream.read().decode(errors="replace").replace("\r", "\n").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    width = shutil.get_terminal_size().columns
    print(f"\r\033[K{f'{title}: {seconds:3.0f} s  {last}'[: width - 1]}", end="", flush=True)


def save_settings(folder: Path, settings: dict[str, object]) -> None:
    """Note what the run folder was made with.

    Raises:
        InputError: it was made with other settings.
    """
    path = folder / "settings.json"
    if path.exists() and read_json(path) != json.loads(json.dumps(settings)):
        raise InputError(f"{folder}: made with other settings; remove it or choose another --output")
    write_json(path, settings)
