"""The whole LongRoPE2 pipeline on a tiny model: 256 -> 2048 tokens on two CPU cores.

Every stage is a command line of the kind that a cluster runs; `logs/` in the run's folder shows each with its
output. A run that was cut off goes on where it was. See README.md beside this file.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

from report import write_report
from stages import ROOT, Stage, run_stages, save_settings

from megatron_longrope2.errors import run_main

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
        """Lengths that needles are measured at: the original one and its doublings, tokens."""
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


def main() -> None:
    run_main(_main)


def _main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "tiny_cpu", help="the run's folder")
    parser.add_argument(
        "--quick", action="store_true", help="run every stage, but on next to nothing: a test of the commands"
    )
    arguments = parser.parse_args()
    recipe = QUICK if arguments.quick else Recipe()
    folder = arguments.output.resolve()
    save_settings(folder, asdict(recipe))
    rows = run_stages(stages(recipe, folder), folder)
    methods = (*BASELINES, *FOUND)
    print(write_report(folder, ORIGINAL, recipe.target_length, methods, TRAININGS, rows))


def stages(recipe: Recipe, folder: Path) -> list[Stage]:
    """The commands, in order."""
    factors = folder / "factors"
    return [
        Stage(
            "import",
            (
                "tools/convert_hf_to_megatron.py",
                *("--hf-dir", str(HERE / "base"), "--save-dir", str(folder / "base")),
            ),
            outputs=(folder / "base",),
        ),
        *(_baseline(method, recipe, factors / f"{method}.json") for method in BASELINES),
        Stage(
            "preprocess",
            (
                "tools/preprocess_data.py",
                *("--input", str(HERE / "books" / "train"), "--tokenizer", str(HERE / "base")),
                *("--original-length", str(ORIGINAL), "--cut-long-documents", "--add-bos"),
                *("--output", str(folder / "data")),
            ),
            outputs=(folder / "data",),
        ),
        Stage(
            "needles",
            (
                "tools/make_needles.py",
                *("--books", str(HERE / "books" / "train"), "--tokenizer", str(HERE / "base")),
                # One length alone would lose the lengths between the two windows.
                *("--length", *map(str, recipe.lengths[1:]), "--samples", str(recipe.needle_documents)),
                *("--needle-depths", *(f"{i / 16:g}" for i in range(16)), "--keys", "train", "--seed", "7"),
                *("--pool", str(folder / "needles" / "train")),
            ),
        ),
        Stage(
            "search",
            (
                "tools/search_factors.py",
                *("--load", str(folder / "base"), "--books", str(HERE / "books" / "train")),
                *("--target-length", str(recipe.target_length), "--search-space", "extended"),
                *("--fix-attention-factor", "--samples", str(recipe.search_samples)),
                *("--needle-depths", *(f"{i / 8:g}" for i in range(9)), "--held-out-samples", "0"),
                *("--population", str(recipe.population), "--iterations", str(recipe.iterations)),
                *("--output", str(folder / "search")),
            ),
            processes=2,
        ),
        Stage(
            "learn",
            (
                "tools/search_factors.py",
                *("--algorithm", "gradient", "--load", str(folder / "base"), "--no-recompute"),
                *("--books", str(HERE / "books" / "train"), "--held-out-samples", "0"),
                *("--target-length", str(recipe.target_length), "--steps", str(recipe.learning_steps)),
                *("--output", str(folder / "learn")),
            ),
            processes=2,
        ),
        _measure("before", _untrained(folder), recipe, folder),
        *(_train(name, recipe, folder) for name in TRAININGS),
        # What was measured before is not measured again: one report of all.
        _measure("all", _untrained(folder) | _trained(folder), recipe, folder),
        Stage(
            "export",
            (
                "tools/convert_megatron_to_hf.py",
                *("--load-dir", str(folder / "longrope2"), "--save-dir", str(folder / "hf")),
            ),
            outputs=(folder / "hf",),
        ),
        Stage(
            "verify",
            (
                "tools/verify_checkpoint.py",
                *(str(folder / "longrope2"), str(folder / "hf")),
                *("--lengths", str(ORIGINAL), str(recipe.target_length)),
                *("--output", str(folder / "verify.json")),
            ),
        ),
    ]


def _baseline(method: str, recipe: Recipe, output: Path) -> Stage:
    return Stage(
        f"factors-{method}",
        (
            "tools/rescale_rope.py",
            *("make", "--method", method, "--hf-dir", str(HERE / "base")),
            *("--target-length", str(recipe.target_length), "--output", str(output)),
        ),
    )


# The main training with either factors, a control that only sees short windows, and the ablation: text only,
# with mixed windows and with the rescaled RoPE on everything.
TRAININGS = ("longrope2", "learned", "short_only", "mixed_text", "single_window")


def _train(name: str, recipe: Recipe, folder: Path) -> Stage:
    short = ("--pool", "short", "2", str(folder / "data" / "short"))
    long = ("--pool", "long", "1", str(folder / "data" / "long"))
    needles = ("--pool", "long", "2", str(folder / "needles" / "train"))
    text = (*("--pool", "short", "1", str(folder / "data" / "short")), *long)
    main = name in (*FOUND, "short_only")
    pools = short if name == "short_only" else (*short, *long, *needles) if main else text
    steps, rate = (recipe.steps, "1e-3") if main else (recipe.ablation_steps, "3e-4")
    return Stage(
        f"train-{name}",
        (
            *("-m", "megatron_longrope2.pretrain", "--pretrained-checkpoint", str(folder / "base")),
            *("--load", str(folder / name), "--save", str(folder / name), "--save-interval", "100"),
            *("--rope-factors", str(folder / FOUND.get(name, "search") / "factors.json")),
            *("--seq-length", str(recipe.target_length), "--micro-batch-size", "1"),
            *("--global-batch-size", "2", "--train-iters", str(steps), "--log-interval", "10"),
            *("--lr", rate, "--lr-decay-style", "cosine", "--lr-warmup-iters", str(steps // 20)),
            *("--weight-decay", "0", "--adam-beta2", "0.95", "--clip-grad", "1.0", "--seed", "1"),
            *("--ckpt-format", "torch_dist", "--long-window-attention", "document"),
            *("--repeat-data", *pools),
            *(("--single-window",) if name == "single_window" else ()),
        ),
        processes=2,
    )


def _untrained(folder: Path) -> dict[str, str]:
    """The base under every method's factors."""
    factors = {method: folder / "factors" / f"{method}.json" for method in BASELINES}
    factors |= {name: folder / place / "factors.json" for name, place in FOUND.items()}
    return {name: f"{folder / 'base'},{file}" for name, file in factors.items()}


def _trained(folder: Path) -> dict[str, str]:
    return {f"trained-{name}": str(folder / name) for name in TRAININGS}


def _measure(name: str, candidates: dict[str, str], recipe: Recipe, folder: Path) -> Stage:
    return Stage(
        f"measure-{name}",
        (
            *("tools/evaluate.py", "compare", *(f"{key}={place}" for key, place in candidates.items())),
            *("--measures", "needle", "perplexity", "--baseline", "none", "--reference", "longrope2"),
            *("--books", str(HERE / "books" / "held_out"), "--seed", "1"),
            *("--lengths", *map(str, recipe.lengths), "--depths", str(recipe.depths)),
            *("--repetitions", str(recipe.repetitions), "--short-texts", str(recipe.texts)),
            *("--long-texts", str(recipe.long_texts), "--long-length", str(recipe.target_length)),
            *("--output", str(folder / "measured")),
        ),
        processes=2,
    )


if __name__ == "__main__":
    main()
