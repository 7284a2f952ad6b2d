"""`longrope2 VERB`, which is also `python -m megatron_longrope2 VERB`: what torchrun and srun start.

Each verb is a function in `tools/`, imported when it is called. Its options are its keyword arguments and the
fields of its settings: dataclasses that stand beside what they configure, whose docstrings are the help.
"""

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError, Group, Parameter, Token, convert

from megatron_longrope2 import __doc__, __version__
from megatron_longrope2.errors import InputError

# Seconds that the other processes of a machine leave its first one to say what is wrong.
OTHERS_WAIT = 30.0

# The verbs as `--help` groups them, in the order in which the pipeline runs.
VERBS = {
    "Prepare": {
        "import": "Convert a Hugging Face model folder to a Megatron checkpoint.",
        "preprocess": "Turn text into tokens, sorted by document length.",
        "needles": "Write needle samples as training documents.",
    },
    "Extend": {
        "factors": "Make, show, check and convert rescaling factors.",
        "search": "Search the rescaling factors of a model.",
        "plan": "List the parallel layouts that fit into GPU memory, and estimate their time.",
        "rehearse": "Run a rank of a large job on this machine, to see what fits into GPU memory.",
        "train": "Train with mixed context windows on Megatron's own loop.",
    },
    "Deliver": {
        "export": "Convert a Megatron checkpoint to a Hugging Face model folder.",
        "verify": "Compare two checkpoints: tensors, RoPE, and the logits that they compute.",
        "evaluate": "Measure needles, perplexity and lm-evaluation-harness tasks; write reports.",
    },
    "All of it on Slurm": {
        "submit": "Submit the whole pipeline as a chain of Slurm jobs.",
        "status": "Show where a chain of Slurm jobs is.",
    },
}


def command_line(name: str, **options: Any) -> App:
    """A command line on the project's conventions: how options repeat, and how defaults and help look."""
    return App(
        name=name,
        help_format="markdown",
        default_parameter=Parameter(
            consume_multiple=1,
            allow_repeating=True,
            negative=(),
            show_default=_as_typed,
            converter=_last_occurrence,
        ),
        result_action="return_value",
        group_parameters=Group("Other options", sort_key=1000),
        **options,
    )


def longrope2() -> App:
    """The command line, which raises what goes wrong."""
    app = command_line(
        "longrope2",
        help=f"{__doc__}\n\n`longrope2 VERB --help` lists the options of a verb.",
        version=__version__,
    )
    app["--help"].group = app["--version"].group = Group("Options", sort_key=len(VERBS))
    for place, (title, verbs) in enumerate(VERBS.items()):
        group = Group(title, sort_key=place)
        for number, (verb, what) in enumerate(verbs.items()):
            options: dict[str, Any] = {"name": verb, "help": what, "group": group, "sort_key": number}
            if verb == "train":  # its options, and their help, are Megatron's
                options |= {"help_flags": [], "version_flags": []}
            app.command(f"megatron_longrope2.tools.{verb}:main", **options)
    return app


def _as_typed(default: Any) -> str | None:
    """A default as a user would type it; options that are off show none."""
    if isinstance(default, tuple | list):
        return " ".join(map(str, default)) or None
    return None if default is False or default is None else str(default)


def _last_occurrence(kind: Any, tokens: Sequence[Token]) -> Any:
    """Convert the values of an option's last occurrence, where cyclopts would join all lists of values."""
    starts = [place for place, token in enumerate(tokens) if token.keyword and token.index == 0]
    return convert(kind, tokens[starts[-1] if starts else 0 :])


def run_main(app: App | None = None) -> None:
    """Run a command line on `sys.argv`; bad input ends it with one line on stderr and exit status 2.

    Under torchrun or srun every process meets the same mistake. The first one of each machine says so, and
    the launcher ends the others; one that is still there after `OTHERS_WAIT` met it alone, and says so.

    A reader that has seen enough of the output (`| head`) ends the command without a traceback, status 1.

    Args:
        app: `longrope2` by default.
    """
    app = app or longrope2()
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except (InputError, CycloptsError) as error:
        message = str(error).strip()
        if isinstance(error, CycloptsError):
            message += f" See `{' '.join([app.name[0], *(error.command_chain or ())])} --help`."
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(OTHERS_WAIT)
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.exit(2)
    except BrokenPipeError:
        # The interpreter flushes once more at exit; let it have somewhere to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
