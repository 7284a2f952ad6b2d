"""What a shell script runs, without running it: bash reads the script, stand-ins write its commands down."""

import subprocess
from argparse import ArgumentParser
from functools import cache
from pathlib import Path
from typing import Any

from megatron_longrope2.cli import longrope2
from tests.processes import ROOT

# What scripts may really run: these change nothing outside of a pipe or a substitution.
REAL = ("bash", "cat", "dirname", "env", "head", "nproc", "tr")
# Words end with NUL, and a command with a record separator.
STAND_IN = """#!/usr/bin/bash
printf '%s\\0' "${0##*/}" "$@" $'\\x1e' >>"$COMMANDS"
if [[ ${0##*/} == srun ]]; then
    while [[ ${1-} == -* ]]; do shift; done
    exec "$@"
fi
"""


def commands(script: str, folder: Path, **environment: str) -> list[list[str]]:
    """Every command that a script calls, as its words; what srun starts follows it.

    A command that has no stand-in is in the list too: bash does not find it.

    Args:
        script: what bash reads, from the repository's root.
        folder: an empty one, for stand-ins and the list.
        environment: the script's, beside the path.

    Raises:
        AssertionError: the script ends with an error.
    """
    path, listed = folder / "bin", folder / "commands"
    path.mkdir(parents=True)
    listed.touch()
    stand_in = path / "srun"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    for name in ("longrope2", "make", "pip", "python", "torchrun"):
        (path / name).symlink_to("srun")
    for name in REAL:
        (path / name).symlink_to(f"/usr/bin/{name}")
    missing = (
        f'command_not_found_handle() {{ {path}/python unknown: "$@"; }}; export -f command_not_found_handle\n'
    )
    finished = subprocess.run(
        ["/usr/bin/bash", "-euo", "pipefail", "-c", missing + script],
        env={"PATH": str(path), "COMMANDS": str(listed), "HOME": str(folder), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return [words.split("\0")[:-1] for words in listed.read_text().split("\x1e\0")[:-1]]


def verb(words: list[str]) -> list[str] | None:
    """The words after `longrope2`, however it is started; None for another command."""
    if words[0] == "longrope2":
        return words[1:]
    place = words.index("megatron_longrope2") if "megatron_longrope2" in words else 0
    return words[place + 1 :] if place and words[place - 1] == "-m" else None


def parsed(words: list[str]) -> dict[str, Any]:
    """What the verb's own parser makes of a command: Megatron's for training, else cyclopts'.

    Raises:
        AssertionError, CycloptsError, InputError: it refuses the command.
    """
    if words[:1] == ["train"] and not {"--help", "--help-megatron"} & set(words):
        found, unknown = training_parser().parse_known_args(words[1:])
        assert not unknown, f"train has no {' '.join(unknown)}"
        return vars(found)
    function, bound, _ = longrope2().parse_args(words, exit_on_error=False, print_error=False)
    return {"": function, **bound.arguments}


class Parser(ArgumentParser):
    """argparse's, which raises what is wrong."""

    def error(self, message: str) -> Any:
        raise AssertionError(message)


@cache
def training_parser() -> ArgumentParser:
    """The parser of `longrope2 train`: Megatron's arguments and ours."""
    from megatron_longrope2 import device

    device.install()
    from megatron.training.arguments import add_megatron_arguments

    from megatron_longrope2.training.arguments import add_training_arguments

    return add_training_arguments(add_megatron_arguments(Parser("longrope2 train", allow_abbrev=False)))
