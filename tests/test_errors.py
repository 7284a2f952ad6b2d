import subprocess
import sys
import time

import pytest

from megatron_longrope2.cli import OTHERS_WAIT, command_line, run_main
from megatron_longrope2.errors import InputError


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["test"])


def test_bad_input_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise InputError("factors.json: long_factor: has 31 numbers, the model needs 32; make it again")

    with pytest.raises(SystemExit) as exit_:
        run_main(command_line("test", default_command=main))
    assert exit_.value.code == 2
    assert capsys.readouterr().err == (
        "error: factors.json: long_factor: has 31 numbers, the model needs 32; make it again\n"
    )


def test_the_first_process_of_a_machine_speaks_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main() -> None:
        raise InputError("factors.json: cannot be read")

    waited: list[tuple[float, str]] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: waited.append((seconds, capsys.readouterr().err)))
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as exit_:
        run_main(command_line("test", default_command=main))
    assert exit_.value.code == 2
    assert waited == [(OTHERS_WAIT, "")]
    assert capsys.readouterr().err == "error: factors.json: cannot be read\n"


def test_other_errors_keep_their_traceback() -> None:
    def main() -> None:
        raise KeyError("a defect")

    with pytest.raises(KeyError):
        run_main(command_line("test", default_command=main))


def test_output_into_a_closed_pipe_ends_quietly() -> None:
    script = (
        "from megatron_longrope2.cli import command_line, run_main\n"
        "def main(): [print(i, flush=True) for i in range(100000)]\n"
        "run_main(command_line('test', default_command=main))"
    )
    shell = f'"{sys.executable}" -c "{script}" | head -1'
    finished = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert finished.stdout == "0\n"
    assert "Traceback" not in finished.stderr
