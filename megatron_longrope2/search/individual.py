"""One candidate of the search, and the shape of its factors below the critical dimension."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from megatron_longrope2.rope import ntk_below
from megatron_longrope2.rope.frequencies import FloatArray

BelowKind = Literal["ntk", "ramp", "free"]


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
        attention_factor: of the long window; always 1 in the paper's space.
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
