"""The sentences around a needle: ours, and RULER's as the installed lm-evaluation-harness has them."""

import ast
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from megatron_longrope2.data.settings import WordingName
from megatron_longrope2.errors import InputError


@dataclass(frozen=True)
class Wording:
    """What a needle sample says beside book text; `{key}` and `{value}` stand for the key and the number.

    Attributes:
        opening: the first line.
        needle: states the number, on a line of its own.
        question: asks for it, and begins the answer that the number completes.
        joint: what stands between the two words of a key.
    """

    opening: str
    needle: str
    question: str
    joint: str = " "


SHORT = Wording(
    opening="A magic number is hidden in this text.\n",
    needle="\nThe magic number for {key} is: {value}.\n",
    question="\nWhat is the magic number for {key}? The magic number for {key} is: ",
)


def wording(name: WordingName) -> Wording:
    """The wording of a name.

    Raises:
        InputError: RULER's, without lm-evaluation-harness.
    """
    return SHORT if name == "short" else _ruler()


@cache
def _ruler() -> Wording:
    """RULER's wording for a single number, which LongRoPE2 searches with (Appendix C).

    The harness's sources are read, not imported: they make a list of six million keys, for which a rank of a
    search has no room. What they do to their template for a single number is done here too; a test compares
    the sample with theirs.
    """
    harness = find_spec("lm_eval")
    if harness is None or harness.origin is None:
        raise InputError(
            "--needle-wording: ruler is lm-evaluation-harness's; pip install 'megatron-longrope2[eval]'"
        )
    folder = Path(harness.origin).parent / "tasks" / "ruler"
    template, needle = (
        _constant(folder / file, name)
        for file, name in (("niah_utils.py", "TEMPLATE"), ("prepare_niah.py", "NEEDLE"))
    )
    template = template.replace("Some", "A").replace("are all", "is").replace("are", "is")
    opening, question = template.format(type_needle_v="number", context="\n", query="{key}").split("\n\n\n")
    answer = question.replace("What is the", "The").replace("?", " is")
    return Wording(
        opening=f"{opening}\n",
        needle="\n" + needle.format(type_needle_v="numbers", key="{key}", value="{value}") + "\n",
        question=f"\n{question} {answer} ",
        joint="-",
    )


def _constant(file: Path, name: str) -> str:
    """A string that a module assigns to a name at its top."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return str(ast.literal_eval(node.value))
    raise InputError(f"{file}: has no {name}; install lm-eval 0.4.13, or use --needle-wording short")
