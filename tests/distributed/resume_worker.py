"""Run under torchrun: training runs one after another, each resumed in its own parallel layout.

usage: resume_worker.py RUNS.json

RUNS.json is a list of Megatron command lines.
"""

import json
import sys
from pathlib import Path

from megatron_longrope2 import device

device.install()

from megatron.training.training import destroy_global_state

from megatron_longrope2.training.loop import train


def main() -> None:
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        sys.argv = [sys.argv[0], *arguments]
        train()
        destroy_global_state()


if __name__ == "__main__":
    main()
