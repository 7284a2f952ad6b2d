"""The one exception that a user's mistake raises, and what other libraries' errors say in it."""

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError


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
