"""Measure speed against what the same work takes elsewhere; write ratios as JSON."""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser

from megatron_longrope2.benchmarks import benchmarks, markdown, run
from megatron_longrope2.errors import run_main
from megatron_longrope2.files import write_json, write_text


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="BENCHMARK")
    for name, benchmark in benchmarks().items():
        description = benchmark.__doc__ or ""
        command = commands.add_parser(
            name,
            help=description.partition("\n")[0],
            description=description,
            formatter_class=ArgumentDefaultsHelpFormatter,
        )
        command.add_argument("--output", required=True, metavar="FILE", help="JSON file to write")
        command.add_argument("--table", metavar="FILE", help="Markdown file to write beside; None: none")
        benchmark.add_arguments(command)
    return parser


def _main() -> None:
    args = _parser().parse_args()
    result = run(args.name, args)
    write_json(args.output, result)
    if args.table:
        write_text(args.table, markdown(result))
    for name, ratio in result["ratios"].items():
        print(f"{name}: {ratio:.3f}")


def main() -> None:
    run_main(_main)


if __name__ == "__main__":
    main()
