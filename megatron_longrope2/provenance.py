"""Where a result comes from: the command, the date, the device and the versions behind it."""

import platform
import shlex
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from megatron_longrope2 import __version__

PACKAGES = ("torch", "megatron-core", "transformer-engine", "transformers", "numpy", "lm_eval")


def provenance() -> dict[str, Any]:
    """`command`, `date`, `device` and `versions` of this process, JSON-ready."""
    return {
        "command": command(),
        "date": time.strftime("%Y-%m-%d"),
        "device": device_name(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The versions of this package, of Python and of the packages that results depend on, if installed."""
    found = {"megatron_longrope2": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def command() -> str:
    """This process's command line, as a user would type it."""
    program = Path(sys.argv[0])
    started_as_module = program.name == "__main__.py" and program.parent.name == "megatron_longrope2"
    return shlex.join(["longrope2" if started_as_module else program.name, *sys.argv[1:]])


def device_name() -> str:
    """The GPU's name, or the processor's where there is no GPU."""
    import torch  # it takes seconds

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()
