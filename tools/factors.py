"""RoPE rescaling factors: make them, look at them, compare, check against a model, convert.

FACTORS is a factor file (.json), a CSV of long factors (one a line), the name of a published set, or a
Hugging Face model folder whose RoPE is rescaled. A CSV needs the options that say what model it is for.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_longrope2.errors import InputError, run_main
from megatron_longrope2.files import write_json, write_text
from megatron_longrope2.rope import METHODS, RopeFactors, load_factors, make_factors, published_names
from megatron_longrope2.rope.hf import (
    check_folder,
    factors_to_hf,
    merge_into_hf,
    read_hf_config,
    unscaled_model,
)
from megatron_longrope2.rope.tables import comparison_table, factor_table, summary

FACTORS_HELP = f"file.json, file.csv, model folder, or a published set: {', '.join(published_names())}"
MODEL_FACTS = ("rope_base", "rotary_dim", "original_length", "target_length")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.set_defaults(run=run)
        return sub

    _add_make(command("make", _make, "make factors by a closed-form method and write the factor file"))
    _add_show(command("show", _show, "table: dimension, period, factor, in or out of distribution"))
    _add_compare(command("compare", _compare, "several sets in one table and one plot"))
    _add_check(
        command("check", _check, "whether factors are valid, fit a model, and are the ones it carries")
    )
    _add_convert(command("convert", _convert, "between CSV, factor file and Hugging Face config"))
    return parser.parse_args()


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model")
    group.add_argument("--rope-base", type=float, metavar="BASE", help="RoPE base (rope_theta)")
    group.add_argument("--rotary-dim", type=int, metavar="DIM", help="rotated dimensions of a head")
    group.add_argument("--original-length", type=int, metavar="TOKENS", help="pre-trained window")
    group.add_argument("--target-length", type=int, metavar="TOKENS", help="extended window")
    group.add_argument(
        "--critical-dim", type=int, metavar="DIM", help="cosine dimension; -rcd methods and CSV"
    )
    group.add_argument(
        "--hf-dir", type=Path, metavar="DIR", help="model folder, for base, dimension and original length"
    )


def _add_factors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("factors", metavar="FACTORS", help=FACTORS_HELP)
    _add_model(parser)


def _add_make(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--method", required=True, choices=METHODS, help="how to rescale; none: factors of 1")
    _add_model(parser)
    yarn = parser.add_argument_group("yarn and yarn-rcd")
    yarn.add_argument("--beta-fast", type=float, metavar="PERIODS", help="where the ramp starts; None: 32")
    yarn.add_argument("--beta-slow", type=float, metavar="PERIODS", help="where it ends (yarn); None: 1")
    yarn.add_argument("--no-truncate", action="store_true", help="do not round the ramp's ends outwards")
    yarn.add_argument(
        "--attention-factor",
        action="store_true",
        help="multiply the long window's cosine and sine by YaRN's temperature, 0.1 ln(scale) + 1",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="factor file to write")


def _add_show(parser: argparse.ArgumentParser) -> None:
    _add_factors(parser)
    parser.add_argument("--plot", type=Path, metavar="IMAGE", help="draw the factors by dimension")
    parser.add_argument("--cosine", type=int, metavar="DIM", help="let --plot draw this dimension's cosine")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("factors", nargs="+", metavar="FACTORS", help=FACTORS_HELP)
    _add_model(parser)
    parser.add_argument("--plot", type=Path, metavar="IMAGE", help="draw the factors by dimension")


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_factors(parser)
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="Megatron checkpoint (torch_dist)")


def _add_convert(parser: argparse.ArgumentParser) -> None:
    _add_factors(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="file to write")
    parser.add_argument(
        "--to",
        choices=("json", "csv", "hf"),
        help="hf: the config.json of --hf-dir with its RoPE replaced, or the RoPE fields alone without it; "
        "None: csv or json, as the output's suffix says",
    )
    parser.add_argument(
        "--split-attention",
        action="store_true",
        help="hf: write attention factors that differ between the windows (vLLM reads them; plain "
        "transformers applies the long one to both)",
    )


def _make(args: argparse.Namespace) -> None:
    model = {} if args.hf_dir is None else unscaled_model(args.hf_dir)
    model |= _given(args)
    for name in MODEL_FACTS:
        if name not in model:
            raise InputError(f"--{name.replace('_', '-')}: missing; give it, or --hf-dir for the model's own")
    options = {
        name: getattr(args, name) for name in ("beta_fast", "beta_slow") if getattr(args, name) is not None
    }
    options |= {"truncate": False} if args.no_truncate else {}
    options |= {"attention_factor": True} if args.attention_factor else {}
    factors = make_factors(args.method, **model, critical_dim=args.critical_dim, **options)
    factors.save(args.output)
    print(f"{summary(factors)}\nwrote {args.output}")


def _show(args: argparse.Namespace) -> None:
    if args.cosine is not None and args.plot is None:
        raise InputError("--cosine: needs --plot, the image to draw it in")
    factors = _load(args.factors, args)
    print(f"{summary(factors)}\n\n{factor_table(factors)}")
    if args.plot is not None:
        from megatron_longrope2.rope.plots import plot_cosine, plot_factors

        if args.cosine is None:
            plot_factors({factors.method: factors}, args.plot)
        else:
            plot_cosine(factors, args.cosine, args.plot)
        print(f"wrote {args.plot}")


def _compare(args: argparse.Namespace) -> None:
    stems = [Path(place).stem for place in args.factors]
    labels = [
        place if stems.count(stem) > 1 else stem for place, stem in zip(args.factors, stems, strict=True)
    ]
    sets = {label: _load(place, args) for label, place in zip(labels, args.factors, strict=True)}
    print(comparison_table(sets))
    if args.plot is not None:
        from megatron_longrope2.rope.plots import plot_factors

        plot_factors(sets, args.plot)
        print(f"wrote {args.plot}")


def _check(args: argparse.Namespace) -> None:
    factors = _load(args.factors, args)
    print(summary(factors))
    if args.hf_dir is not None:
        print(check_folder(factors, args.hf_dir))
    if args.checkpoint is not None:
        print(_check_checkpoint(factors, args.checkpoint))


def _convert(args: argparse.Namespace) -> None:
    factors = _load(args.factors, args)
    target = args.to or ("csv" if args.output.suffix == ".csv" else "json")
    if target == "csv":
        write_text(args.output, factors.to_csv())
    elif target == "json":
        write_json(args.output, factors.to_dict())
    elif args.hf_dir is None:
        write_json(args.output, factors_to_hf(factors, split_attention=args.split_attention))
    else:
        source = str(args.hf_dir / "config.json")
        config = read_hf_config(args.hf_dir)
        write_json(args.output, merge_into_hf(config, factors, source, split_attention=args.split_attention))
    print(f"wrote {args.output}")


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in MODEL_FACTS if getattr(args, name) is not None}


def _load(place: str, args: argparse.Namespace) -> RopeFactors:
    model = _given(args)
    if Path(place).suffix == ".csv":
        folder = {} if args.hf_dir is None else unscaled_model(args.hf_dir)
        return load_factors(place, **(folder | model), critical_dim=args.critical_dim)
    return load_factors(place, **model)


def _check_checkpoint(factors: RopeFactors, folder: Path) -> str:
    from megatron_longrope2.checkpoint.megatron_files import MegatronTensors

    saved = MegatronTensors(folder).args
    rotary_dim = int(saved.kv_channels * saved.rotary_percent)
    factors.check_model(rope_base=saved.rotary_base, rotary_dim=rotary_dim, source=str(folder))
    theirs = getattr(saved, "longrope2_factors", None)
    if theirs is None:
        return f"{folder}: fits; holds no factors yet"
    source = f"{folder}: longrope2_factors"
    found = factors.differences(RopeFactors.from_dict(theirs, source=source))
    if found:
        raise InputError(f"{source}: {'; '.join(found)}: the factors against the checkpoint's")
    return f"{folder}: fits; holds these factors"


def _main() -> None:
    args = parse_arguments()
    args.run(args)


def main() -> None:
    run_main(_main)


if __name__ == "__main__":
    main()
