"""Which TP, CP, PP and recomputation fit a training run into GPU memory, and how long each takes."""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from dataclasses import replace

from megatron_longrope2.errors import run_main
from megatron_longrope2.files import write_json
from megatron_longrope2.planning.model import PRESETS, load_shape
from megatron_longrope2.planning.plan import Job, plan, reasons, table, to_dict
from megatron_longrope2.planning.speed import GPUS


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help=f"Hugging Face folder, Megatron checkpoint, or one of {', '.join(PRESETS)}",
    )
    add("--length", type=int, default=131072, metavar="TOKENS", help="target length: tokens of a segment")
    add(
        "--original-length",
        type=int,
        metavar="TOKENS",
        help="pre-trained window, where it is not the model's",
    )
    add("--gpus", type=int, default=64, metavar="N", help="GPUs of the run")
    add("--gpus-per-node", type=int, default=8, metavar="N", help="GPUs that share a fast link")
    add("--gpu", choices=sorted(GPUS), default="h100", help="kind of GPU")
    add("--memory", type=float, default=80, metavar="GIB", help="memory of a GPU, GiB")
    add("--tokens", type=float, default=10e9, metavar="N", help="tokens of the run, e.g. 10e9")
    add("--global-batch-size", type=int, default=64, metavar="N", help="segments of an optimizer step")
    add("--long-share", type=float, default=0.7, metavar="SHARE", help="long-window share of the segments")
    add("--top", type=int, default=10, metavar="N", help="layouts to print")
    add("--output", metavar="FILE", help="write all of them as JSON")
    return parser


def _main() -> None:
    args = _parser().parse_args()
    model = load_shape(args.model)
    if args.original_length is not None:
        model = replace(model, original_length=args.original_length)
    job = Job(
        model=model,
        gpu=GPUS[args.gpu],
        length=args.length,
        gpus=args.gpus,
        memory=args.memory,
        tokens=args.tokens,
        global_batch_size=args.global_batch_size,
        long_share=args.long_share,
        gpus_per_node=args.gpus_per_node,
    )
    rows = plan(job)
    print(table(rows, args.top))
    print(f"\nrecommended: {rows[0].layout.arguments()}\n{reasons(rows, job)}")
    if args.output:
        write_json(args.output, to_dict(rows, job))


def main() -> None:
    run_main(_main)


if __name__ == "__main__":
    main()
