"""lm-evaluation-harness on a Hugging Face export: the paper's short and long suites, or any tasks.

Needs the `eval` extra. With transformers the model is loaded by `megatron_longrope2.hf`, so that generation
across the original length is right; vLLM chooses one window for the whole engine (by its `max_model_len`), so
the short suite there is a run of its own with a short one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from megatron_longrope2 import hf
from megatron_longrope2.data.tokenizer import load_tokenizer
from megatron_longrope2.device import has_gpu
from megatron_longrope2.errors import InputError

SHORT_LENGTH = 4096
"""Tokens of a prompt in the paper's short suite (LongRoPE2 section 4.1)."""


@dataclass(frozen=True)
class HarnessTask:
    """A task of the harness.

    Attributes:
        name: the harness's.
        shots: solved examples in front; None: the task's own number.
        metric: what a report shows, by the harness's name.
    """

    name: str
    shots: int | None = None
    metric: str | None = None


# The numbers of shots are the Open LLM Leaderboard's; the paper names the tasks only.
SHORT_SUITE = (
    HarnessTask("mmlu", 5, "acc"),
    HarnessTask("mmlu_pro", 5, "exact_match"),
    HarnessTask("hellaswag", 10, "acc_norm"),
    HarnessTask("truthfulqa_mc2", 0, "acc"),
    HarnessTask("gsm8k", 5, "exact_match"),
)
LONG_SUITE = (HarnessTask("ruler"), HarnessTask("longbench"))
SUITES: dict[str, tuple[HarnessTask, ...]] = {"short": SHORT_SUITE, "long": LONG_SUITE}


def prompt_length(
    about: Mapping[str, Any], suite: str | None, backend: str, max_length: int | None = None
) -> int:
    """Tokens of prompt and answer: what was asked for, or the suite's, at most the target length.

    Args:
        about: of the folder, from `records.describe_folder`.
        suite: "short", "long" or None.

    Raises:
        InputError: more than the target length; or vLLM would see the short suite with the rescaled RoPE.
    """
    target, original = about["target_length"], about["original_length"]
    length = max_length or (min(SHORT_LENGTH, target) if suite == "short" else target)
    if length > target:
        raise InputError(
            f"--max-length: {length} tokens are longer than the target length of {target} of "
            f"{about['checkpoint']}; use at most that"
        )
    if backend == "vllm" and suite == "short" and length > original:
        raise InputError(
            f"--max-length: with {length} tokens vLLM sees short prompts with the rescaled RoPE too; use "
            f"--max-length {original}, the original length, or the transformers backend"
        )
    return length


def run_harness(
    folder: str | Path,
    tasks: Sequence[HarnessTask],
    *,
    max_length: int,
    backend: Literal["transformers", "vllm"] = "transformers",
    lengths: Sequence[int] = (),
    include_path: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    tensor_parallel_size: int = 1,
) -> dict[str, Any]:
    """Run tasks of lm-evaluation-harness, without chat template.

    Args:
        folder: Hugging Face export.
        max_length: tokens of prompt and answer; the harness cuts longer prompts at their start.
        backend: what runs the model.
        lengths: tokens; of the tasks that make their own prompts (`ruler`).
        include_path: folder of further task definitions.
        limit: documents a task; None: all.
        tensor_parallel_size: GPUs that share a model in vLLM.

    Returns:
        `tasks` {task: {`metrics`: the harness's, `main`: the value of the task's metric, `stderr`: its
        standard error (percent, or None), `shots`}}.

    Raises:
        InputError: lm-eval or vLLM is not installed, a task is unknown or its data are not there, or a folder
            cannot be read.
    """
    lm_eval = _require("lm_eval", "pip install 'megatron-longrope2[eval]'")
    if backend == "vllm":
        _require("vllm", "pip install vllm, or use the transformers backend")
    from lm_eval.tasks import TaskManager

    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(f"{include_path}: no such folder; give one with task definitions")
    tokenizer = load_tokenizer(folder)
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise InputError(
            f"{folder}: tokenizer: has neither a BOS nor an EOS token, one of which lm-eval needs; name one "
            "in tokenizer_config.json"
        )
    metadata = {"pretrained": str(folder), **({"max_seq_lengths": list(lengths)} if lengths else {})}
    manager = TaskManager(include_path=str(include_path) if include_path else None, metadata=metadata)
    unknown = [task.name for task in tasks if task.name not in manager.all_tasks]
    if unknown:
        raise InputError(f"lm-eval: no task named {', '.join(unknown)}; `lm-eval ls tasks` lists them")
    if backend == "vllm":
        model = _vllm(folder, max_length, batch_size, dtype, tensor_parallel_size)
    else:
        model = _transformers(folder, tokenizer, max_length, batch_size, dtype)
    results = {}
    for task in tasks:
        try:
            found = lm_eval.simple_evaluate(
                model=model, tasks=[task.name], num_fewshot=task.shots, task_manager=manager, limit=limit
            )
        except OSError as error:
            raise InputError(
                f"lm-eval: {task.name}: {str(error).splitlines()[0]}; the harness downloads a task's data: "
                "run where there is a network, or with HF_HOME at a cache that has them"
            ) from error
        metrics = {
            name: {key: value for key, value in values.items() if isinstance(value, int | float)}
            for name, values in found["results"].items()
        }
        results[task.name] = {
            "metrics": metrics,
            "main": _percent(task, task.metric, metrics),
            "stderr": _percent(task, f"{task.metric}_stderr", metrics),
            "shots": task.shots,
        }
    return {"tasks": results, "max_length": max_length, "backend": backend}


def _vllm(
    folder: str | Path, max_length: int, batch_size: int, dtype: torch.dtype, tensor_parallel_size: int
) -> Any:
    from lm_eval.models.vllm_causallms import VLLM

    return VLLM(
        pretrained=str(folder),
        max_model_len=max_length,
        dtype=str(dtype).removeprefix("torch."),
        batch_size=batch_size,
        tensor_parallel_size=tensor_parallel_size,
    )


def _transformers(
    folder: str | Path, tokenizer: Any, max_length: int, batch_size: int, dtype: torch.dtype
) -> Any:
    from lm_eval.models.huggingface import HFLM

    model: Any = hf.load(folder, dtype=dtype)
    model.to("cuda" if has_gpu() else "cpu")
    factors = getattr(model.base_model.rotary_emb, "factors", None)

    class OneWindowABatch(HFLM):
        """The harness pads batches to be scored on the right, without a mask: a short text beside a long one
        would be seen with the long window's RoPE."""

        def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **options: Any) -> list[Any]:
            results: list[Any] = [None] * len(requests)
            by_window: dict[bool, list[int]] = {}
            for number, (_, context, continuation) in enumerate(requests):
                read = min(len(context) + len(continuation) - 1, self.max_length)
                long = factors is not None and read > factors.original_length
                by_window.setdefault(long, []).append(number)
            for numbers in by_window.values():
                scored = super()._loglikelihood_tokens([requests[n] for n in numbers], *args, **options)
                for number, result in zip(numbers, scored, strict=True):
                    results[number] = result
            return results

    return OneWindowABatch(
        pretrained=model, tokenizer=tokenizer, max_length=max_length, batch_size=batch_size
    )


def _percent(task: HarnessTask, metric: str | None, metrics: dict[str, dict[str, float]]) -> float | None:
    """A metric of the task, whatever filter the harness put behind its name."""
    for key, value in metrics.get(task.name, {}).items():
        if key.split(",")[0] == metric:
            return 100 * value
    return None


def _require(module: str, mend: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{module}: not installed ({error}); {mend}") from error
