"""The rescaling factors of one model: what they are, what they may not be, and their JSON and CSV files."""

import copy
import math
from collections.abc import Iterable
from dataclasses import InitVar, asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from megatron_longrope2.errors import InputError
from megatron_longrope2.files import write_json, write_text
from megatron_longrope2.rope.frequencies import angles, check_rope, critical_dim

FORMAT = "longrope2-factors/1"
Window = Literal["short", "long"]


@dataclass(frozen=True)
class AttentionFactor:
    """What cosine and sine are multiplied by in each window (METHOD section 6: 1 unless stated)."""

    short: float = 1.0
    long: float = 1.0


@dataclass(frozen=True, repr=False)
class RopeFactors:
    """One rescaling of one model's RoPE: `inv_freq_i = 1 / (factor_i * rope_base^(2i/rotary_dim))`.

    Attributes:
        method: the name of what made the vector, for people ("longrope2", "yarn", ...).
        rope_base: RoPE base (`rope_theta` in Hugging Face).
        rotary_dim: rotated dimensions of a head, twice the length of the vectors. Smaller than the head where
            the model is partially rotary.
        original_length: pre-trained window, tokens. Longer sequences use `long_factor`.
        target_length: extended window, tokens.
        critical_dim: the dimension from which the long factors reach the scale; None where there is none.
        long_factor: [rotary_dim/2], >= 1, non-decreasing.
        short_factor: [rotary_dim/2], the same rules; all 1 when left empty.
        attention_factor: what cosine and sine are multiplied by in each window.
        provenance: free: source, seed, score, ... It takes no part in equality.

    Raises:
        InputError: a field breaks a rule above, or the target is not longer than the original.
    """

    method: str
    rope_base: float
    rotary_dim: int
    original_length: int
    target_length: int
    critical_dim: int | None
    long_factor: tuple[float, ...]
    short_factor: tuple[float, ...] = ()
    attention_factor: AttentionFactor = AttentionFactor()
    provenance: dict[str, Any] = field(default_factory=dict, compare=False)
    source: InitVar[str] = "RopeFactors"
    """Named in front of an error: the file that the fields were read from."""

    def __post_init__(self, source: str) -> None:
        put = object.__setattr__
        put(self, "rope_base", _number(self.rope_base, f"{source}: rope_base"))
        for name in ("rotary_dim", "original_length", "target_length"):
            put(self, name, _integer(getattr(self, name), f"{source}: {name}"))
        if self.critical_dim is not None:
            put(self, "critical_dim", _integer(self.critical_dim, f"{source}: critical_dim"))
        check_rope(self.rope_base, self.rotary_dim, source)
        self._check_scalars(source)
        half = self.rotary_dim // 2
        put(self, "long_factor", _vector(self.long_factor, half, f"{source}: long_factor"))
        unset = isinstance(self.short_factor, tuple) and not self.short_factor
        short = (1.0,) * half if unset else self.short_factor
        put(self, "short_factor", _vector(short, half, f"{source}: short_factor"))
        put(self, "provenance", copy.deepcopy(dict(self.provenance)))

    def _check_scalars(self, source: str) -> None:
        if not isinstance(self.method, str) or not self.method:
            raise InputError(f"{source}: method: must be a name, got {self.method!r}")
        if self.original_length < 1:
            raise InputError(f"{source}: original_length: {self.original_length} tokens; must be positive")
        if self.target_length <= self.original_length:
            raise InputError(
                f"{source}: target_length: {self.target_length} is not larger than original_length "
                f"{self.original_length}; give the extended window in tokens"
            )
        half = self.rotary_dim // 2
        if self.critical_dim is not None and not 0 <= self.critical_dim <= half:
            raise InputError(f"{source}: critical_dim: {self.critical_dim} is outside [0, {half}]")
        for name, value in asdict(self.attention_factor).items():
            if not (_number(value, f"{source}: attention_factor.{name}") > 0 and math.isfinite(value)):
                raise InputError(
                    f"{source}: attention_factor.{name}: {value} is not a finite positive number"
                )

    @property
    def scale(self) -> float:
        """`s = target_length / original_length`."""
        return self.target_length / self.original_length

    @property
    def theoretical_critical_dim(self) -> int:
        """First dimension without one full period in the original window: where the OOD bound begins."""
        return critical_dim(self.rope_base, self.rotary_dim, self.original_length)

    def factor(self, window: Window) -> tuple[float, ...]:
        """The vector of a window, [rotary_dim/2]."""
        return self.long_factor if window == "long" else self.short_factor

    def inv_freq(self, window: Window, dtype: DTypeLike = np.float64) -> NDArray[Any]:
        """Rescaled angle per token of each dimension: radians, [rotary_dim/2], rounded to `dtype` last."""
        return (angles(self.rope_base, self.rotary_dim) / np.asarray(self.factor(window))).astype(dtype)

    def ood_dims(self) -> list[int]:
        """Dimensions whose long factor lets positions out of the trained range of angles.

        Those are the `i >= theoretical_critical_dim` with `factor_i < scale` (LongRoPE2's RoPE OOD bound).
        """
        bound = self.scale * (1 - 1e-9)
        start = self.theoretical_critical_dim
        return [i for i, value in enumerate(self.long_factor) if i >= start and value < bound]

    def check_model(self, *, rope_base: float, rotary_dim: int, source: str) -> None:
        """Refuse factors that were made for another model.

        Args:
            rope_base: the model's RoPE base.
            rotary_dim: the model's rotated dimensions of a head.
            source: the model and the factor file, for the message.

        Raises:
            InputError: base or rotary dimension differ.
        """
        if not math.isclose(self.rope_base, rope_base, rel_tol=1e-9):
            raise InputError(
                f"{source}: rope_base: the factors are for {self.rope_base:g}, the model has {rope_base:g}; "
                "use factors made for this model"
            )
        if self.rotary_dim != rotary_dim:
            raise InputError(
                f"{source}: rotary_dim: the factors are for {self.rotary_dim}, the model has {rotary_dim}; "
                "use factors made for this model"
            )

    def differences(self, other: "RopeFactors", rel_tol: float = 1e-6) -> list[str]:
        """In which fields two sets would rotate differently: one text each, "field: mine against theirs".

        Method and critical dimension are names for people and are not compared.
        """
        found = []
        for name in ("rope_base", "rotary_dim", "original_length", "target_length"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if not math.isclose(mine, theirs, rel_tol=1e-9):
                found.append(f"{name}: {mine:g} against {theirs:g}")
        for window, mine in asdict(self.attention_factor).items():
            theirs = getattr(other.attention_factor, window)
            if not math.isclose(mine, theirs, rel_tol=rel_tol):
                found.append(f"attention_factor.{window}: {mine:g} against {theirs:g}")
        if self.rotary_dim == other.rotary_dim:
            for name in ("long_factor", "short_factor"):
                pairs = list(zip(getattr(self, name), getattr(other, name), strict=True))
                worst = max(range(len(pairs)), key=lambda i: abs(math.log(pairs[i][0] / pairs[i][1])))
                if not math.isclose(*pairs[worst], rel_tol=rel_tol):
                    found.append(
                        f"{name}: dimension {worst} is {pairs[worst][0]:g} against {pairs[worst][1]:g}"
                    )
        return found

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of a factor file (plain numbers, lists and dicts)."""
        value = {"format": FORMAT, **asdict(self)}
        return value | {"long_factor": list(self.long_factor), "short_factor": list(self.short_factor)}

    def to_csv(self) -> str:
        """The long factors alone, one a line: the format of LongRoPE2's authors."""
        return "".join(f"{value!r}\n" for value in self.long_factor)

    @classmethod
    def from_dict(cls, value: Any, source: str = "factors") -> "RopeFactors":
        """Factors from the JSON object of a factor file.

        Args:
            value: what `to_dict` returns. `short_factor`, `attention_factor` and `provenance` may be absent.
            source: the file's name, for the message.

        Raises:
            InputError: not this format, a field is missing, unknown or wrong.
        """
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise InputError(f'{source}: format: not a factor file; it needs "format": "{FORMAT}"')
        fields = {name: item for name, item in value.items() if name != "format"}
        known = [name for name in cls.__dataclass_fields__ if name != "source"]
        required = known[: known.index("long_factor") + 1]
        for name in fields:
            if name not in known:
                raise InputError(f"{source}: {name}: unknown field; known are {', '.join(known)}")
        for name in required:
            if name not in fields:
                raise InputError(f"{source}: {name}: missing")
        attention = fields.pop("attention_factor", {})
        if not isinstance(attention, dict) or not set(attention) <= {"short", "long"}:
            raise InputError(f'{source}: attention_factor: must be {{"short": number, "long": number}}')
        if not isinstance(fields.get("provenance", {}), dict):
            raise InputError(f"{source}: provenance: must be an object")
        return cls(**fields, attention_factor=AttentionFactor(**attention), source=source)

    def save(self, path: str | Path) -> None:
        """Write a factor file: JSON, or the long factors alone, one a line, when `path` ends in .csv.

        Raises:
            InputError: the place cannot be written.
        """
        if Path(path).suffix == ".csv":
            write_text(path, self.to_csv())
        else:
            write_json(path, self.to_dict())

    def __repr__(self) -> str:
        critical = "" if self.critical_dim is None else f", critical_dim={self.critical_dim}"
        return (
            f"RopeFactors({self.method}: {self.original_length} -> {self.target_length} tokens "
            f"(x{self.scale:g}), rope_base={self.rope_base:g}, rotary_dim={self.rotary_dim}{critical}, "
            f"long_factor={self.long_factor[0]:.4g}..{self.long_factor[-1]:.4g}, "
            f"attention_factor={self.attention_factor.short:g}/{self.attention_factor.long:g})"
        )


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InputError(f"{where}: must be a number, got {value!r}")
    return float(value)


def _integer(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InputError(f"{where}: must be a whole number, got {value!r}")
    return int(value)


def _vector(values: Iterable[Any], length: int, where: str) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"{where}: must be a list of numbers, got {values!r}")
    vector = tuple(_number(value, f"{where}: entry {i}") for i, value in enumerate(values))
    if len(vector) != length:
        raise InputError(f"{where}: {len(vector)} numbers, but half the rotary dimension is {length}")
    for i, value in enumerate(vector):
        if not math.isfinite(value):
            raise InputError(f"{where}: entry {i} is {value}; every factor must be a finite number")
        if value < 1:
            raise InputError(f"{where}: entry {i} is {value:g}; a factor must be at least 1")
        if i and value < vector[i - 1]:
            raise InputError(
                f"{where}: entry {i} ({value:.9g}) is below entry {i - 1} ({vector[i - 1]:.9g}); "
                "factors must not decrease"
            )
    return vector
