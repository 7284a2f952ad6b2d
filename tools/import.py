"""Convert a Hugging Face model folder to a Megatron torch_dist checkpoint that loads in any layout."""

import argparse
from pathlib import Path

from megatron_longrope2.checkpoint.conversion import DTYPE_NAMES, dtype_option, table
from megatron_longrope2.checkpoint.import_hf import import_hf
from megatron_longrope2.errors import run_main


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--hf-dir", type=Path, required=True, help="model folder: config.json, safetensors, tokenizer"
    )
    parser.add_argument(
        "--save-dir", type=Path, required=True, help="new folder; what Megatron's --load will name"
    )
    parser.add_argument(
        "--rope-factors",
        metavar="FILE",
        help="factor file, or the name of a published set; None: what config.json says",
    )
    parser.add_argument(
        "--original-length",
        type=int,
        metavar="TOKENS",
        help="window the model was pre-trained on; None: what the factors or config.json say",
    )
    parser.add_argument(
        "--dtype", choices=DTYPE_NAMES, default="auto", help="of the weights; auto keeps each as it is"
    )
    parser.add_argument(
        "--vocab-divisible-by",
        type=int,
        default=128,
        metavar="ROWS",
        help="pad the vocabulary to a multiple of this, so that tensor parallel ranks get equal shares",
    )
    parser.add_argument(
        "--allow-nonfinite", action="store_true", help="convert weights that hold NaN or infinity"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check, print the mapping table, write nothing"
    )
    return parser.parse_args()


def _main() -> None:
    arguments = parse_arguments()
    rows = import_hf(
        arguments.hf_dir,
        arguments.save_dir,
        rope_factors=arguments.rope_factors,
        original_length=arguments.original_length,
        dtype=dtype_option(arguments.dtype),
        vocab_divisible_by=arguments.vocab_divisible_by,
        allow_nonfinite=arguments.allow_nonfinite,
        dry_run=arguments.dry_run,
    )
    if arguments.dry_run:
        print(table(rows))
    else:
        print(
            f"{arguments.save_dir}: {len(rows)} Megatron parameters; load it with --load {arguments.save_dir}"
        )


def main() -> None:
    """Run the command line; bad input ends it with one line and status 2."""
    run_main(_main)


if __name__ == "__main__":
    main()
