"""The tiny example's whole chain on a real Slurm: warnings, a killed rank, bad input, two nodes and one."""

import os
import re
import signal
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
from megatron_longrope2.launch.run_folder import load_chain, stage_report
from tests.forked_python import forked_python
from tests.processes import ROOT, Processes
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import processes

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

STEPS = 20
# A machine that is busy with other things takes several times as long.
PATIENCE = 900


@pytest.fixture(scope="module")
def settings() -> Iterator[str]:
    """The tiny example's, with a Python that has imported Megatron already."""
    with forked_python() as python:
        yield (
            (ROOT / "slurm/tiny_cpu.toml")
            .read_text()
            .replace('"../runs/slurm_tiny"', '"run"')
            .replace("{here}/../.venv/bin/python", str(python))
            .replace("{here}/..", str(ROOT))
            .replace('"../', f'"{ROOT}/')
            # One process, and long enough to be interrupted.
            .replace('nodes = 2\noptions = "--samples 2', 'options = "--samples 2')
            .replace("--iterations 1 ", "--iterations 40 ")
        )


def longrope2(cluster: Cluster, *words: object) -> tuple[int, str]:
    """Exit status and output of a command that talks to the cluster."""
    finished = cluster.run(sys.executable, "-m", "megatron_longrope2", *map(str, words), check=False)
    return finished.returncode, finished.stdout + finished.stderr


def submit(cluster: Cluster, folder: Path, text: str, *options: str) -> tuple[Path, dict[str, str]]:
    """Submit a chain; its run folder and jobs."""
    file = folder / "settings.toml"
    file.write_text(text)
    status, output = longrope2(cluster, "submit", file, *options)
    assert status == 0, output
    return folder / "run", dict(re.findall(r"^(\w+) +job (\d+)$", output, re.MULTILINE))


def wait(condition: Callable[[], Any], run: Path, stopped: str = "") -> Any:
    """Poll until a condition holds; a stage that stops on the way ends the test, except the one named."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, logs(run)
        for report in run.glob("stages/*/report.json"):
            assert read_json(report)["outcome"] != "stopped" or report.parent.name == stopped, logs(run)
        time.sleep(0.1)
    return value


@contextmanager
def meanwhile(ranks: int, *command: str) -> Iterator[None]:
    """Run a stage's command without Slurm while the chain continues; it must end well."""
    process = Processes("-m", "megatron_longrope2", *command, ranks=ranks)
    try:
        yield
        done = process.wait(PATIENCE)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    finally:
        process.kill()


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


def saved(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer states."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        state = dist_checkpointing.load_plain_tensors(str(checkpoint))
    finally:
        torch.distributed.destroy_process_group()
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def test_the_chain_survives(cluster: Cluster, settings: str, tmp_path: Path) -> None:
    no_pools = settings.replace("{run}/data/", "{run}/other/").replace("/needles/train", "/needles/other")
    bad_search = no_pools.replace(
        'options = "--samples 2', 'processes_per_node = 2\noptions = "--samples two'
    )
    run, jobs = submit(cluster, tmp_path, bad_search)
    assert list(jobs) == ["import", "preprocess", "needles", "search", "train", "export", "evaluate"]
    status, output = longrope2(cluster, "submit", tmp_path / "settings.toml")
    assert status == 2
    assert "submitted already" in output
    assert jobs["train"] in output
    stopped_by_a_rank(cluster, run)

    whole_search, whole = tmp_path / "whole-search", tmp_path / "whole"
    _, jobs = submit(cluster, tmp_path, no_pools, "--resume")
    assert list(jobs) == ["search", "train", "export", "evaluate"]
    # What both are compared with runs beside the chain, and is waited for when nothing is left to interrupt.
    with meanwhile(1, *without_slurm(run, "search", "search", whole_search)):
        warn_the_search(cluster, run, jobs["search"])
        stopped_by_preflight(cluster, run, jobs["train"])
    check_the_search(run, whole_search)
    status, output = longrope2(cluster, "submit", tmp_path / "settings.toml")
    assert status == 2
    assert "--resume" in output

    _, jobs = submit(cluster, tmp_path, settings, "--resume")
    assert list(jobs) == ["train", "export", "evaluate"]
    command = without_slurm(run, "train", "checkpoints", whole)
    with meanwhile(2, *command, "--save-interval", str(STEPS)):
        kill_a_rank(cluster, run, jobs["train"])
        warn_training(cluster, run, jobs["train"])
        wait(lambda: stage_report(run, "evaluate").get("outcome") == "done", run, stopped="train")
    check_training(run, jobs["train"], whole)
    assert (run / "hf/config.json").exists()
    assert (run / "evaluation/needle.json").exists()
    wait(lambda: not cluster.run("squeue", "-h").stdout, run)
    status, output = longrope2(cluster, "status", run)
    assert len(re.findall(r" done +\d", output)) == 7, output


def stopped_by_a_rank(cluster: Cluster, run: Path) -> None:
    """What only the ranks can find wrong stops the chain as what preflight finds does."""
    wait(lambda: stage_report(run, "search"), run, stopped="search")
    report = stage_report(run, "search")
    assert (report["outcome"], report["attempts"][0]["status"]) == ("stopped", 2), logs(run)
    assert "error: Invalid value" in (run / "stages/search/attempt-1/rank-0.log").read_text()
    wait(lambda: not cluster.run("squeue", "-h").stdout, run, stopped="search")


def stopped_by_preflight(cluster: Cluster, run: Path, job: str) -> None:
    """All that is wrong is said at once, nothing is started, and what depends on it leaves the queue."""
    wait(lambda: stage_report(run, "train"), run, stopped="train")
    log = (run / f"stages/train/job-{job}.log").read_text()
    for problem in ("other/short.bin: no such file", "needles/other.idx: no such file"):
        assert f"preflight: {run}/{problem}" in log, log
    assert "6 problems" in log
    report = stage_report(run, "train")
    assert (report["outcome"], report["attempts"][0]["status"]) == ("stopped", 2)
    assert not list((run / "stages/train/attempt-1").glob("rank-*.log"))
    wait(lambda: not cluster.run("squeue", "-h").stdout, run, stopped="train")
    status, output = longrope2(cluster, "status", run)
    assert status == 0
    assert re.search(r"^train +\d+ +stopped +1 .*bad input", output, re.MULTILINE), output
    assert re.search(r"^export +\d+ +ended +0 ", output, re.MULTILINE), output


def warn_the_search(cluster: Cluster, run: Path, job: str) -> None:
    """Slurm's warning: the search is ended, the job goes back into the queue."""
    wait((run / "search/state.json").exists, run, stopped="search")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    wait(lambda: stage_report(run, "search")["outcome"] == "again", run, stopped="search")


def check_the_search(run: Path, whole: Path) -> None:
    """The job continued from the saved state, to the result of a search that was never interrupted."""
    attempts = stage_report(run, "search")["attempts"][1:]
    assert [attempt["ending"] for attempt in attempts] == ["warned", "done"], logs(run)
    assert 0 < attempts[0]["step"] < attempts[1]["step"]
    expected, found = (read_json(folder / "search.json") for folder in (whole, run / "search"))
    assert found["history"] == expected["history"]


def kill_a_rank(cluster: Cluster, run: Path, job: str) -> None:
    """A rank of the second node dies after a checkpoint: the other one is ended, the job is requeued."""
    wait(lambda: max(iterations(run, 2), default=0) > 5, run, stopped="train")
    (rank,) = [
        pid
        for pid, command in processes(SLURM_JOB_ID=job, SLURM_PROCID="1")
        if " -m megatron_longrope2 train" in command
    ]
    os.kill(rank, signal.SIGKILL)
    killed = time.monotonic()
    wait(lambda: stage_report(run, "train")["outcome"] == "again", run, stopped="train")
    assert time.monotonic() - killed < 60
    status, output = longrope2(cluster, "status", run)
    assert status == 0
    assert re.search(r"^train +\d+ +(pending|completing|running) +[23] ", output, re.MULTILINE), output


def warn_training(cluster: Cluster, run: Path, job: str) -> None:
    """Slurm's warning before the time limit: save, end, requeue."""
    wait(lambda: max(iterations(run, 3), default=0) > 6, run)
    cluster.run("scancel", "--batch", "--signal=USR1", job)


def check_training(run: Path, job: str, whole: Path) -> None:
    """Three attempts, and the weights are those of a run that was never interrupted, to the last bit."""
    attempts = stage_report(run, "train")["attempts"][1:]
    assert [attempt["ending"] for attempt in attempts] == ["failed", "warned", "done"], logs(run)
    assert {attempt["job"] for attempt in attempts} == {job}
    for number, attempt in enumerate(attempts, start=2):
        assert len(list((run / f"stages/train/attempt-{number}").glob("rank-[01].log"))) == 2
        assert attempt["step"] == max(iterations(run, number))
    # The next attempt continues from a regular checkpoint, the last from exactly where that one stopped.
    assert iterations(run, 3)[0] in (6, 11, 16)
    assert iterations(run, 4)[0] == attempts[1]["step"] + 1
    assert attempts[2]["step"] == STEPS

    expected, found = (saved(place / f"iter_{STEPS:07d}") for place in (whole, run / "checkpoints"))
    assert len(expected) > 20
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_refused_before_anything_is_submitted(cluster: Cluster, settings: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    for text, message in (
        (settings.replace('"tiny"\nwarning', '"tinny"\nwarning'), "no partition 'tinny' on this cluster"),
        (
            settings.replace('run = "run"', 'run = "settings.toml/run"'),
            "job.sh: cannot be written: Not a directory",
        ),
        (settings.replace("[slurm]\n", '[slurm]\noptions = ["--no-such-option"]\n'), "sbatch: "),
    ):
        file.write_text(text)
        status, output = longrope2(cluster, "submit", file)
        assert status == 2, output
        assert output.startswith("error: ")
        assert message in output
        assert output.count("\n") == 1
    assert not cluster.run("squeue", "-h").stdout
