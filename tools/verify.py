"""Compare two checkpoints, Hugging Face or Megatron: tensors, shapes, RoPE, and the logits they compute."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from megatron_longrope2 import device
from megatron_longrope2.checkpoint.verify import compare_logits, differences, read_structure
from megatron_longrope2.errors import run_main
from megatron_longrope2.files import write_json


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("first", type=Path, help="Hugging Face model folder, or what Megatron's --load names")
    parser.add_argument("second", type=Path, help="the same, to compare with")
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        metavar="TOKENS",
        help="lengths of random sequences; None: the original length, and twice it if the RoPE is rescaled",
    )
    parser.add_argument(
        "--positions", type=int, default=64, help="positions of each sequence whose logits are compared"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random tokens")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest logit difference that passes (float32)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="also write the logits' differences as JSON"
    )
    parser.add_argument(
        "--structure-only",
        action="store_true",
        help="compare names, shapes and RoPE without reading weights, for models that do not fit in memory",
    )
    return parser.parse_args()


def _main() -> None:
    arguments = parse_arguments()
    first, second = read_structure(arguments.first), read_structure(arguments.second)
    print(f"first:  {arguments.first} ({first.kind}, {len(first.specs)} tensors)")
    print(f"second: {arguments.second} ({second.kind}, {len(second.specs)} tensors)")
    found = differences(first, second)
    print("\n".join(found) if found else "same tensors, shapes and RoPE")
    if found:
        sys.exit(1)
    if arguments.structure_only:
        return
    original = (
        first.factors.original_length if first.factors else first.config.full["max_position_embeddings"]
    )
    lengths = arguments.lengths or ([original, 2 * original] if first.factors else [original])
    device.install()
    rows = compare_logits(
        arguments.first, arguments.second, lengths, positions=arguments.positions, seed=arguments.seed
    )
    print(f"{'length':>8}  {'largest':>9}  {'mean':>9}  {'logit std':>9}  same prediction")
    for row in rows:
        numbers = f"{row.largest:9.2e}  {row.mean:9.2e}  {row.scale:9.2e}"
        print(f"{row.length:8d}  {numbers}  {row.same_prediction:.1%}")
    if arguments.output is not None:
        write_json(arguments.output, [asdict(row) for row in rows])
    if max(row.largest for row in rows) > arguments.tolerance:
        print(f"the logits differ by more than {arguments.tolerance:g}")
        sys.exit(1)


def main() -> None:
    """Run the command line; exit status 0: the same, 1: they differ, 2: bad input."""
    run_main(_main)


if __name__ == "__main__":
    main()
