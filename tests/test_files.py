from pathlib import Path

import pytest

from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json, replacing, write_json, write_text


def test_replaces_a_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


def test_failure_leaves_the_old_file_and_no_partial_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def half() -> None:
        with replacing(path) as partial:
            partial.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "folder"

    def fill(fail: bool) -> None:
        with replacing(path) as partial:
            partial.mkdir()
            (partial / "a").write_text("a")
            if fail:
                raise KeyError

    with pytest.raises(KeyError):
        fill(fail=True)
    assert list(tmp_path.iterdir()) == []
    fill(fail=False)
    assert (path / "a").read_text() == "a"


def test_a_full_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").write_text("")
    with (
        pytest.raises(InputError, match="folder: exists already and is not empty; choose another"),
        replacing(tmp_path / "folder"),
    ):
        pass
    assert (tmp_path / "folder" / "precious").exists()


def test_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"a": [1, 2.5, None]}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


def test_unreadable_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing.json: cannot be read: No such file or directory"):
        read_json(tmp_path / "missing.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken.json: not valid JSON: "):
        read_json(tmp_path / "broken.json")


def test_a_place_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "")
