"""What the documents say to type is what the real parsers accept: commands, and options that are named."""

import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from cyclopts import App, CycloptsError

from benchmarks.__main__ import benchmarks
from examples.small_gpu.run import app as small_gpu
from examples.tiny_cpu.run import app as tiny_cpu
from megatron_longrope2.cli import longrope2
from megatron_longrope2.errors import InputError
from megatron_longrope2.launch.__main__ import app as launch
from tests.processes import ROOT
from tests.shell import commands, parsed, training_parser, verb

PAGES = sorted(
    path.relative_to(ROOT)
    for path in (
        ROOT / "README.md",
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("examples/*/*.md"),
        *ROOT.glob("benchmarks/*.md"),
    )
)
# Modules with a command line of their own.
APPS = {
    "benchmarks": benchmarks,
    "examples.small_gpu.run": small_gpu,
    "examples.tiny_cpu.run": tiny_cpu,
    "megatron_longrope2.launch": launch,
}
# Scripts that are not bash's to run here: they ask the machine for its GPU.
SCRIPTS = ("examples/small_gpu/run_on_gpu.sh",)
# Commands that are not this project's.
FOREIGN = {"cp", "curl", "enroot", "huggingface-cli", "ls", "mkdir", "pip", "scancel", "srun"}
# Options that are named alone, of programs that are not this project's: Slurm, vLLM, torchrun.
FOREIGN_OPTIONS = {
    "--container-image",
    "--gpu-bind",
    "--gpus-per-task",
    "--max-model-len",
    "--nproc-per-node",
}
# How a line that is a command begins.
COMMAND = re.compile(r"^(longrope2|torchrun|srun|make|pip|python -m|examples/\S+\.sh) ", re.MULTILINE)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of a page's fenced blocks."""
    for match in re.finditer(
        r"^( *)```(\w*)\n(.*?)^\1```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL
    ):
        yield match[2], textwrap.dedent(match[3])


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_are_in_blocks_of_bash(page: Path) -> None:
    for language, text in blocks(page):
        assert language == "bash" or not COMMAND.search(text), text


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_command_is_accepted(page: Path, tmp_path: Path) -> None:
    script = "".join(f'{name}() {{ python {name} "$@"; }}\n' for name in SCRIPTS)
    script += "".join(text for language, text in blocks(page) if language == "bash")
    for words in commands(script, tmp_path / "shell"):
        try:
            accept([word for word in words if word != "..."])
        except (AssertionError, CycloptsError, InputError) as error:
            pytest.fail(f"{page}: {' '.join(words)}: {error}")


def accept(words: list[str]) -> None:
    """See that a command is one that its parser takes.

    Raises:
        AssertionError, CycloptsError, InputError: it is not.
    """
    ours = verb(words)
    name, *rest = words
    if ours is not None:
        parsed(ours)
    elif name == "make":
        assert set(rest) <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    elif name == "python" and rest[0] == "unknown:":
        assert rest[1] in FOREIGN, "no such command"
    elif name == "python" and rest[0] == "-m" and rest[1] in APPS:
        APPS[rest[1]].parse_args(rest[2:], exit_on_error=False, print_error=False)
    elif name == "python" and rest[:2] == ["-m", "pytest"]:
        assert all((ROOT / word).exists() for word in rest[2:])
    else:
        # What srun starts, scripts included, is in the list by itself.
        assert name in ("srun", "pip") or rest[0] in ("-c", *SCRIPTS), "no such command"


@cache
def known_options() -> frozenset[str]:
    """Every option of every parser."""
    apps = [longrope2(), *APPS.values()]
    ours = {name for app in apps for name in options(app)}
    return frozenset(
        {*training_parser()._option_string_actions, *ours, *FOREIGN_OPTIONS, "--help", "--help-megatron"}
    )


def options(app: App) -> set[str]:
    """The options of an app and of its commands."""
    found: set[str] = set()
    if app.default_command is not None:
        for argument in app.assemble_argument_collection():
            found |= {name for name in argument.names if name.startswith("--")}
    return found.union(*(options(app[name]) for name in app if not name.startswith("-")))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_option_that_is_named_exists(page: Path) -> None:
    text = (ROOT / page).read_text()
    for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text):
        foreign = span.split()[0] in FOREIGN
        for option in () if foreign else re.findall(r"(?<![\w-])--[a-z][\w.-]*", span):
            assert option in known_options(), f"{page}: `{span}`"
