"""The rescaling factors of one model: what they are, what they may not be, and their JSON and CSV files."""

import copy
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from megatron_longrope2.errors import InputError, naming
from megatron_longrope2.files import write_json, write_text
from megatron_longrope2.rope.frequencies import angles, check_rope, critical_dim

FORMAT = "longrope2-factors/1"
Window = Literal["short", "long"]


@dataclass(frozen=True)
class AttentionFactor:
    """What cosine and sine are multiplied by in each window; LongRoPE2 multiplies by 1."""

    short: float = 1.0
    long: float = 1.0


@dataclass(frozen=True)
class RopeFactors:
    """One rescaling of one model's RoPE: `inv_freq_i = 1 / (factor_i * rope_base^(2i/rotary_dim))`.

    Attributes:
        method: the name of what made the vector, for people ("longrope2", "yarn", ...).
        rope_base: RoPE base (`rope_theta` in Hugging Face).
        rotary_dim: rotated dimensions of a head, twice the length of the vectors. It is smaller than the head
            where the model is partially rotary.
        original_length: pre-trained window, tokens. Longer sequences use `long_factor`.
        target_length: extended window, tokens.
        critical_dim: the dimension from which the long factors reach the scale; None where there is none.
        long_factor: [rotary_dim/2], at least 1, not decreasing.
        short_factor: [rotary_dim/2], the same rules; all 1 when left empty.
        attention_factor: what cosine and sine are multiplied by in each window.
        provenance: anything that tells where the factors come from. It takes no part in equality.

    Raises:
        InputError: a field breaks a rule above, or the target is not longer than the original.
    """

    method: str
    rope_base: float
    rotary_dim: int
    original_length: int
    target_length: int
    critical_dim: int | None
    long_factor: tuple[float, ...] = field(repr=False)
    short_factor: tuple[float, ...] = field(default=(), repr=False)
    attention_factor: AttentionFactor = AttentionFactor()
    provenance: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        put = object.__setattr__  # the fields are frozen
        put(self, "rope_base", number(self.rope_base, "rope_base"))
        for name in ("rotary_dim", "original_length", "target_length"):
            put(self, name, whole_number(getattr(self, name), name))
        if self.target_length <= self.original_length:
            raise InputError(
                f"target_length: {self.target_length} is not larger than original_length "
                f"{self.original_length}; give the extended window in tokens"
            )
        check_rope(self.rope_base, self.rotary_dim)
        half = self.rotary_dim // 2
        if self.critical_dim is not None:
            put(self, "critical_dim", whole_number(self.critical_dim, "critical_dim", least=0))
            if self.critical_dim > half:
                raise InputError(f"critical_dim: {self.critical_dim} is outside [0, {half}]")
        if not isinstance(self.method, str) or not self.method:
            raise InputError(f"method: must be a name, got {self.method!r}")
        for name, value in asdict(self.attention_factor).items():
            if not 0 < number(value, f"attention_factor.{name}") < math.inf:
                raise InputError(f"attention_factor.{name}: {value} is not a finite positive number")
        put(self, "long_factor", _vector(self.long_factor, half, "long_factor"))
        unset = isinstance(self.short_factor, tuple) and not self.short_factor
        short = (1.0,) * half if unset else self.short_factor
        put(self, "short_factor", _vector(short, half, "short_factor"))
        put(self, "provenance", copy.deepcopy(dict(self.provenance)))

    @property
    def scale(self) -> float:
        """`s = target_length / original_length`."""
        return self.target_length / self.original_length

    @property
    def theoretical_critical_dim(self) -> int:
        """First dimension without one full period in the original window: where the OOD bound begins."""
        return critical_dim(self.rope_base, self.rotary_dim, self.original_length)

    @property
    def facts(self) -> dict[str, Any]:
        """What every rescaling of this model to this length shares: the arguments of `make_factors`."""
        names = ("rope_base", "rotary_dim", "original_length", "target_length")
        return {name: getattr(self, name) for name in names}

    def factor(self, window: Window) -> tuple[float, ...]:
        """The vector of a window, [rotary_dim/2]."""
        return self.long_factor if window == "long" else self.short_factor

    def inv_freq(self, window: Window, dtype: DTypeLike = np.float64) -> NDArray[Any]:
        """Rescaled angle per token of each dimension: radians, [rotary_dim/2], rounded to `dtype` last."""
        return (angles(self.rope_base, self.rotary_dim) / np.asarray(self.factor(window))).astype(dtype)

    def ood_dims(self) -> list[int]:
        """Dimensions whose long factor lets positions leave the trained range of angles.

        Those are the `i >= theoretical_critical_dim` with `factor_i < scale` (LongRoPE2, section 2).
        """
        bound = self.scale * (1 - 1e-9)
        start = self.theoretical_critical_dim
        return [i for i, value in enumerate(self.long_factor) if i >= start and value < bound]

    def check_model(self, source: str, **known: float) -> None:
        """Refuse factors that were made for another model.

        Args:
            source: the model or the factor file, for the message.
            known: fields of this class, such as `rope_base`, as the model has them.

        Raises:
            InputError: a field differs.
        """
        for name, value in known.items():
            mine = getattr(self, name)
            if not math.isclose(mine, value, rel_tol=1e-9):
                raise InputError(
                    f"{source}: {name}: the factors are for {mine:g}, the model has {value:g}; "
                    "use factors made for this model"
                )

    def differences(self, other: "RopeFactors", rel_tol: float = 1e-6) -> list[str]:
        """In which fields two sets would rotate differently, one text each: "field: mine against theirs".

        Method and critical dimension are names for people and are not compared.
        """
        mine, theirs = self._scalars(), other._scalars()
        found = [
            f"{name}: {mine[name]:g} against {theirs[name]:g}"
            for name in mine
            if not math.isclose(mine[name], theirs[name], rel_tol=1e-9)
        ]
        if self.rotary_dim == other.rotary_dim:
            for name in ("long_factor", "short_factor"):
                ours, others = np.array(getattr(self, name)), np.array(getattr(other, name))
                worst = int(np.abs(np.log(ours / others)).argmax())
                if not math.isclose(ours[worst], others[worst], rel_tol=rel_tol):
                    found.append(f"{name}: dimension {worst} is {ours[worst]:g} against {others[worst]:g}")
        return found

    def _scalars(self) -> dict[str, float]:
        attention = asdict(self.attention_factor)
        return self.facts | {f"attention_factor.{window}": value for window, value in attention.items()}

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of a factor file (plain numbers, lists and dicts)."""
        value = {"format": FORMAT, **asdict(self)}
        return value | {"long_factor": list(self.long_factor), "short_factor": list(self.short_factor)}

    @classmethod
    def from_dict(cls, value: Any, source: str = "factors") -> "RopeFactors":
        """Factors from the JSON object of a factor file.

        Args:
            value: what `to_dict` returns. `short_factor`, `attention_factor` and `provenance` may be absent.
            source: the file's name, for the message.

        Raises:
            InputError: not this format, or a field is missing, unknown or wrong.
        """
        with naming(source):
            if not isinstance(value, dict) or value.get("format") != FORMAT:
                raise InputError(f'format: not a factor file; it needs "format": "{FORMAT}"')
            fields = {name: item for name, item in value.items() if name != "format"}
            known = list(cls.__dataclass_fields__)
            for name in fields:
                if name not in known:
                    raise InputError(f"{name}: unknown field; known are {', '.join(known)}")
            for name in known[: known.index("short_factor")]:
                if name not in fields:
                    raise InputError(f"{name}: missing")
            attention = fields.pop("attention_factor", {})
            if not isinstance(attention, dict) or not set(attention) <= {"short", "long"}:
                raise InputError('attention_factor: must be {"short": number, "long": number}')
            if not isinstance(fields.get("provenance", {}), dict):
                raise InputError("provenance: must be an object")
            return cls(**fields, attention_factor=AttentionFactor(**attention))

    def save(self, path: str | Path, form: Literal["json", "csv"] | None = None) -> None:
        """Write a factor file.

        Args:
            path: the file.
            form: "csv" is the long factors alone, one a line, as LongRoPE2's authors write them. Default: csv
                where `path` ends in .csv, else json.

        Raises:
            InputError: the file cannot be written.
        """
        if (form or Path(path).suffix.removeprefix(".")) == "csv":
            write_text(path, "".join(f"{value!r}\n" for value in self.long_factor))
        else:
            write_json(path, self.to_dict())


def number(value: Any, name: str) -> float:
    """A field of a file that must be a number.

    Raises:
        InputError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{name}: must be a number, got {value!r}")
    return float(value)


def whole_number(value: Any, name: str, least: int = 1) -> int:
    """A field of a file that must be a whole number, of at least `least`.

    Raises:
        InputError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(f"{name}: must be a whole number of at least {least}, got {value!r}")
    return int(value)


def _vector(values: Iterable[Any], length: int, name: str) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"{name}: must be a list of numbers, got {values!r}")
    vector = tuple(number(value, f"{name}: entry {i}") for i, value in enumerate(values))
    if len(vector) != length:
        raise InputError(f"{name}: {len(vector)} numbers, but half the rotary dimension is {length}")
    for i, value in enumerate(vector):
        if not 1 <= value < math.inf:
            raise InputError(f"{name}: entry {i} is {value:g}; a factor is a finite number of at least 1")
        if i and value < vector[i - 1]:
            raise InputError(
                f"{name}: entry {i} ({value:.9g}) is below entry {i - 1} ({vector[i - 1]:.9g}); "
                "factors must not decrease"
            )
    return vector
