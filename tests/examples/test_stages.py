"""How a recipe's stages are started, marked as done and reported when they fail."""

from pathlib import Path

import pytest

from examples.tiny_cpu.stages import Stage, run_stages, save_settings
from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json


def script(folder: Path, text: str) -> str:
    file = folder / "script.py"
    file.write_text(text)
    return str(file)


def test_ranks_a_log_and_a_mark(tmp_path: Path) -> None:
    command = (script(tmp_path, "import os; print('rank', os.environ['RANK'])"),)
    (row,) = run_stages([Stage("two", command, processes=2)], tmp_path)
    log = (tmp_path / "logs/two.log").read_text()
    assert log.startswith("$ ")
    assert {"rank 0", "rank 1"} <= set(log.splitlines())
    assert read_json(tmp_path / "stages/two.json")["seconds"] == row["seconds"] > 0


def test_only_what_is_not_done_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = tmp_path / "half"
    half.mkdir()
    made = script(tmp_path, f"import os; os.mkdir('{half}')")
    # What a stage that was cut off left behind is removed.
    stages = [Stage("make", (made,), outputs=(half,))]
    assert run_stages(stages, tmp_path) == run_stages(stages, tmp_path)
    assert "make: done before" in capsys.readouterr().out
    # Another command is another stage.
    with pytest.raises(InputError):
        run_stages([Stage("make", (made, "--other"))], tmp_path)


def test_a_stage_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    command = (script(tmp_path, "import sys; sys.exit('this is why')"),)
    with pytest.raises(InputError, match=r"(?s)exit status 1:.*this is why"):
        run_stages([Stage("fail", command)], tmp_path)
    assert not (tmp_path / "stages/fail.json").exists()


def test_another_recipe_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    save_settings(tmp_path, {"target_length": 1024})
    save_settings(tmp_path, {"target_length": 1024})
    with pytest.raises(
        InputError, match=f"{tmp_path}: made with other settings; remove it or choose another"
    ):
        save_settings(tmp_path, {"target_length": 512})
