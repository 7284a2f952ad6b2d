"""Search the rescaling factors of a model (LongRoPE2); under plain python or torchrun."""

import argparse
from dataclasses import fields
from pathlib import Path

from megatron_longrope2 import device
from megatron_longrope2.errors import run_main


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--load", type=Path, required=True, help="Megatron checkpoint of the model")
    parser.add_argument(
        "--books", type=Path, required=True, help="a .txt, a .jsonl (field text), or a folder of them"
    )
    parser.add_argument("--target-length", type=int, required=True, help="extended window, tokens")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the results; a search stopped there goes on"
    )
    parser.add_argument(
        "--algorithm",
        choices=["evolution", "gradient"],
        default="evolution",
        help="the paper's search, or factors learned by gradient with frozen weights",
    )
    parser.add_argument("--seed", type=int, default=0, help="of needles and evolution")
    parser.add_argument(
        "--init-factors",
        nargs="+",
        default=[],
        metavar="FILE",
        help="factor files or published names that join the first generation, or the starts",
    )
    parser.add_argument(
        "--max-minutes", type=float, help="stop this run after so much time; run again to go on"
    )
    parser.add_argument("--dry-run", action="store_true", help="time the model and print the cost")
    _add_objective(parser.add_argument_group("objective"))
    _add_evolution(parser.add_argument_group("evolution"))
    _add_gradient(parser.add_argument_group("gradient"))
    _add_layout(parser.add_argument_group("layout (data parallel: what torchrun's ranks leave over)"))
    return parser.parse_args()


def _add_objective(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--objective",
        choices=["needle", "document", "mix"],
        default="needle",
        help="perplexity of needles' answers, of plain text (the paper's Table 6), or of both",
    )
    group.add_argument(
        "--document-weight", type=float, default=0.5, help="share of plain text in mix, between 0 and 1"
    )
    group.add_argument(
        "--samples",
        type=int,
        default=argparse.SUPPRESS,
        help="texts of target length, of each kind; gradient: to check and choose, none is learned on "
        "(default: 10; gradient: 20)",
    )
    group.add_argument(
        "--needle-depths",
        type=float,
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="DEPTH",
        help="where needles lie, 0 (start, the paper's) to 1 (end); the samples go round several "
        "(default: 0; gradient: 0 0.25 0.5 0.75 0.95)",
    )
    group.add_argument("--needles-per-document", type=int, default=1, help="needles a sample")
    group.add_argument(
        "--value-kind", choices=["number", "word", "uuid"], default="number", help="what needles hide"
    )
    group.add_argument(
        "--held-out-books",
        type=Path,
        help="texts of the final comparison with the baselines; by default --books with other keys",
    )
    group.add_argument(
        "--held-out-samples", type=int, default=64, help="needles of the final comparison; 0: none"
    )


def _add_evolution(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--search-space",
        choices=["paper", "extended"],
        default="paper",
        help="extended: baselines in the population; low dimensions' shape and attention factor are genes",
    )
    group.add_argument(
        "--search-dims",
        choices=["critical", "all"],
        default="critical",
        help="search from the critical dimension on, or below it too (the paper's Table 10)",
    )
    group.add_argument(
        "--fix-attention-factor",
        action="store_true",
        help="keep the long window's attention factor at 1 in the extended space too: plain transformers can "
        "then read the result",
    )
    group.add_argument("--population", type=int, default=64, help="candidates of the first generation")
    group.add_argument("--iterations", type=int, default=40, help="generations of population / 2 children")
    group.add_argument(
        "--parents",
        type=int,
        help="best candidates that breed; by default population / 8, but 4 or more; the authors' code: / 2",
    )
    group.add_argument("--mutation-probability", type=float, default=0.3, help="of each gene")
    group.add_argument("--max-evaluations", type=int, help="stop before a generation that exceeds this")
    group.add_argument(
        "--no-prune",
        action="store_true",
        help="evaluate candidates that cannot win too; the result is the same",
    )


def _add_gradient(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--starts",
        nargs="*",
        default=["ntk", "yarn", "ramp", "pi"],
        metavar="METHOD",
        help="closed-form methods to begin from: pi, ntk, yarn, none, or ramp (YaRN whose ramp begins where "
        "it does best); the worse half is dropped in turn",
    )
    group.add_argument("--steps", type=int, default=48, help="steps of the start that stays to the end")
    group.add_argument("--batch-size", type=int, default=4, help="fresh needle documents a step")
    group.add_argument("--learning-rate", type=float, default=0.05, help="of Adam, on the factors")
    group.add_argument(
        "--learn-attention-factor",
        action="store_true",
        help="learn the long window's attention factor too; plain transformers cannot read the result",
    )
    group.add_argument(
        "--fixed-below-critical-dim",
        action="store_true",
        help="the paper's structure: NTK below the start's critical dimension, learned factors from it on",
    )
    group.add_argument("--max-factor", type=float, help="a bound that factors approach and never reach")
    group.add_argument(
        "--length-curriculum",
        type=int,
        metavar="TOKENS",
        help="length of the first needles; it grows to the target length in the first half of the steps",
    )
    group.add_argument(
        "--no-recompute",
        action="store_true",
        help="keep all activations for the backward pass: faster, for models and lengths that fit",
    )


def _add_layout(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--tensor-model-parallel-size", type=int, default=1, help="ranks a layer is split over"
    )
    group.add_argument(
        "--pipeline-model-parallel-size", type=int, default=1, help="ranks layers are split over"
    )
    group.add_argument("--context-parallel-size", type=int, default=1, help="ranks a text is split over")
    group.add_argument(
        "--bf16", action="store_true", help="weights and activations in bfloat16, else float32"
    )


def _main() -> None:
    arguments = vars(parse_arguments())
    from megatron_longrope2.search.evolution import EvolutionSettings
    from megatron_longrope2.search.job import SearchSettings
    from megatron_longrope2.search.learner import GradientSettings

    if arguments["algorithm"] == "gradient":
        arguments = {"samples": 20, "needle_depths": [0.0, 0.25, 0.5, 0.75, 0.95], **arguments}
    else:
        arguments = {"samples": 10, "needle_depths": [0.0], **arguments}
    dry_run = arguments.pop("dry_run")
    arguments |= {
        "space": arguments.pop("search_space"),
        "dims": arguments.pop("search_dims"),
        "prune": not arguments.pop("no_prune"),
        "needle_depths": tuple(arguments["needle_depths"]),
        "init_factors": tuple(arguments["init_factors"]),
        "starts": tuple(arguments["starts"]),
        "recompute_activations": not arguments.pop("no_recompute"),
    }
    arguments |= {
        "gradient": GradientSettings(
            **{field.name: arguments.pop(field.name) for field in fields(GradientSettings)}
        ),
        "evolution": EvolutionSettings(
            **{field.name: arguments.pop(field.name) for field in fields(EvolutionSettings)}
        ),
    }
    settings = SearchSettings(**arguments)
    device.install()
    import torch.distributed as dist

    from megatron_longrope2.search.runner import expected_cost, run_search

    if dry_run:
        cost = expected_cost(settings)
        steps = f"{cost['steps']} steps of {cost['seconds_per_step']:.2f} s and " if cost["steps"] else ""
        lines = [
            f"at most {steps}{cost['candidates']} candidates, {cost['evaluations']} evaluations of "
            f"{settings.target_length} tokens ({cost['tokens']:.3g} tokens)",
            f"{cost['seconds_per_evaluation']:.2f} s an evaluation, {cost['workers']} at once: at most "
            f"{cost['seconds'] / 3600:.2f} h, {cost['gpu_hours']:.1f} device hours; pruning saves part of it",
        ]
    else:
        run_search(settings)
        lines = [f"{settings.output}:", (settings.output / "search.md").read_text(encoding="utf-8")]
    if dist.get_rank() == 0:
        print(*lines, sep="\n")
    dist.destroy_process_group()


def main() -> None:
    """Run the command line; bad input ends it with one line and status 2."""
    run_main(_main)


if __name__ == "__main__":
    main()
