"""What the search looks through: individuals, the constraints they keep, and how new ones are made.

Pure numpy. LongRoPE2 (arXiv 2502.20082) Algorithm 1 (initial population) and Algorithm 2 (mutation), and
beside the paper's space an extended one, which holds the closed-form methods and in which the shape below the
critical dimension and the long window's attention factor are genes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import (
    AttentionFactor,
    RopeFactors,
    critical_dim,
    make_factors,
    ntk_below,
    yarn_attention_factor,
)
from megatron_longrope2.rope.frequencies import FloatArray

SpaceKind = Literal["paper", "extended"]
SearchDims = Literal["critical", "all"]
BelowKind = Literal["ntk", "ramp", "free"]

GRID = 0.01
"""Step of the factors that the paper's space draws (the authors' code)."""
RAMP_PERIODS = (32, 16, 8, 4)
"""Periods in the original window of the dimension where a "ramp" begins, a YaRN otherwise; YaRN's are 32."""
ATTENTION_RANGE = (0.8, 2.0)
EXPONENT_RANGE = (0.25, 4.0)
RAMP_START_RANGE = (0.0, 0.95)
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Below:
    """The shape of the factors below the critical dimension `d`, whose own factor is `g`.

    "ntk": `g^((i/d)^value)`, NTK where value is 1. "ramp": frequencies blended linearly from 1 at dimension
    `value * d` to `1/g` at `d`, as YaRN does. "free": its own numbers, only bounded by `g`.
    """

    kind: BelowKind = "ntk"
    value: float = 1.0

    def factors(self, g: float, dim: int, current: FloatArray) -> FloatArray:
        """The factors of dimensions 0 .. dim-1, [dim]; `current` [dim] are those that "free" keeps."""
        if self.kind == "free":
            return np.clip(np.maximum.accumulate(current), 1.0, g) if dim else current
        if self.kind == "ramp":
            start = self.value * dim
            ramp = np.clip((np.arange(dim) - start) / (dim - start), 0, 1)
            return np.clip(g / (ramp + (1 - ramp) * g), 1.0, g)
        if self.value == 1:
            return np.minimum(ntk_below(g, dim), g)
        return np.minimum(np.power(g, (np.arange(dim) / dim) ** self.value), g)


@dataclass(frozen=True)
class Individual:
    """One candidate of the search.

    Attributes:
        critical_dim: its own real critical dimension: `long_factor[i] >= scale` for every `i` from here on.
        long_factor: [rotary_dim/2], non-decreasing, >= 1.
        below: the shape under `critical_dim`; always "ntk" with value 1 in the paper's space.
        attention_factor: of the long window; where it is not searched, the space's own.
        origin: how it came about, for the history.
    """

    critical_dim: int
    long_factor: tuple[float, ...]
    below: Below = Below()
    attention_factor: float = 1.0
    origin: str = field(default="", compare=False)

    @property
    def key(self) -> tuple[float, ...]:
        """What the model sees, and nothing else: equal keys have equal scores. Breaks ties between scores."""
        return (*self.long_factor, self.attention_factor)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"long_factor": list(self.long_factor)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Individual":
        """From what `to_dict` returned."""
        fields = {"long_factor": tuple(value["long_factor"]), "below": Below(**value["below"])}
        return cls(**value | fields)


@dataclass(frozen=True)
class SearchSpace:
    """The search space of one model.

    Args:
        unscaled: the model's RoPE as it is ("none"), with the target length of the search, and with the
            attention factors that every candidate has: the long window's only where it is not searched.
        kind: "paper" (NTK below the critical dimension, factors in [scale, 2 * scale] above) or "extended".
        dims: "critical": search from the critical dimension on; "all": below it too (the paper's Table 10).
        fix_attention_factor: keep the long window's in the extended space too, as plain transformers needs
            it.

    Raises:
        InputError: too few dimensions to search.
    """

    unscaled: RopeFactors
    kind: SpaceKind = "paper"
    dims: SearchDims = "critical"
    fix_attention_factor: bool = False

    def __post_init__(self) -> None:
        if self.half < 2:
            raise InputError(
                f"search: rotary_dim: {2 * self.half} leaves nothing to search; it must be at least 4"
            )

    @property
    def scale(self) -> float:
        """`s = target_length / original_length`."""
        return self.unscaled.scale

    @property
    def half(self) -> int:
        """Length of the vectors."""
        return self.unscaled.rotary_dim // 2

    @property
    def critical_dims(self) -> range:
        """Candidates for the real critical dimension: `d_10` to the theoretical one, inside the vector."""
        rope = self.unscaled
        low = critical_dim(rope.rope_base, rope.rotary_dim, rope.original_length, 10)
        high = min(max(rope.theoretical_critical_dim, 1), self.half - 1)
        return range(min(max(low, 1), high), high + 1)

    @property
    def ceiling(self) -> float:
        """Largest factor drawn: `2 * scale` in the paper; the extended space may switch a dimension off."""
        return self.scale * (2 if self.kind == "paper" else 32)

    @property
    def moves_attention_factor(self) -> bool:
        """Whether the long window's attention factor is a gene."""
        return self.kind == "extended" and not self.fix_attention_factor

    # Making individuals

    def initial_population(
        self, size: int, probability: float, given: Sequence[RopeFactors], rng: np.random.Generator
    ) -> list[Individual]:
        """Algorithm 1: a flat vector for each critical dimension, then mutations of the members so far.

        The given factors come first and, in the extended space, the closed-form methods.

        Args:
            size: members wanted, N. Fewer come back only where the space has no more.
            probability: of mutation, per gene.
            given: warm starts, moved into the space where they lie outside.

        Raises:
            InputError: `size` has no room for what must be in the population.
        """
        fixed = [self.project(factors) for factors in given]
        if self.kind == "extended":
            fixed += [self.project(factors) for factors in self.baselines()]
        members: dict[tuple[float, ...], Individual] = {}
        for individual in fixed:
            members.setdefault(individual.key, individual)
        if size < max(len(members), 1):
            raise InputError(
                f"search: population: {size} has no room for the {len(members)} given and closed-form "
                f"members; use at least {max(len(members), 1)}"
            )
        for dim in rng.permutation(self.critical_dims)[: size - len(members)]:
            individual = self._flat(int(dim), rng)
            members.setdefault(individual.key, individual)
        for _ in range(100 * size):
            if len(members) == size:
                break
            pool = list(members.values())
            child = self.mutate(pool[rng.integers(len(pool))], probability, rng)
            members.setdefault(child.key, child)
        return list(members.values())

    def baselines(self) -> Iterator[RopeFactors]:
        """The closed-form methods, each without and, where that is a gene, with YaRN's attention factor."""
        temperature = AttentionFactor(long=yarn_attention_factor(self.scale))
        for method in ("pi", "ntk", "yarn", "ramp", "ntk-rcd", "yarn-rcd"):
            for factors in self.closed_form(method):
                yield factors
                if self.moves_attention_factor:
                    name = f"{factors.method}+attention"
                    yield replace(factors, method=name, attention_factor=temperature)

    def closed_form(self, method: str, critical_dim: int | None = None) -> list[RopeFactors]:
        """What a method's name stands for: one set of factors, for "ramp" one a place where it may begin.

        Args:
            critical_dim: of the "-rcd" methods; None: the middle of the candidates. Where YaRN's ramp would
                start above it, there is no set.
        """
        if method == "ramp":
            ramps = ((one, self._factors("yarn", beta_fast=one, truncate=False)) for one in RAMP_PERIODS)
            return [replace(factors, method=f"ramp-{one}") for one, factors in ramps]
        if critical_dim is None:
            critical_dim = self.critical_dims[len(self.critical_dims) // 2]
        try:
            return [self._factors(method, critical_dim=critical_dim if method.endswith("-rcd") else None)]
        except InputError:
            if method == "yarn-rcd":
                return []
            raise

    def project(self, factors: RopeFactors) -> Individual:
        """The individual for given factors: themselves where the space holds them, else moved into it.

        Raises:
            InputError: the factors are of another model or another extension.
        """
        factors.check_model(f"search: {factors.method}", **self.unscaled.facts)
        vector = np.asarray(factors.long_factor)
        if factors.critical_dim is None:
            reached = np.flatnonzero(vector >= self.scale * (1 - _ROUNDING))
            dim = int(reached[0]) if len(reached) else self.half
        else:
            dim = factors.critical_dim
        dim = min(max(dim, self.critical_dims[0]), self.critical_dims[-1])
        below = self._shape_of(vector, dim)
        individual = self._assemble(dim, vector, below, factors.attention_factor.long, origin=factors.method)
        if self.kind == "extended" and np.allclose(individual.long_factor, vector, rtol=_ROUNDING, atol=0):
            return replace(individual, long_factor=factors.long_factor)  # without the rounding of its parts
        return individual

    def mutate(self, parent: Individual, probability: float, rng: np.random.Generator) -> Individual:
        """Algorithm 2: redraw genes, each with `probability`, inside their bounds; may change nothing."""
        vector, dim, below = np.array(parent.long_factor), parent.critical_dim, parent.below
        attention = parent.attention_factor
        if rng.random() < probability:
            dim = min(max(dim + int(rng.choice((-1, 1))), self.critical_dims[0]), self.critical_dims[-1])
        vector[dim:] = np.maximum(vector[dim:], self.scale)
        if self.kind == "paper":
            self._redraw(vector, dim, probability, rng)
        else:
            moves: tuple[Callable[..., None], ...] = (self._redraw, self._tilt, self._lift)
            for move in moves:
                if rng.random() < probability:
                    move(vector, dim, probability, rng)
            below = self._mutate_below(below, probability, rng)
            if rng.random() < probability:
                attention = float(np.clip(attention + rng.normal(0, 0.05), *ATTENTION_RANGE))
        if below.kind == "free":
            self._redraw_below(vector, dim, probability, rng)
        return self._assemble(dim, vector, below, attention, origin="mutation")

    def crossover(self, first: Individual, second: Individual, rng: np.random.Generator) -> Individual:
        """Each factor from one of the two parents, kept non-decreasing; the critical dimension of `first`.

        In the paper's space both parents have the same critical dimension.
        """
        vector = np.where(rng.random(self.half) < 0.5, first.long_factor, second.long_factor)
        below = first.below if rng.random() < 0.5 else second.below
        weight = rng.random()
        attention = weight * first.attention_factor + (1 - weight) * second.attention_factor
        if first.attention_factor == second.attention_factor:
            attention = first.attention_factor  # without a rounding error, which would be a new vector
        return self._assemble(first.critical_dim, vector, below, attention, origin="crossover")

    def pairs_for(self, first: Individual, pool: Sequence[Individual]) -> list[Individual]:
        """The members of `pool` that may be crossed with `first`."""
        return [
            other
            for other in pool
            if other is not first and (self.kind == "extended" or other.critical_dim == first.critical_dim)
        ]

    def to_factors(self, individual: Individual, method: str, provenance: dict[str, Any]) -> RopeFactors:
        """The factor file's content for an individual."""
        return replace(
            self.unscaled,
            method=method,
            critical_dim=individual.critical_dim,
            long_factor=individual.long_factor,
            attention_factor=replace(self.unscaled.attention_factor, long=individual.attention_factor),
            provenance=provenance,
        )

    # Parts

    def _factors(self, method: str, **options: Any) -> RopeFactors:
        return make_factors(method, **self.unscaled.facts, **options)

    def _shape_of(self, vector: FloatArray, dim: int) -> Below:
        """The shape gene that the factors below `dim` follow, "free" where none does."""
        if self.dims == "all":
            return Below("free")
        shapes = [Below(), *(Below("ramp", start / dim) for start in range(dim))]
        if self.kind == "paper":
            return shapes[0]
        g = float(vector[dim])
        return next(
            (shape for shape in shapes if np.allclose(shape.factors(g, dim, vector[:dim]), vector[:dim])),
            Below("free"),
        )

    def _flat(self, dim: int, rng: np.random.Generator) -> Individual:
        g = self._draw(self.scale, 2 * self.scale, rng)
        below = Below("free") if self.dims == "all" else Below()
        vector = np.concatenate((ntk_below(g, dim), np.full(self.half - dim, g)))
        return self._assemble(dim, vector, below, 1.0, origin="flat")

    def _assemble(
        self,
        dim: int,
        vector: FloatArray,
        below: Below,
        attention: float,
        *,
        origin: str,
    ) -> Individual:
        """An individual from a proposal: factors from `dim` on kept in bounds, those below made from them."""
        above = np.maximum.accumulate(np.maximum(vector[dim:], self.scale))
        if self.kind == "paper":
            above = np.minimum(above, 2 * self.scale)
        if not self.moves_attention_factor:
            attention = self.unscaled.attention_factor.long
        low = below.factors(float(above[0]), dim, vector[:dim])
        if self.kind == "paper" and dim:
            low[0] = 1.0
        values = np.concatenate((low, above)).tolist()
        return Individual(dim, tuple(values), below, attention, origin)

    def _draw(self, low: float, high: float, rng: np.random.Generator) -> float:
        """One factor in [low, high]: on the grid in the paper's space, in the other log-uniform."""
        if self.kind == "paper":
            value = round(rng.uniform(low, high) / GRID) * GRID
            return min(max(round(value, 2), low), high)
        return min(max(math.exp(rng.uniform(math.log(low), math.log(high))), low), high)

    def _redraw(self, vector: FloatArray, dim: int, probability: float, rng: np.random.Generator) -> None:
        """Redraw factors from `dim` on between their neighbours, with `probability` each.

        Upwards or downwards at random: a flat stretch opens only from the end where the redrawing comes in.
        """
        order = range(dim, self.half)
        for i in order if rng.random() < 0.5 else reversed(order):
            if rng.random() < probability:
                low = self.scale if i == dim else vector[i - 1]
                high = vector[i + 1] if i + 1 < self.half else max(self.ceiling, vector[i])
                vector[i] = self._draw(float(low), float(high), rng)

    def _redraw_below(
        self, vector: FloatArray, dim: int, probability: float, rng: np.random.Generator
    ) -> None:
        """Redraw factors below `dim` between their neighbours; the first one stays 1."""
        for i in range(1, dim):
            if rng.random() < probability:
                vector[i] = self._draw(float(vector[i - 1]), float(max(vector[i + 1], vector[i - 1])), rng)

    def _tilt(self, vector: FloatArray, dim: int, _: float, rng: np.random.Generator) -> None:
        """Stretch or flatten the factors from `dim` on, in their logarithm, about `dim`."""
        ramp = np.arange(self.half - dim) / max(self.half - 1 - dim, 1)
        self._scale_above(vector, dim, rng.normal(0, 0.5) * ramp)

    def _lift(self, vector: FloatArray, dim: int, _: float, rng: np.random.Generator) -> None:
        """Raise or lower all factors from `dim` on by one factor."""
        self._scale_above(vector, dim, np.full(self.half - dim, rng.normal(0, 0.1)))

    def _scale_above(self, vector: FloatArray, dim: int, log_change: FloatArray) -> None:
        top = max(self.ceiling, float(vector[-1]))
        vector[dim:] = np.clip(vector[dim:] * np.exp(log_change), self.scale, top)

    def _mutate_below(self, below: Below, probability: float, rng: np.random.Generator) -> Below:
        if self.dims == "all" or rng.random() >= probability:
            return below
        kind = below.kind
        if kind == "free" or rng.random() < 0.3:  # another shape, drawn whole
            if rng.random() < 0.5:
                return Below("ntk", 1.0)
            return Below("ramp", float(rng.uniform(*RAMP_START_RANGE)))
        if kind == "ntk":
            return Below("ntk", float(np.clip(below.value * math.exp(rng.normal(0, 0.3)), *EXPONENT_RANGE)))
        return Below("ramp", float(np.clip(below.value + rng.normal(0, 0.15), *RAMP_START_RANGE)))
