"""`longrope2 verify`."""

import sys
from pathlib import Path

from megatron_longrope2.checkpoint.settings import VerifySettings
from megatron_longrope2.files import write_json

DEFAULTS = VerifySettings()


def main(
    first: Path,
    second: Path,
    /,
    *,
    settings: VerifySettings = DEFAULTS,
    structure_only: bool = False,
    output: Path | None = None,
) -> None:
    """Compare two checkpoints: tensors, shapes, RoPE, and the logits that they compute.

    The exit status is 0 where they are the same, 1 where they differ, and 2 for bad input.

    Args:
        first: A Hugging Face model folder, or what Megatron's --load names.
        second: The checkpoint to compare with, of either kind.
        structure_only: Compare names, shapes and RoPE without reading weights, for models that do not fit in
            memory.
        output: Also write the differences of the logits to this JSON file.
    """
    from megatron_longrope2 import device
    from megatron_longrope2.checkpoint.verify import compare_logits, differences, logit_table, read_structure

    say = print if device.is_first_process() else lambda *_: None
    one, other = read_structure(first), read_structure(second)
    say(f"first:  {first} ({one.kind}, {len(one.specs)} tensors)")
    say(f"second: {second} ({other.kind}, {len(other.specs)} tensors)")
    found = differences(one, other)
    say("\n".join(found) or "same tensors, shapes and RoPE")
    if found:
        sys.exit(1)
    if structure_only:
        return
    device.install()
    rows = compare_logits(first, second, settings)
    say(logit_table(rows))
    if output is not None and device.is_first_process():
        write_json(output, rows)
    if max(row["largest"] for row in rows) > settings.tolerance:
        say(f"the logits differ by more than {settings.tolerance:g}")
        sys.exit(1)
