"""The rescaling factors of one model: what they are, what they may not be, and their JSON and CSV files."""

import math
from dataclasses import asdict, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import to_jsonable_python

from megatron_longrope2.errors import InputError, naming, refusals
from megatron_longrope2.files import write_json, write_text
from megatron_longrope2.rope.frequencies import angles, critical_dim

FORMAT = "longrope2-factors/1"
Window = Literal["short", "long"]

RopeBase = Annotated[float, Field(strict=True, gt=1, allow_inf_nan=False)]
RotaryDim = Annotated[int, Field(strict=True, ge=2, multiple_of=2)]
Length = Annotated[int, Field(strict=True, ge=1)]
Factor = Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AttentionFactor:
    """What cosine and sine are multiplied by in each window; LongRoPE2 multiplies by 1."""

    short: Positive = 1.0
    long: Positive = 1.0


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
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

    method: Annotated[str, Field(min_length=1)]
    rope_base: RopeBase
    rotary_dim: RotaryDim
    original_length: Length
    target_length: Length
    critical_dim: Annotated[int, Field(strict=True, ge=0)] | None
    long_factor: tuple[Factor, ...] = field(repr=False)
    short_factor: tuple[Factor, ...] = field(default=(), repr=False)
    attention_factor: AttentionFactor = AttentionFactor()
    provenance: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, fields: Any, validate: ModelWrapValidatorHandler["RopeFactors"]) -> "RopeFactors":
        try:
            return validate(fields)
        except ValidationError as error:
            raise InputError(refusals(error)[0]) from error

    def __post_init__(self) -> None:
        half = self.rotary_dim // 2
        if not self.short_factor:
            object.__setattr__(self, "short_factor", (1.0,) * half)  # the fields are frozen
        if self.target_length <= self.original_length:
            raise InputError(
                f"target_length: {self.target_length} is not larger than original_length "
                f"{self.original_length}; give the extended window in tokens"
            )
        if self.critical_dim is not None and self.critical_dim > half:
            raise InputError(f"critical_dim: {self.critical_dim} is outside [0, {half}]")
        for name, vector in (("long_factor", self.long_factor), ("short_factor", self.short_factor)):
            if len(vector) != half:
                raise InputError(f"{name}: {len(vector)} numbers, but half the rotary dimension is {half}")
            for i, (before, value) in enumerate(pairwise(vector), start=1):
                if value < before:
                    raise InputError(
                        f"{name}: entry {i} ({value:.9g}) is below entry {i - 1} ({before:.9g}); "
                        "factors must not decrease"
                    )

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

    def check_carried(self, source: str, theirs: "RopeFactors | None", **known: float) -> str:
        """Whether a model fits the factors, and carries them or none; the answer is one line.

        Args:
            source, known: as in `check_model`.
            theirs: the factors that the model carries.

        Raises:
            InputError: it is another model, or it carries factors that rotate differently.
        """
        self.check_model(source, **known)
        if theirs is None:
            return f"{source}: fits; carries no factors yet"
        if found := self.differences(theirs):
            raise InputError(f"{source}: {'; '.join(found)}: the factors against the model's own")
        return f"{source}: fits; carries these factors"

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
        return {"format": FORMAT, **to_jsonable_python(self)}

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
            return cls(**{name: item for name, item in value.items() if name != "format"})

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
