"""The whole LongRoPE2 pipeline on a tiny model: 256 -> 2048 tokens on two CPU cores.

    python -m examples.tiny_cpu.run

Every stage is a command as a cluster runs it; `logs/` in the run's folder shows each command with its output.
A run that was cut off continues where it was. See README.md beside this file.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from cyclopts import App

from examples.tiny_cpu.report import write_report
from examples.tiny_cpu.stages import ROOT, Stage, longrope2, run_stages, save_settings
from megatron_longrope2.cli import run_main

HERE = Path(__file__).parent
ORIGINAL = 256
BASELINES = ("none", "pi", "ntk", "yarn")
FOUND = {"longrope2": "search", "learned": "learn"}


@dataclass(frozen=True)
class Recipe:
    """How much of everything. The defaults are the demo's; `QUICK` is for the tests."""

    target_length: int = 2048
    population: int = 20
    iterations: int = 6
    search_samples: int = 32
    learning_steps: int = 48
    steps: int = 400
    ablation_steps: int = 100
    needle_documents: int = 768
    depths: int = 8
    repetitions: int = 8
    texts: int = 100
    long_texts: int = 16

    @property
    def lengths(self) -> list[int]:
        """The lengths at which needles are measured: the original one and its doublings, in tokens."""
        lengths = [ORIGINAL]
        while lengths[-1] < self.target_length:
            lengths.append(2 * lengths[-1])
        return lengths


QUICK = Recipe(
    target_length=512,
    population=9,
    iterations=1,
    search_samples=4,
    learning_steps=2,
    steps=4,
    ablation_steps=2,
    needle_documents=8,
    depths=2,
    repetitions=2,
    texts=4,
    long_texts=2,
)

app = App(name="examples/tiny_cpu/run.py", help=__doc__, help_format="plaintext")


@app.default
def main(*, output: Path = ROOT / "runs" / "tiny_cpu", quick: bool = False) -> None:
    """Run the pipeline.

    Args:
        output: The run's folder.
        quick: Run every stage, but on next to nothing: a test of the commands.
    """
    recipe = QUICK if quick else Recipe()
    folder = output.resolve()
    save_settings(folder, asdict(recipe))
    rows = run_stages(stages(recipe, folder), folder)
    methods = (*BASELINES, *FOUND)
    print(write_report(folder, ORIGINAL, recipe.target_length, methods, TRAININGS, rows))


def stages(recipe: Recipe, folder: Path) -> list[Stage]:
    """The commands, in order."""
    factors, books = folder / "factors", HERE / "books" / "train"
    return [
        Stage(
            "import",
            longrope2("import", "--hf-dir", HERE / "base", "--save-dir", folder / "base"),
            outputs=(folder / "base",),
        ),
        *(_baseline(method, recipe, factors / f"{method}.json") for method in BASELINES),
        Stage(
            "preprocess",
            longrope2(
                *("preprocess", "--input", books, "--tokenizer", HERE / "base", "--output", folder / "data"),
                *("--original-length", ORIGINAL, "--cut-long-documents", "--add-bos"),
            ),
            outputs=(folder / "data",),
        ),
        Stage(
            "needles",
            longrope2(
                *("needles", "--books", books, "--tokenizer", HERE / "base"),
                # With needles of one length alone, the model would lose the lengths between the two windows.
                *("--lengths", *recipe.lengths[1:], "--samples", recipe.needle_documents),
                *("--needle-depths", *(f"{i / 16:g}" for i in range(16)), "--keys", "train", "--seed", 7),
                *("--output", folder / "needles" / "train"),
            ),
        ),
        Stage(
            "search",
            longrope2(
                *("search", "--load", folder / "base", "--books", books, "--output", folder / "search"),
                *("--target-length", recipe.target_length, "--search-space", "extended"),
                *("--fix-attention-factor", "--samples", recipe.search_samples),
                *("--needle-depths", *(f"{i / 8:g}" for i in range(9)), "--held-out-samples", 0),
                *("--population", recipe.population, "--iterations", recipe.iterations),
            ),
            processes=2,
        ),
        Stage(
            "learn",
            longrope2(
                *("search", "--algorithm", "gradient", "--load", folder / "base", "--no-recompute"),
                *("--books", books, "--held-out-samples", 0, "--output", folder / "learn"),
                *("--target-length", recipe.target_length, "--steps", recipe.learning_steps),
            ),
            processes=2,
        ),
        _measure("before", _untrained(folder), recipe, folder),
        *(_train(name, recipe, folder) for name in TRAININGS),
        # What was measured before is not measured again; the report then shows everything.
        _measure("all", _untrained(folder) | _trained(folder), recipe, folder),
        Stage(
            "export",
            longrope2("export", "--load-dir", folder / "longrope2", "--save-dir", folder / "hf"),
            outputs=(folder / "hf",),
        ),
        Stage(
            "verify",
            longrope2(
                *("verify", folder / "longrope2", folder / "hf"),
                *("--lengths", ORIGINAL, recipe.target_length, "--output", folder / "verify.json"),
            ),
        ),
    ]


def _baseline(method: str, recipe: Recipe, output: Path) -> Stage:
    return Stage(
        f"factors-{method}",
        longrope2(
            *("factors", "make", "--method", method, "--hf-dir", HERE / "base"),
            *("--target-length", recipe.target_length, "--output", output),
        ),
    )


# The main training with either factors, a control that only sees short windows, and the ablation: text only,
# with mixed windows and with the rescaled RoPE on everything.
TRAININGS = ("longrope2", "learned", "short_only", "mixed_text", "single_window")


def _train(name: str, recipe: Recipe, folder: Path) -> Stage:
    data, needles = folder / "data", ("--pool", "long", 2, folder / "needles" / "train")
    is_main = name in (*FOUND, "short_only")
    short = ("--pool", "short", 2 if is_main else 1, data / "short")
    long = ("--pool", "long", 1, data / "long")
    pools = short if name == "short_only" else (*short, *long, *needles) if is_main else (*short, *long)
    steps, rate = (recipe.steps, "1e-3") if is_main else (recipe.ablation_steps, "3e-4")
    return Stage(
        f"train-{name}",
        longrope2(
            *("train", "--pretrained-checkpoint", folder / "base"),
            *("--load", folder / name, "--save", folder / name, "--save-interval", 100),
            *("--rope-factors", folder / FOUND.get(name, "search") / "factors.json"),
            *("--seq-length", recipe.target_length, "--micro-batch-size", 1),
            *("--global-batch-size", 2, "--train-iters", steps, "--log-interval", 10),
            *("--lr", rate, "--lr-decay-style", "cosine", "--lr-warmup-iters", steps // 20),
            *("--weight-decay", 0, "--adam-beta2", 0.95, "--clip-grad", 1.0, "--seed", 1),
            *("--ckpt-format", "torch_dist", "--long-window-attention", "document"),
            *("--repeat-data", *pools),
            *(("--single-window",) if name == "single_window" else ()),
        ),
        processes=2,
    )


def _untrained(folder: Path) -> dict[str, str]:
    """The base with every method's factors."""
    factors = {method: folder / "factors" / f"{method}.json" for method in BASELINES}
    factors |= {name: folder / place / "factors.json" for name, place in FOUND.items()}
    return {name: f"{folder / 'base'},{file}" for name, file in factors.items()}


def _trained(folder: Path) -> dict[str, str]:
    return {f"trained-{name}": str(folder / name) for name in TRAININGS}


def _measure(name: str, candidates: dict[str, str], recipe: Recipe, folder: Path) -> Stage:
    return Stage(
        f"measure-{name}",
        longrope2(
            *("evaluate", "compare", *(f"{key}={place}" for key, place in candidates.items())),
            *("--baseline", "none", "--reference", "longrope2"),
            *("--books", HERE / "books" / "held_out", "--seed", 1),
            *("--needle.lengths", *recipe.lengths, "--needle.depths", recipe.depths),
            *("--needle.repetitions", recipe.repetitions),
            *("--perplexity.short-texts", recipe.texts, "--perplexity.long-texts", recipe.long_texts),
            *("--perplexity.long-length", recipe.target_length),
            *("--output", folder / "measured"),
        ),
        processes=2,
    )


if __name__ == "__main__":
    run_main(app)
