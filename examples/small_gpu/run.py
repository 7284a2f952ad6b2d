"""LongRoPE2 against other ways to extend, on a Llama of 40M parameters: 512 -> 8192 tokens on one GPU.

    python -m examples.small_gpu.run

Pre-trains the base, finds or makes each method's factors, gives each the same mid-training and measures all
of them before and after it. Every stage is a command; a run that was cut off continues where it was. See
README.md beside this file.
"""

import importlib.util
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from cyclopts import App

from examples.tiny_cpu.stages import ROOT, Stage, longrope2, run_stages, save_settings
from megatron_longrope2.cli import run_main
from megatron_longrope2.files import write_json
from megatron_longrope2.provenance import device_name, versions

BOOKS = "examples/tiny_cpu/books"
CLOSED_FORM: dict[str, tuple[str, ...]] = {"pi": (), "ntk": (), "yarn": ("--attention-factor",)}
"""Methods, with their options for `longrope2 factors make`."""
SEARCHES: dict[str, tuple[str, ...]] = {
    "longrope": ("--objective", "document", "--search-dims", "all"),
    "longrope2": (),
    "learned": ("--algorithm", "gradient", "--no-recompute"),
}
"""Methods, with their options for `longrope2 search`."""


@dataclass(frozen=True)
class Recipe:
    """All settings. The defaults are meant for at most 25 minutes of an H100; `QUICK` is for the tests.

    Attributes:
        methods: the methods that are compared; keys of `CLOSED_FORM` and `SEARCHES`.
        pretrain_steps, pretrain_tokens, pretrain_rate: the base's training; tokens of a step.
        steps, global_batch_size, rate: each method's mid-training; segments of a step.
        needle_documents: training needles of mid-training, at all doublings up to the target length.
        learning_steps: steps of the gradient search.
        depths, repetitions: the needle grid at each length.
        ruler_samples: samples of each task, at the original and the target length.
    """

    original_length: int = 512
    target_length: int = 8192
    methods: tuple[str, ...] = (*CLOSED_FORM, *SEARCHES)
    vocabulary: int = 4096
    layers: int = 12
    hidden_size: int = 512
    intermediate_size: int = 1408
    heads: int = 8
    pretrain_steps: int = 1000
    pretrain_tokens: int = 32768
    pretrain_rate: float = 1e-3
    population: int = 64
    iterations: int = 20
    search_samples: int = 16
    learning_steps: int = 48
    steps: int = 150
    global_batch_size: int = 8
    rate: float = 3e-4
    needle_documents: int = 1024
    depths: int = 10
    repetitions: int = 5
    short_texts: int = 100
    long_texts: int = 16
    ruler_tasks: tuple[str, ...] = ("niah_single_1", "niah_single_2", "niah_multikey_1", "ruler_fwe")
    ruler_samples: int = 5

    @property
    def lengths(self) -> tuple[str, ...]:
        """The original length and its doublings up to the target, tokens."""
        doublings = (self.target_length // self.original_length).bit_length()
        return tuple(str(self.original_length << i) for i in range(doublings))


QUICK = Recipe(
    original_length=256,
    target_length=512,
    methods=("longrope2",),
    vocabulary=512,
    layers=2,
    hidden_size=64,
    intermediate_size=128,
    heads=1,
    pretrain_steps=2,
    pretrain_tokens=512,
    population=9,
    iterations=0,
    search_samples=2,
    steps=2,
    global_batch_size=2,
    needle_documents=8,
    depths=2,
    repetitions=1,
    short_texts=2,
    long_texts=1,
    ruler_tasks=(),
)


app = App(name="examples/small_gpu/run.py", help=__doc__, help_format="plaintext")


@app.default
def main(
    *,
    output: Path = Path("runs/small_gpu"),
    results: Path | None = None,
    books: str = BOOKS,
    quick: bool = False,
) -> None:
    """Run the experiment.

    Args:
        output: The run's folder.
        results: The folder for what is worth keeping. By default it is `results` in the run's folder.
        books: The folder of the texts, in train/ and held_out/.
        quick: Run every stage, but on next to nothing.
    """
    recipe = QUICK if quick else Recipe()
    folder = _short(output)
    settings = {**asdict(recipe), "books": books}
    save_settings(ROOT / folder, settings)
    rows = run_stages(stages(recipe, folder, books), ROOT / folder)
    results = results or ROOT / folder / "results"
    collect(recipe, ROOT / folder, results, {"settings": settings, "stages": rows})
    print((ROOT / folder / "after" / "report.md").read_text(), results, sep="\n")


def _short(path: Path) -> Path:
    """A path inside the repository relative to it, so that results name no folder of this machine."""
    whole = path.resolve()
    return whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole


def stages(recipe: Recipe, folder: Path, books: str) -> list[Stage]:
    """The commands, in order."""
    train, base = f"{books}/train", folder / "base"
    sizes = {
        "original-length": recipe.original_length,
        "vocabulary": recipe.vocabulary,
        "layers": recipe.layers,
        "hidden-size": recipe.hidden_size,
        "intermediate-size": recipe.intermediate_size,
        "heads": recipe.heads,
        "steps": recipe.pretrain_steps,
        "tokens-per-step": recipe.pretrain_tokens,
        "learning-rate": recipe.pretrain_rate,
    }
    pretraining = (
        *("examples/tiny_cpu/pretrain_base.py", "--books", books, "--output", folder / "hf"),
        *(word for name, value in sizes.items() for word in (f"--{name}", value)),
    )
    made = [
        Stage("pretrain", tuple(map(str, pretraining)), outputs=(ROOT / folder / "hf",)),
        _stage("import", "--hf-dir", folder / "hf", "--save-dir", base, outputs=(base,)),
        _stage(
            "preprocess",
            *("--input", train, "--tokenizer", folder / "hf", "--add-bos"),
            *("--original-length", recipe.original_length, "--cut-long-documents"),
            *("--output", folder / "data"),
            outputs=(folder / "data",),
        ),
        _stage(
            "needles",
            *("--books", train, "--tokenizer", folder / "hf", "--keys", "train"),
            *("--lengths", *recipe.lengths[1:], "--samples", recipe.needle_documents, "--seed", 7),
            *(
                "--needle-depths",
                *(f"{i / 16:g}" for i in range(16)),
                "--output",
                folder / "needles" / "train",
            ),
        ),
    ]
    made += [_find_factors(method, recipe, folder, train) for method in recipe.methods]
    before = [f"{method}={base},{_factors(method, folder)}" for method in recipe.methods]
    made.append(_compare("before", before, recipe, folder, books))
    made += [_train(method, recipe, folder) for method in recipe.methods]
    after = [f"{method}={folder / method}" for method in recipe.methods]
    made.append(_compare("after", after, recipe, folder, books))
    return made


def _stage(verb: str, *words: object, of: str = "", outputs: tuple[Path, ...] = ()) -> Stage:
    """`longrope2 VERB WORDS` as the stage VERB-OF."""
    name = f"{verb}-{of}" if of else verb
    return Stage(name, longrope2(verb, *words), outputs=tuple(ROOT / output for output in outputs))


def _factors(method: str, folder: Path) -> Path:
    return folder / "factors" / method / "factors.json"


def _find_factors(method: str, recipe: Recipe, folder: Path, books: str) -> Stage:
    if method in CLOSED_FORM:
        return _stage(
            "factors",
            *("make", "--method", method, "--hf-dir", folder / "hf"),
            *("--target-length", recipe.target_length, "--output", _factors(method, folder)),
            *CLOSED_FORM[method],
            of=method,
        )
    return _stage(
        "search",
        *("--load", folder / "base", "--books", books, "--held-out-samples", 0),
        *("--target-length", recipe.target_length, "--samples", recipe.search_samples),
        *("--needle-depths", *(f"{i / 8:g}" for i in range(8))),
        *("--population", recipe.population, "--iterations", recipe.iterations),
        *("--steps", recipe.learning_steps, "--output", _factors(method, folder).parent),
        *(("--bf16",) if torch.cuda.is_available() else ()),
        *SEARCHES[method],
        of=method,
    )


def _train(method: str, recipe: Recipe, folder: Path) -> Stage:
    """The demo's mixture: short text 2, long text 1, needles 2."""
    data, needles = folder / "data", folder / "needles" / "train"
    return _stage(
        "train",
        *("--pretrained-checkpoint", folder / "base"),
        *("--load", folder / method, "--save", folder / method, "--save-interval", 100),
        *("--rope-factors", _factors(method, folder), "--seq-length", recipe.target_length),
        *("--micro-batch-size", 1, "--global-batch-size", recipe.global_batch_size),
        *("--train-iters", recipe.steps, "--lr", recipe.rate, "--lr-decay-style", "cosine"),
        *("--lr-warmup-iters", recipe.steps // 20, "--log-interval", 10, "--seed", 1),
        *("--weight-decay", 0, "--adam-beta2", 0.95, "--clip-grad", 1.0, "--ckpt-format", "torch_dist"),
        *("--pool", "short", 2, data / "short", "--pool", "long", 1, data / "long"),
        *("--pool", "long", 2, needles, "--repeat-data", "--long-window-attention", "document"),
        # Fused RoPE cannot apply YaRN's attention factor; the same kernels for all.
        *("--bf16", "--no-rope-fusion"),
        *(() if importlib.util.find_spec("transformer_engine") else ("--transformer-impl", "local")),
        of=method,
    )


def _compare(name: str, candidates: list[str], recipe: Recipe, folder: Path, books: str) -> Stage:
    """Measure the base as it was and the candidates; RULER, which takes longest, only after training."""
    ruler = name == "after" and recipe.ruler_tasks
    ends = recipe.lengths[0], recipe.lengths[-1]
    return _stage(
        "evaluate",
        *("compare", f"none={folder / 'base'}", *candidates),
        *("--baseline", "none", "--reference", "longrope2", "--output", folder / name),
        *("--books", f"{books}/held_out"),
        *("--needle.lengths", *recipe.lengths, "--needle.depths", recipe.depths),
        *("--needle.repetitions", recipe.repetitions, "--perplexity.short-texts", recipe.short_texts),
        *("--perplexity.long-texts", recipe.long_texts, "--perplexity.long-length", recipe.target_length),
        *(("--ruler.tasks", *recipe.ruler_tasks, "--ruler.lengths", *ends) if ruler else ()),
        *(("--ruler.samples", recipe.ruler_samples) if ruler else ()),
        *(("--bf16",) if torch.cuda.is_available() else ()),
        of=name,
    )


def collect(recipe: Recipe, folder: Path, results: Path, about: dict[str, object]) -> None:
    """Copy reports, pictures, factors and the base's log; note settings, times and versions."""
    for name in ("before", "after"):
        (results / name).mkdir(parents=True, exist_ok=True)
        for path in folder.joinpath(name).glob("*.*"):
            shutil.copy(path, results / name)
    (results / "factors").mkdir(exist_ok=True)
    for method in recipe.methods:
        shutil.copy(_factors(method, folder), results / "factors" / f"{method}.json")
    shutil.copy(folder / "hf" / "pretrain_base.log", results)
    about |= {"device": device_name(), "versions": versions(), "date": time.strftime("%Y-%m-%d")}
    write_json(results / "run.json", about)


if __name__ == "__main__":
    run_main(app)
