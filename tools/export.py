"""Convert a Megatron torch_dist checkpoint of any layout to a Hugging Face model folder."""

import argparse
from pathlib import Path

from megatron_longrope2.checkpoint.conversion import DTYPE_NAMES, dtype_option, table
from megatron_longrope2.checkpoint.export_hf import export_hf
from megatron_longrope2.errors import run_main


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--load-dir",
        type=Path,
        required=True,
        help="what --save of a training run or of convert_hf_to_megatron named (the latest checkpoint is "
        "taken), or one checkpoint in it",
    )
    parser.add_argument("--save-dir", type=Path, required=True, help="new folder")
    parser.add_argument(
        "--rope-factors",
        metavar="FILE",
        help="factor file, or the name of a published set; None: what the checkpoint holds",
    )
    parser.add_argument(
        "--base-dir",
        type=Path,
        help="config.json and tokenizer of the model that training began from; None: where the checkpoint "
        "says that its tokenizer is",
    )
    parser.add_argument(
        "--dtype", choices=DTYPE_NAMES, default="auto", help="of the weights; auto keeps each as it is"
    )
    parser.add_argument(
        "--max-shard-size", type=float, default=5.0, metavar="GB", help="size at which a new file begins"
    )
    parser.add_argument(
        "--allow-nonfinite", action="store_true", help="convert weights that hold NaN or infinity"
    )
    parser.add_argument(
        "--split-attention-factor",
        action="store_true",
        help="allow attention factors that differ between the windows; vLLM reads the pair, plain "
        "transformers applies the long one to both",
    )
    parser.add_argument(
        "--as-llama",
        action="store_true",
        help="write a Phi3 or Mistral under Llama's names: transformers 4 refuses a rescaled Phi3",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check, print the mapping table, write nothing"
    )
    return parser.parse_args()


def _main() -> None:
    arguments = parse_arguments()
    rows = export_hf(
        arguments.load_dir,
        arguments.save_dir,
        rope_factors=arguments.rope_factors,
        base_dir=arguments.base_dir,
        dtype=dtype_option(arguments.dtype),
        max_shard_bytes=int(arguments.max_shard_size * 1e9),
        allow_nonfinite=arguments.allow_nonfinite,
        split_attention=arguments.split_attention_factor,
        as_llama=arguments.as_llama,
        dry_run=arguments.dry_run,
    )
    print(table(rows) if arguments.dry_run else f"{arguments.save_dir}: a Hugging Face model folder")


def main() -> None:
    """Run the command line; bad input ends it with one line and status 2."""
    run_main(_main)


if __name__ == "__main__":
    main()
