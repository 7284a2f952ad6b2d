"""The one exception that a user's mistake raises, and what a command line does with it."""

import sys
from collections.abc import Callable


class InputError(Exception):
    """Bad input: one line that names the file, the field and the mend."""


def run_main(main: Callable[[], None]) -> None:
    """Call `main`; turn an `InputError` into one line on stderr and exit status 2."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
