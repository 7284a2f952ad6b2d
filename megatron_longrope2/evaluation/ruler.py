"""RULER's scores (Hsieh et al. 2024, arXiv 2404.06654) of a checkpoint, by lm-evaluation-harness."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from megatron_longrope2.evaluation.harness import harness, task_manager
from megatron_longrope2.evaluation.records import Measured
from megatron_longrope2.evaluation.ruler_tasks import TASKS, RulerTasks
from megatron_longrope2.evaluation.settings import RulerSettings, TextSettings
from megatron_longrope2.evaluation.subject import Subject
from megatron_longrope2.statistics import proportion_interval


def measure_ruler(subject: Subject, texts: TextSettings, settings: RulerSettings) -> Measured:
    """RULER's tasks over lengths.

    Returns:
        A result as `summarize` makes it, with every sample's score in `scores`.

    Raises:
        InputError: lm-eval is not installed, a length exceeds the target length, or as `Subject.books` and
            `RulerTasks`.
    """
    beyond = subject.beyond_window(settings.lengths)
    given = settings.samples, settings.lengths, settings.allow_download, settings.questions
    ruler = RulerTasks(subject, texts, *given)
    with harness("ruler", settings.allow_download):
        names = ruler.choose(settings.tasks)
        from lm_eval import tasks
        from lm_eval.evaluator import evaluate

        own = Path(tasks.__file__).parent / "ruler"
        manager = task_manager(subject, settings.lengths, include_path=str(own), include_defaults=False)
        loaded = {task.task_name: task for task in ruler.load(manager, names)}
        longest = max(subject.target_length, *settings.lengths)
        model = subject.language_model(longest)
        samples = evaluate(model, {"tasks": loaded}, bootstrap_iters=0)["samples"]
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for name in names:
        for sample in samples[name]:
            length = str(sample["doc"]["max_length"])
            scores[name].setdefault(length, []).append(sample[length])
    result = summarize(scores)
    lines = [
        f"RULER at {length} tokens: {average:.2f} ({result['averaged']})"
        for length, average in result["average"].items()
    ]
    return Measured({**result, "scores": scores}, beyond, "\n".join(lines))


def summarize(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Averages of samples' scores, by length in tokens; JSON-ready.

    Args:
        scores: task -> length -> every sample's score, 0 to 1.

    Returns:
        `average` over the tasks at each length and `average_ci95`, its 95 % interval over samples of the same
        tasks (Wilson's), both percent; `averaged`, how many tasks that is; `tasks`, the score of each; and
        `samples`, the number of each.
    """
    lengths = sorted({length for by_length in scores.values() for length in by_length}, key=int)
    tasks = {task: {n: 100 * fmean(by[n]) for n in lengths if n in by} for task, by in scores.items()}
    pooled = {n: [score for by in scores.values() for score in by.get(n, ())] for n in lengths}
    intervals = {n: proportion_interval(sum(values), len(values)) for n, values in pooled.items()}
    which = "all" if len(scores) == len(TASKS) else f"{len(scores)} of the"
    return {
        "averaged": f"{which} {len(TASKS)} tasks",
        "average": {n: fmean(by[n] for by in tasks.values() if n in by) for n in lengths},
        "average_ci95": {n: [100 * end for end in interval] for n, interval in intervals.items()},
        "samples": max(len(values) for by in scores.values() for values in by.values()),
        "tasks": tasks,
    }
