"""What a search is told: the options of `longrope2 search`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveFloat, PositiveInt
from cyclopts.validators import Number

from megatron_longrope2.data.settings import WordingName
from megatron_longrope2.errors import InputError
from megatron_longrope2.model.settings import LayoutSettings
from megatron_longrope2.options import options
from megatron_longrope2.search.space import SearchDims, SpaceKind

Algorithm = Literal["evolution", "gradient"]
Probability = Annotated[float, Parameter(validator=Number(gt=0, lte=1))]


@options("Objective")
@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What a candidate is scored on.

    Attributes:
        objective: Perplexity of the needles' answers, or of plain text (LongRoPE2, Table 6).
        samples: Number of texts of the target length that a candidate is scored on; 10 by default, 20 for the
            gradient search, which only checks its candidates on them and learns on fresh ones.
        needle_depths: Where the needles lie in their texts, from 0 (the start) to 1 (the end); the samples
            take the depths in turn. By default 0, as in the paper; for the gradient search 0, 0.25, 0.5, 0.75
            and 0.95.
        needle_wording: The sentences around the text: short ones, or those of RULER's single-number task, as
            the installed lm-evaluation-harness has them (the paper's Appendix C).
        held_out_books: Texts of the final comparison with the closed-form methods, in the same formats as
            --books; by default the same books, with other needles.
        held_out_samples: Number of needles of the final comparison; 0 leaves it out.
    """

    objective: Literal["needle", "document"] = "needle"
    samples: PositiveInt | None = None
    needle_depths: tuple[float, ...] = ()
    needle_wording: WordingName = "short"
    held_out_books: Path | None = None
    held_out_samples: NonNegativeInt = 64


@options("Search space")
@dataclass(frozen=True, kw_only=True)
class SpaceSettings:
    """Where candidates come from.

    Attributes:
        search_space: The paper's space, or an extended one that also holds the closed-form methods, the shape
            of the factors below the critical dimension, and the long window's attention factor.
        search_dims: Search the dimensions from the critical one on, or all of them (LongRoPE2, Table 10).
        fix_attention_factor: Keep the long window's attention factor at 1 in the extended space too, so that
            plain transformers can read the result.
        longrope_attention_factor: Multiply cosine and sine of both windows by sqrt(1 + ln s / ln L), where L
            is the original length and s the target length / L, as the code of LongRoPE2's authors does in
            search and training; the paper has no such factor. The factor file carries it into training.

    Raises:
        InputError: the factor is to be searched as well.
    """

    search_space: SpaceKind = "paper"
    search_dims: SearchDims = "critical"
    fix_attention_factor: bool = False
    longrope_attention_factor: bool = False

    def __post_init__(self) -> None:
        if (
            self.longrope_attention_factor
            and self.search_space == "extended"
            and not self.fix_attention_factor
        ):
            raise InputError(
                "--longrope-attention-factor: the extended space searches the attention factor; add "
                "--fix-attention-factor"
            )


@options("Evolution")
@dataclass(frozen=True, kw_only=True)
class EvolutionSettings:
    """Settings of the evolution; the defaults are the paper's, but for the parents.

    Attributes:
        population: Number of candidates in the first generation.
        iterations: Number of generations after the first. Each proposes half as many candidates as the
            population.
        parents: Number of best candidates from which new ones are bred; by default an eighth of the
            population, but at least 4. The authors' code keeps half. Few parents let exact pruning save more.
        mutation_probability: Probability with which a mutation redraws each gene.
        max_evaluations: Stop before the generation that would propose more candidates than this in all.

    Raises:
        InputError: more parents than the population has, or fewer evaluations.
    """

    population: PositiveInt = 64
    iterations: NonNegativeInt = 40
    parents: int | None = None
    mutation_probability: Probability = 0.3
    max_evaluations: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.population:
            raise InputError(f"--parents: {self.keep} is not in 1..{self.population}, the population")
        if self.max_evaluations is not None and self.max_evaluations < self.population:
            raise InputError(
                f"--max-evaluations: {self.max_evaluations} does not cover the first generation of "
                f"{self.population}; raise it or lower --population"
            )

    @property
    def keep(self) -> int:
        """k, the number of parents."""
        return min(max(self.population // 8, 4), self.population) if self.parents is None else self.parents

    @property
    def children(self) -> int:
        """Candidates of every generation after the first, half mutations and half crossovers."""
        return max(self.population // 2, 1)

    @property
    def candidates(self) -> int:
        """Candidates of the whole search, within the budget."""
        everyone = self.population + self.iterations * self.children
        return min(everyone, self.max_evaluations or everyone)


@options("Gradient search")
@dataclass(frozen=True, kw_only=True)
class GradientSettings:
    """Settings of the gradient search.

    Attributes:
        starts: Closed-form methods to begin from: none, pi, ntk, yarn, or ramp, which is a YaRN whose ramp
            begins at the best of several dimensions. The files of --init-factors join them. The worse half of
            the starts is dropped in each of the first rounds.
        steps: Number of steps of the start that stays to the end.
        batch_size: Number of fresh needle texts in a step.
        learning_rate: Learning rate of Adam on the factors.
        learn_attention_factor: Learn the long window's attention factor too; plain transformers cannot read
            the result.
        no_recompute: Keep all activations for the backward pass, which is faster where the model and the
            length fit.
    """

    starts: tuple[Literal["none", "pi", "ntk", "yarn", "ramp"], ...] = ("ntk", "yarn", "ramp", "pi")
    steps: PositiveInt = 48
    batch_size: PositiveInt = 4
    learning_rate: PositiveFloat = 0.05
    learn_attention_factor: bool = False
    no_recompute: bool = False


@options("Search", first=True)
@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """A whole search.

    Attributes:
        load: Megatron checkpoint of the model.
        books: Texts in which the needles are hidden: a file, or a folder of files.
        target_length: The extended window in tokens.
        output: Folder of the results. A search that was stopped there is resumed.
        algorithm: The paper's evolution, or factors learned by gradient on fresh needles with frozen weights.
        seed: Seed of the needles and of the evolution.
        init_factors: Factor files or published names that join the first generation, or the starts of the
            gradient search.
        max_minutes: Stop after so many minutes; the same command resumes the search.
    """

    load: Path
    books: Path
    target_length: PositiveInt
    output: Path
    algorithm: Algorithm = "evolution"
    seed: NonNegativeInt = 0
    init_factors: tuple[str, ...] = ()
    max_minutes: PositiveFloat | None = None
    objective: ObjectiveSettings = ObjectiveSettings()
    space: SpaceSettings = SpaceSettings()
    evolution: EvolutionSettings = EvolutionSettings()
    gradient: GradientSettings = GradientSettings()
    layout: LayoutSettings = LayoutSettings()

    def __post_init__(self) -> None:
        if self.algorithm == "gradient" and self.objective.objective != "needle":
            raise InputError(
                f"--objective: {self.objective.objective}: factors are learned on needles; use needle"
            )
        if self.algorithm == "gradient" and self.space.longrope_attention_factor:
            raise InputError(
                "--longrope-attention-factor: the gradient search has --learn-attention-factor; leave it out"
            )

    @property
    def samples(self) -> int:
        """Texts that a candidate is scored on."""
        return self.objective.samples or (20 if self.algorithm == "gradient" else 10)

    @property
    def needle_depths(self) -> tuple[float, ...]:
        """Where the needles lie, 0 to 1."""
        default = (0.0, 0.25, 0.5, 0.75, 0.95) if self.algorithm == "gradient" else (0.0,)
        return self.objective.needle_depths or default
