"""lm-evaluation-harness on a checkpoint: the paper's short suite, or any of its tasks.

Needs the `eval` extra. Nothing is downloaded unless that is allowed.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from megatron_longrope2.data.tokenizer import load_tokenizer
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.records import Measured
from megatron_longrope2.evaluation.ruler_tasks import TASKS
from megatron_longrope2.evaluation.settings import (
    CheckpointSettings,
    GenerationSettings,
    HarnessSettings,
    TextSettings,
)
from megatron_longrope2.evaluation.subject import Subject, open_subject, windows
from megatron_longrope2.model.settings import LayoutSettings

# Tokens of a prompt in the paper's short suite (LongRoPE2 section 4.1).
SHORT_LENGTH = 4096
# The paper's short benchmarks: how many solved examples stand in front, and the metric that a report shows.
# The paper names the tasks only; the numbers of examples are the Open LLM Leaderboard's.
SHORT_SUITE: dict[str, tuple[int | None, str | None]] = {
    "mmlu": (5, "acc"),
    "mmlu_pro": (5, "exact_match"),
    "hellaswag": (10, "acc_norm"),
    "truthfulqa_mc2": (0, "acc"),
    "gsm8k": (5, "exact_match"),
}


@contextmanager
def harness(what: str, allow_download: bool) -> Iterator[None]:
    """Within, lm-evaluation-harness can be used; it reaches the network only if that is allowed.

    Args:
        what: is going to be run, for messages.

    Raises:
        InputError: the harness is not installed, or data are not there.
    """
    try:
        import datasets.config
        import huggingface_hub.constants
        import lm_eval  # noqa: F401
        import nltk
        import wonderwords  # noqa: F401
    except ImportError as error:
        raise InputError(f"{what}: {error}; pip install 'megatron-longrope2[eval]'") from error
    # It explains itself at every task; what its models say, such as that a prompt was cut, is news.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    logging.getLogger("lm_eval.models").setLevel(logging.WARNING)
    switches = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")
    offline = {} if allow_download else dict.fromkeys(switches, "1")
    try:
        with (
            mock.patch.dict(os.environ, offline),
            # Both read the environment when they are imported.
            mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", not allow_download),
            mock.patch.object(datasets.config, "HF_HUB_OFFLINE", not allow_download),
            mock.patch("nltk.download", nltk.download if allow_download else _refuse_nltk),
        ):
            yield
    except OSError as error:
        raise InputError(
            f"{what}: {str(error).splitlines()[0]}; its data are downloaded: add --allow-download where "
            "there is a network, or set HF_HOME to a cache that has them"
        ) from error


def _refuse_nltk(what: str, *_: Any, **__: Any) -> None:
    raise OSError(f"nltk's {what} is not on this machine")


def task_manager(subject: Subject, lengths: Sequence[int], **options: Any) -> Any:
    """The harness's index of tasks; tasks that make their own prompts get the lengths, in tokens.

    Raises:
        InputError: the tokenizer has no EOS token.
    """
    from lm_eval.tasks import TaskManager

    if subject.tokenizer.eos_token_id is None:
        raise InputError(
            f"{subject.checkpoint}: tokenizer: has no EOS token, which lm-eval needs; name it in "
            "tokenizer_config.json"
        )
    metadata = {"pretrained": subject.tokenizer.name_or_path, "max_seq_lengths": list(lengths)}
    return TaskManager(metadata=metadata, **options)


def open_for_harness(
    checkpoint: CheckpointSettings,
    layout: LayoutSettings,
    generation: GenerationSettings,
    settings: HarnessSettings,
) -> Subject:
    """Load a checkpoint for the backend that was chosen.

    Raises:
        InputError: as `open_subject`, or vLLM is to be run in a layout of Megatron's.
    """
    if settings.backend == "transformers":
        return open_subject(checkpoint, layout, generation)
    folder = checkpoint.folder
    tp = layout.tensor_model_parallel_size
    if layout != LayoutSettings(bf16=layout.bf16, tensor_model_parallel_size=tp):
        raise InputError(
            "--backend: vllm takes --tensor-model-parallel-size and --bf16 only; leave out the others"
        )
    model = partial(vllm_language_model, folder, layout, generation)
    return Subject(**windows(folder, None), tokenizer=load_tokenizer(folder), language_model=model)


def vllm_language_model(
    folder: Path, layout: LayoutSettings, generation: GenerationSettings, max_length: int
) -> Any:
    """The harness's own class for vLLM (checked against the harness's source, not run).

    vLLM chooses one RoPE window for all prompts, by `max_length`.

    Raises:
        InputError: vLLM is not installed.
    """
    try:
        from lm_eval.models.vllm_causallms import VLLM

        return VLLM(
            pretrained=str(folder),
            max_model_len=max_length,
            dtype="bfloat16" if layout.bf16 else "float32",
            batch_size=generation.batch_size or "auto",
            tensor_parallel_size=layout.tensor_model_parallel_size,
        )
    except ImportError as error:
        raise InputError(
            f"vllm: not installed ({error}); pip install vllm, or use the transformers backend"
        ) from error


def measure_harness(subject: Subject, _: TextSettings, settings: HarnessSettings) -> Measured:
    """Run tasks of lm-evaluation-harness, without chat template.

    Returns:
        A result with `tasks` {task: {`metrics`: the harness's, `main`: the value of the task's metric,
        `stderr`: its standard error (percent, or None), `shots`}}, `max_length` and `backend`.

    Raises:
        InputError: lm-eval or vLLM is not installed, a task is unknown or its data are not there.
    """
    tasks = _chosen(settings)
    length = prompt_length(subject, settings)
    if settings.include_path is not None and not settings.include_path.is_dir():
        raise InputError(f"{settings.include_path}: no such folder; give one with task definitions")
    results: dict[str, Any] = {}
    with harness("lm-eval", settings.allow_download):
        import lm_eval

        paths = str(settings.include_path) if settings.include_path else None
        manager = task_manager(subject, [length], include_path=paths)
        unknown = [task for task in tasks if task not in manager.all_tasks]
        if unknown:
            raise InputError(f"lm-eval: no task named {', '.join(unknown)}; `lm-eval ls tasks` lists them")
        model = subject.language_model(length)
    for task, (shots, metric) in tasks.items():
        with harness(f"lm-eval: {task}", settings.allow_download):
            found = lm_eval.simple_evaluate(
                model=model,
                tasks=[task],
                num_fewshot=shots,
                task_manager=manager,
                limit=settings.limit,
                log_samples=False,
            )
        # Only the first process of each machine is given results.
        metrics = {
            name: {key: value for key, value in values.items() if isinstance(value, int | float)}
            for name, values in (found["results"] if found else {}).items()
        }
        # Behind a metric's name the harness puts that of a filter.
        own = {key.split(",")[0]: 100 * value for key, value in metrics.get(task, {}).items()}
        main, stderr = own.get(metric or ""), own.get(f"{metric}_stderr")
        results[task] = {"metrics": metrics, "main": main, "stderr": stderr, "shots": shots}
    lines = [f"{name}: {value['main']:.2f} %" for name, value in results.items() if value["main"] is not None]
    result = {"tasks": results, "max_length": length, "backend": settings.backend}
    return Measured(result, [], "\n".join(lines))


def prompt_length(subject: Subject, settings: HarnessSettings) -> int:
    """Tokens of prompt and answer: what was asked for, or the suite's, at most the target length.

    Raises:
        InputError: more than the target length; or vLLM would read short prompts with the rescaled RoPE.
    """
    target, original = subject.target_length, subject.original_length
    length = settings.max_length or (min(SHORT_LENGTH, target) if settings.suite == "short" else target)
    if length > target:
        raise InputError(
            f"--max-length: {length} tokens are longer than the target length of {target} of "
            f"{subject.checkpoint}; use at most that"
        )
    if settings.backend == "vllm" and length > original:
        raise InputError(
            f"--max-length: with {length} tokens vLLM reads short prompts with the rescaled RoPE too; use "
            f"--max-length {original}, the original length, or the transformers backend"
        )
    return length


def _chosen(settings: HarnessSettings) -> dict[str, tuple[int | None, str | None]]:
    """The tasks with their number of solved examples and their metric."""
    if (settings.suite is None) == (settings.tasks is None):
        raise InputError("--tasks: give either --tasks or --suite")
    if settings.suite is not None:
        return SHORT_SUITE
    if ruler := {"ruler", "longcxt", *TASKS} & set(settings.tasks or ()):
        raise InputError(
            f"--tasks: {min(ruler)}: `longrope2 evaluate ruler` runs RULER's tasks, on books and offline"
        )
    return dict.fromkeys(settings.tasks or (), (settings.shots, settings.metric))
