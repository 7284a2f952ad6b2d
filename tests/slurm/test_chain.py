"""The tiny example's whole chain on a real Slurm: warnings, a killed rank, bad input, two nodes and one."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing

from megatron_longrope2.files import read_json
from megatron_longrope2.launch.chain import load_chain
from tests.distributed.launch import ROOT, free_port
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import processes

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

STEPS = 20
# A machine that is busy with other things takes several times as long.
PATIENCE = 900

SETTINGS = (
    (ROOT / "slurm/tiny_cpu.toml")
    .read_text()
    .replace('"../runs/slurm_tiny"', '"run"')
    .replace("{here}/../.venv/bin/python", sys.executable)
    .replace("{here}/..", str(ROOT))
    .replace('"../', f'"{ROOT}/')
    # Two processes on one node, and long enough to be interrupted.
    .replace('nodes = 2\noptions = "--samples 2', 'processes_per_node = 2\noptions = "--samples 2')
    .replace("--iterations 1 ", "--iterations 12 ")
)


def tool(cluster: Cluster, *words: object) -> tuple[int, str]:
    """Exit status and output of a command of tools/."""
    finished = cluster.run(sys.executable, *map(str, words), check=False)
    return finished.returncode, finished.stdout + finished.stderr


def submit(cluster: Cluster, folder: Path, text: str, *options: str) -> tuple[Path, dict[str, str]]:
    """Submit a chain; its run folder and jobs."""
    file = folder / "settings.toml"
    file.write_text(text)
    status, output = tool(cluster, ROOT / "tools/submit.py", file, *options)
    assert status == 0, output
    return folder / "run", dict(re.findall(r"^(\w+) +job (\d+)$", output, re.MULTILINE))


def wait(condition: Callable[[], Any], run: Path, stopped: str = "") -> Any:
    """Poll until a condition holds; a stage that stops on the way ends the test, but for one."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, logs(run)
        for report in run.glob("stages/*/report.json"):
            assert read_json(report)["outcome"] != "stopped" or report.parent.name == stopped, logs(run)
        time.sleep(0.1)
    return value


@contextmanager
def meanwhile(processes: int, *command: str) -> Iterator[None]:
    """Run a stage's command without Slurm while the chain goes on; it must end well."""
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", str(processes))
    port = ("--master-port", str(free_port()))
    process = subprocess.Popen(
        [sys.executable, *launcher, *port, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, output[-4000:]
    finally:
        process.terminate()
        process.wait()


def without_slurm(run: Path, stage: str, folder: str, other: Path) -> list[str]:
    """The command of a stage with another output folder."""
    (command,) = load_chain(run)[0]["commands"][stage]
    return [word.replace(str(run / folder), str(other)) for word in command]


def logs(run: Path) -> str:
    """The end of every log."""
    files = [*run.glob("stages/*/job-*.log"), *run.glob("stages/*/attempt-*/rank-*.log")]
    return "\n".join(f"--- {file}\n{file.read_text(errors='replace')[-1500:]}" for file in sorted(files))


def iterations(run: Path, attempt: int) -> list[int]:
    """Training iterations that an attempt logged."""
    folder = run / f"stages/train/attempt-{attempt}"
    text = "".join(log.read_text(errors="replace") for log in sorted(folder.glob("rank-*.log")))
    return [int(found) for found in re.findall(r"iteration +(\d+)/", text)]


def outcome(run: Path, stage: str) -> str | None:
    """What a stage's report says, if there is one."""
    report = run / f"stages/{stage}/report.json"
    return read_json(report)["outcome"] if report.exists() else None


def saved(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer states."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        state = dist_checkpointing.load_plain_tensors(str(checkpoint))
    finally:
        torch.distributed.destroy_process_group()
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def test_the_chain_survives(cluster: Cluster, tmp_path: Path) -> None:
    run, jobs = submit(cluster, tmp_path, SETTINGS.replace("--samples 2", "--samples 0"))
    assert list(jobs) == ["import", "preprocess", "needles", "search", "train", "export", "evaluate"]
    status, output = tool(cluster, ROOT / "tools/submit.py", tmp_path / "settings.toml")
    assert status == 2
    assert "submitted already" in output
    assert jobs["train"] in output

    # What only the ranks can find wrong stops the chain as what preflight finds does.
    wait(lambda: outcome(run, "search"), run, stopped="search")
    report = read_json(run / "stages/search/report.json")
    assert (report["outcome"], report["attempts"][0]["status"]) == ("stopped", 2), logs(run)
    assert "error: --samples: 0 is not" in (run / "stages/search/attempt-1/rank-0.log").read_text()
    wait(lambda: not cluster.run("squeue", "-h").stdout, run, stopped="search")
    _, jobs = submit(cluster, tmp_path, SETTINGS, "--resume")
    assert list(jobs) == ["search", "train", "export", "evaluate"]

    # What both are compared with runs beside the chain, and is waited for when nothing is left to interrupt.
    warn_the_search(cluster, run, jobs["search"])
    whole_search, whole = tmp_path / "whole-search", tmp_path / "whole"
    with meanwhile(1, *without_slurm(run, "search", "search", whole_search)):
        kill_a_rank(cluster, run, jobs["train"])
        command = without_slurm(run, "train", "checkpoints", whole)
        with meanwhile(2, *command, "--save-interval", str(STEPS)):
            warn_training(cluster, run, jobs["train"])
            wait(lambda: outcome(run, "evaluate") == "done", run)
    check_the_search(run, whole_search)
    check_training(run, jobs["train"], whole)
    assert (run / "hf/config.json").exists()
    assert (run / "evaluation/needle.json").exists()
    wait(lambda: "evaluate" not in cluster.run("squeue", "-h", "-o", "%j").stdout, run)
    status, output = tool(cluster, ROOT / "tools/status.py", run)
    assert len(re.findall(r" done +\d", output)) == 7, output


def warn_the_search(cluster: Cluster, run: Path, job: str) -> None:
    """Slurm's warning: the ranks end, the job goes back into the queue."""
    wait((run / "search/state.json").exists, run, stopped="search")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    wait((run / "stages/search/attempt-2/end.json").exists, run, stopped="search")


def check_the_search(run: Path, whole: Path) -> None:
    """The job went on from the ranks' state, to the result of a search that was never interrupted."""
    attempts = read_json(run / "stages/search/report.json")["attempts"][1:]
    assert [attempt["ending"] for attempt in attempts] == ["warned", "done"], logs(run)
    assert 0 < attempts[0]["step"] < attempts[1]["step"]
    for number in (2, 3):
        assert len(list((run / f"stages/search/attempt-{number}").glob("rank-[01].log"))) == 2
    expected, found = (read_json(folder / "search.json") for folder in (whole, run / "search"))
    assert found["history"] == expected["history"]


def kill_a_rank(cluster: Cluster, run: Path, job: str) -> None:
    """A rank of the second node dies after a checkpoint: the other one is ended, the job is requeued."""
    wait(lambda: max(iterations(run, 1), default=0) > 5, run)
    (rank,) = [
        pid
        for pid, command in processes(SLURM_JOB_ID=job, SLURM_PROCID="1")
        if command.startswith(f"{sys.executable} -m megatron_longrope2.pretrain")
    ]
    os.kill(rank, signal.SIGKILL)
    killed = time.monotonic()
    wait((run / "stages/train/attempt-1/end.json").exists, run)
    assert time.monotonic() - killed < 60
    status, output = tool(cluster, ROOT / "tools/status.py", run)
    assert status == 0
    assert re.search(r"^train +\d+ +(pending|completing|running) +[12] ", output, re.MULTILINE), output


def warn_training(cluster: Cluster, run: Path, job: str) -> None:
    """Slurm's warning before the time limit: save, end, requeue."""
    wait(lambda: max(iterations(run, 2), default=0) > 6, run)
    cluster.run("scancel", "--batch", "--signal=USR1", job)


def check_training(run: Path, job: str, whole: Path) -> None:
    """Three attempts, and the weights are those of a run that was never interrupted, to the last bit."""
    attempts = read_json(run / "stages/train/report.json")["attempts"]
    assert [attempt["ending"] for attempt in attempts] == ["failed", "warned", "done"], logs(run)
    assert {attempt["job"] for attempt in attempts} == {job}
    for number, attempt in enumerate(attempts, start=1):
        assert len(list((run / f"stages/train/attempt-{number}").glob("rank-[01].log"))) == 2
        assert attempt["step"] == max(iterations(run, number))
    # The second attempt goes on from a regular checkpoint, the third from exactly where the second stopped.
    assert iterations(run, 2)[0] in (6, 11, 16)
    assert iterations(run, 3)[0] == attempts[1]["step"] + 1
    assert attempts[2]["step"] == STEPS

    expected, found = (saved(place / f"iter_{STEPS:07d}") for place in (whole, run / "checkpoints"))
    assert len(expected) > 20
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_preflight_tells_everything_at_once(cluster: Cluster, tmp_path: Path) -> None:
    text = re.sub(r"\[stages\.(preprocess|needles|search)\]\n((?!\[).*\n)+", "", SETTINGS)
    text = text.replace("[slurm]", 'factors = "missing.json"\n\n[slurm]')
    run, jobs = submit(cluster, tmp_path, text)
    assert list(jobs) == ["import", "train", "export", "evaluate"]
    deadline = time.monotonic() + PATIENCE
    while outcome(run, "train") is None:
        assert time.monotonic() < deadline, logs(run)
        time.sleep(0.2)
    log = (run / f"stages/train/job-{jobs['train']}.log").read_text()
    for problem in ("missing.json", "data/short.bin: no such file", "needles/train.idx: no such file"):
        assert f"preflight: {problem}" in re.sub(rf"{run}/", "", log), log
    assert "7 problems" in log
    report = read_json(run / "stages/train/report.json")
    assert (report["outcome"], report["attempts"][0]["status"]) == ("stopped", 2)
    assert not list((run / "stages/train/attempt-1").glob("rank-*.log"))
    # What depends on it leaves the queue.
    while cluster.run("squeue", "-h").stdout:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    status, output = tool(cluster, ROOT / "tools/status.py", run)
    assert re.search(r"^train +\d+ +stopped +1 .*bad input", output, re.MULTILINE), output
    assert re.search(r"^export +\d+ +ended +0 ", output, re.MULTILINE), output
    status, output = tool(cluster, ROOT / "tools/submit.py", tmp_path / "settings.toml")
    assert status == 2
    assert "--resume" in output


def test_refused_before_anything_is_submitted(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    for text, message in (
        (SETTINGS.replace('"tiny"\nwarning', '"tinny"\nwarning'), "no partition 'tinny' on this cluster"),
        (SETTINGS.replace('run = "run"', 'run = "settings.toml/run"'), "the run folder cannot be written"),
        (SETTINGS.replace("[slurm]\n", '[slurm]\noptions = ["--no-such-option"]\n'), "sbatch: "),
    ):
        file.write_text(text)
        status, output = tool(cluster, ROOT / "tools/submit.py", file)
        assert status == 2, output
        assert output.startswith("error: ")
        assert message in output
        assert output.count("\n") == 1
    assert not cluster.run("squeue", "-h").stdout
