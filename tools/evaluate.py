"""Measure an extended model: needles, perplexity, RULER, lm-evaluation-harness; generate; report side by
side."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_longrope2.errors import InputError, run_main

if TYPE_CHECKING:
    from megatron_longrope2.evaluation.measure import Measured
    from megatron_longrope2.evaluation.records import Records
    from megatron_longrope2.evaluation.subject import Subject

MEASURES = ("needle", "perplexity", "ruler")
NEEDLE_OPTIONS = ("books", "lengths", "depths", "repetitions", "seed")
PERPLEXITY_OPTIONS = ("books", "short_texts", "long_texts", "long_length", "windows", "stride", "seed")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.set_defaults(run=run)
        return sub

    _add_needle(command("needle", _needle, "needle in a haystack over lengths and depths; heat map"))
    _add_perplexity(
        command("perplexity", _perplexity, "perplexity: short window, by position, sliding window")
    )
    _add_ruler(command("ruler", _ruler, "RULER's eleven tasks that need no download"))
    _add_generate(command("generate", _generate, "continue prompts, in both windows"))
    _add_lm_eval(
        command("lm-eval", _lm_eval, "lm-evaluation-harness on a Hugging Face export (`eval` extra)")
    )
    _add_compare(
        command("compare", _compare, "measure checkpoints and factor files, then report them side by side")
    )
    _add_report(command("report", _report, "results that are there, side by side"))
    return parser.parse_args()


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text}: not a whole number above 0")
    return int(text)


def _not_negative(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _add_subject(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("checkpoint")
    which = group.add_mutually_exclusive_group(required=True)
    which.add_argument("--load", type=Path, metavar="DIR", help="Megatron checkpoint")
    which.add_argument("--hf-dir", type=Path, metavar="DIR", help="Hugging Face model folder")
    group.add_argument(
        "--rope-factors", metavar="FILE", help="factor file or published name; None: the checkpoint's own"
    )
    _add_layout(group)


def _add_layout(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    for name in ("tensor", "pipeline", "context"):
        group.add_argument(
            f"--{name}-model-parallel-size" if name != "context" else "--context-parallel-size",
            type=_positive,
            default=1,
            help=f"{name} parallel ranks of a Megatron checkpoint, under torchrun",
        )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the results")


def _add_books(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument(
        "--books",
        type=Path,
        required=required,
        help="held-out texts: a .txt, a .jsonl (field text), or a folder",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the samples")


def _add_needle(parser: argparse.ArgumentParser) -> None:
    _add_subject(parser)
    _add_output(parser)
    _add_books(parser)
    _add_needle_options(parser)


def _add_needle_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lengths", type=_positive, nargs="+", required=True, help="of the samples, tokens")
    parser.add_argument("--depths", type=_positive, default=10, help="number of depths, evenly from 0 to 1")
    parser.add_argument("--repetitions", type=_positive, default=10, help="samples at each length and depth")


def _add_perplexity(parser: argparse.ArgumentParser) -> None:
    _add_subject(parser)
    _add_output(parser)
    _add_books(parser)
    _add_perplexity_options(parser)


def _add_perplexity_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--short-texts", type=_not_negative, default=100, help="texts of the original length; 0: none"
    )
    parser.add_argument(
        "--long-texts", type=_not_negative, default=10, help="texts measured by position; 0: none"
    )
    parser.add_argument("--long-length", type=_positive, help="their tokens; None: the target length")
    parser.add_argument(
        "--windows", type=_positive, nargs="*", default=[], help="sliding windows over whole books, tokens"
    )
    parser.add_argument("--stride", type=_positive, default=256, help="of the sliding windows, tokens")


def _add_ruler(parser: argparse.ArgumentParser) -> None:
    _add_subject(parser)
    _add_output(parser)
    _add_books(parser, required=False)
    parser.add_argument(
        "--lengths", type=_positive, nargs="+", required=True, help="prompt and answer, tokens"
    )
    parser.add_argument("--tasks", nargs="+", help="None: all, or without --books those that need none")
    parser.add_argument("--samples", type=_positive, default=100, help="of each task at each length")


def _add_generate(parser: argparse.ArgumentParser) -> None:
    _add_subject(parser)
    parser.add_argument("--prompt", action="append", default=[], help="a text to continue; may be repeated")
    parser.add_argument(
        "--prompt-file", type=Path, action="append", default=[], help="a text file to continue"
    )
    parser.add_argument("--max-new-tokens", type=_positive, default=64, help="tokens to generate")


def _add_lm_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hf-dir", type=Path, required=True, metavar="DIR", help="Hugging Face model folder")
    _add_output(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--suite", choices=["short", "long"], help="the paper's")
    what.add_argument("--tasks", nargs="+", help="names of the harness")
    parser.add_argument(
        "--shots", type=_not_negative, help="solved examples of --tasks; None: each task's own"
    )
    parser.add_argument("--metric", help="what a report shows of --tasks, e.g. acc")
    parser.add_argument(
        "--max-length", type=_positive, help="tokens; None: 4096 for short, else the target length"
    )
    parser.add_argument(
        "--lengths", type=_positive, nargs="*", default=[], help="of tasks that make prompts, tokens"
    )
    parser.add_argument("--backend", choices=["transformers", "vllm"], default="transformers", help="runs it")
    parser.add_argument(
        "--tensor-parallel-size", type=_positive, default=1, help="GPUs that share the model in vLLM"
    )
    parser.add_argument("--include-path", type=Path, help="folder of further task definitions")
    parser.add_argument("--limit", type=_positive, help="documents a task; None: all")
    parser.add_argument("--batch-size", type=_positive, default=1, help="documents at once")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="of the weights")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "candidates",
        nargs="+",
        metavar="NAME=CHECKPOINT[,FACTORS]",
        help="folder of a Megatron or Hugging Face checkpoint, with a factor file or published name instead "
        "of its own factors, under the name it is shown by",
    )
    _add_layout(parser.add_argument_group("model"))
    _add_output(parser)
    _add_books(parser)
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=MEASURES, help="what is measured")
    _add_needle_options(parser)
    _add_perplexity_options(parser)
    parser.add_argument(
        "--ruler-lengths", type=_positive, nargs="+", help="prompt and answer, tokens; None: --lengths"
    )
    parser.add_argument("--ruler-tasks", nargs="+", help="None: all")
    parser.add_argument("--ruler-samples", type=_positive, default=100, help="of each task at each length")
    _add_report_options(parser)


def _add_report(parser: argparse.ArgumentParser) -> None:
    _add_output(parser)
    parser.add_argument(
        "results", nargs="+", metavar="NAME=DIR", help="result folders, each under the name it is shown by"
    )
    _add_report_options(parser)


def _add_report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--baseline", metavar="NAME", help="the checkpoint before the extension, for what was kept of it"
    )
    parser.add_argument(
        "--reference",
        metavar="NAME",
        help="what the others' needles are compared with, sample by sample; None: the baseline",
    )
    parser.add_argument(
        "--ruler-threshold", type=float, default=85.6, help="RULER average of the effective length, percent"
    )
    parser.add_argument(
        "--needle-threshold", type=float, default=0.9, help="needle accuracy of the effective length, 0 to 1"
    )


def _open(arguments: argparse.Namespace) -> "Subject":
    return _open_checkpoint(
        arguments.load or arguments.hf_dir, arguments.hf_dir is not None, arguments.rope_factors, arguments
    )


def _open_checkpoint(
    folder: Path, is_hf: bool, rope_factors: str | None, arguments: argparse.Namespace
) -> "Subject":
    import torch

    from megatron_longrope2.evaluation.subject import open_hf, open_megatron

    dtype = getattr(torch, arguments.dtype)
    split = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    sizes = _options(arguments, split)
    if is_hf:
        if set(sizes.values()) != {1}:
            raise InputError(f"{folder}: only Megatron checkpoints are split; leave the parallel sizes at 1")
        return open_hf(folder, rope_factors=rope_factors, dtype=dtype)
    return open_megatron(folder, rope_factors=rope_factors, dtype=dtype, **sizes)


def _needle(arguments: argparse.Namespace) -> None:
    from megatron_longrope2.evaluation.measure import measure_needle
    from megatron_longrope2.evaluation.needle_grid import NeedleGrid
    from megatron_longrope2.evaluation.plots import plot_needles

    measured = _measure(arguments, "needle", measure_needle, NEEDLE_OPTIONS)
    if measured is not None:
        title = (arguments.load or arguments.hf_dir).name
        plot_needles({title: NeedleGrid.from_dict(measured.result)}, arguments.output / "needle.png")


def _perplexity(arguments: argparse.Namespace) -> None:
    from megatron_longrope2.evaluation.measure import measure_perplexity

    _measure(arguments, "perplexity", measure_perplexity, PERPLEXITY_OPTIONS)


def _ruler(arguments: argparse.Namespace) -> None:
    from megatron_longrope2.evaluation.measure import measure_ruler

    _measure(arguments, "ruler", measure_ruler, ("books", "tasks", "lengths", "samples", "seed"))


def _measure(
    arguments: argparse.Namespace, kind: str, measure: Callable[..., "Measured"], names: Sequence[str]
) -> "Measured | None":
    from megatron_longrope2.evaluation.compare import measure_into

    subject = _open(arguments)
    return measure_into(arguments.output, kind, subject, measure, _options(arguments, names))


def _options(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in names}


def _generate(arguments: argparse.Namespace) -> None:
    texts = arguments.prompt + [_read_prompt(path) for path in arguments.prompt_file]
    if not texts:
        raise InputError("--prompt: nothing to continue; give --prompt TEXT or --prompt-file FILE")
    subject = _open(arguments)
    prompts = [subject.tokenizer(text, verbose=False)["input_ids"] for text in texts]
    subject.beyond_window([max(map(len, prompts)) + arguments.max_new_tokens])
    for text, answer in zip(texts, subject.generate(prompts, arguments.max_new_tokens, ""), strict=True):
        if subject.writes:
            shown = text if len(text) <= 200 else f"...{text[-200:]}"
            print(f"{shown}[{subject.tokenizer.decode(answer)}]\n")


def _read_prompt(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from error


def _lm_eval(arguments: argparse.Namespace) -> None:
    import torch

    from megatron_longrope2.evaluation.harness import SUITES, HarnessTask, prompt_length, run_harness
    from megatron_longrope2.evaluation.records import describe_folder, write_record

    start = time.monotonic()
    about = describe_folder(arguments.hf_dir)
    if arguments.suite:
        tasks = SUITES[arguments.suite]
    else:
        tasks = tuple(HarnessTask(name, arguments.shots, arguments.metric) for name in arguments.tasks)
    settings = {
        "max_length": prompt_length(about, arguments.suite, arguments.backend, arguments.max_length),
        "backend": arguments.backend,
        "lengths": arguments.lengths,
        "limit": arguments.limit,
        "batch_size": arguments.batch_size,
    }
    result = run_harness(
        arguments.hf_dir,
        tasks,
        include_path=arguments.include_path,
        dtype=getattr(torch, arguments.dtype),
        tensor_parallel_size=arguments.tensor_parallel_size,
        **settings,
    )
    print(write_record(arguments.output, "lm_eval", about, settings, result, time.monotonic() - start))


def _report(arguments: argparse.Namespace) -> None:
    from megatron_longrope2.evaluation.records import read_records

    checkpoints = {}
    for pair in arguments.results:
        name, separator, folder = pair.partition("=")
        if not separator or not name:
            raise InputError(
                f"{pair}: not NAME=DIR; write the name that a checkpoint is shown by, then its results"
            )
        if name in checkpoints:
            raise InputError(f"{pair}: {name} is given twice; give each checkpoint a name of its own")
        checkpoints[name] = read_records(folder)
    _write_report(arguments, checkpoints)


def _compare(arguments: argparse.Namespace) -> None:
    from megatron_longrope2.evaluation.compare import Candidate, measure_candidates
    from megatron_longrope2.evaluation.measure import measure_needle, measure_perplexity, measure_ruler

    ruler = {
        "books": arguments.books,
        "tasks": arguments.ruler_tasks,
        "lengths": arguments.ruler_lengths or arguments.lengths,
        "samples": arguments.ruler_samples,
        "seed": arguments.seed,
    }
    measurements = {
        "needle": (measure_needle, _options(arguments, NEEDLE_OPTIONS)),
        "perplexity": (measure_perplexity, _options(arguments, PERPLEXITY_OPTIONS)),
        "ruler": (measure_ruler, ruler),
    }
    candidates = [Candidate.parse(text) for text in arguments.candidates]
    for role in ("baseline", "reference"):
        name = getattr(arguments, role)
        if name is not None and name not in {candidate.name for candidate in candidates}:
            raise InputError(f"--{role}: {name!r} is not the name of a checkpoint given")
    checkpoints = measure_candidates(
        candidates,
        {kind: measurements[kind] for kind in arguments.measures},
        arguments.output,
        lambda one: _open_checkpoint(Path(one.checkpoint), one.is_hf, one.rope_factors, arguments),
    )
    if checkpoints:
        _write_report(arguments, checkpoints)


def _write_report(arguments: argparse.Namespace, checkpoints: "Mapping[str, Records]") -> None:
    from megatron_longrope2.evaluation.report import build_report, write_report

    names = ("baseline", "reference", "ruler_threshold", "needle_threshold")
    report = build_report(checkpoints, **_options(arguments, names))
    paths = write_report(report, checkpoints, arguments.output)
    print((arguments.output / "report.md").read_text(encoding="utf-8"))
    print(*paths, sep="\n", file=sys.stderr)


def _main() -> None:
    arguments = parse_arguments()
    arguments.run(arguments)


def main() -> None:
    """Run the command line; bad input ends it with one line and status 2."""
    run_main(_main)


if __name__ == "__main__":
    main()
