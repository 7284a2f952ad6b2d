"""The one exception that a user's mistake raises, and what a command line does with it."""

import os
import reprlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pydantic import ValidationError

# Seconds that the other processes of a machine leave its first one to say what is wrong.
OTHERS_WAIT = 30.0


class InputError(Exception):
    """Bad input: one line that names the file, the field and the fix."""


@contextmanager
def naming(source: object) -> Iterator[None]:
    """Put the name of what is read, a file's for example, before the first error that is found inside.

    Raises:
        InputError: in place of an `InputError` or of pydantic's `ValidationError`.
    """
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except ValidationError as error:
        raise InputError(f"{source}: {refusals(error)[0]}") from error


def refusals(error: ValidationError) -> list[str]:
    """What pydantic refuses, a line each: `table.key: what is wrong`."""
    lines = []
    for one in error.errors():
        what = str(one.get("ctx", {}).get("error") or one["msg"])
        if one["type"] not in ("missing", "value_error", "extra_forbidden", "unexpected_keyword_argument"):
            what += f", not {reprlib.repr(one['input'])}"
        place = ".".join(map(str, one["loc"]))
        lines.append(f"{place}: {what}" if place else what)
    return lines


def one_line(error: BaseException) -> str:
    """What another library's exception says."""
    return " ".join(str(error).split()) or type(error).__name__


def run_main(main: Callable[[], None]) -> None:
    """Call `main`; turn an `InputError` into one line on stderr and exit status 2.

    Under torchrun or srun every process meets the same mistake. The first one of each machine says so, and
    the launcher ends the others; one that is still there after `OTHERS_WAIT` met it alone, and says so.

    A reader that has seen enough of the output (`| head`) ends the command without a traceback, status 1.
    """
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(OTHERS_WAIT)
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except BrokenPipeError:
        # The interpreter flushes once more at exit; let it have somewhere to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
