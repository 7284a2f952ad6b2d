"""The options of `longrope2 factors` that say what model the factors are for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclopts import Parameter
from cyclopts.types import NonNegativeInt, PositiveFloat, PositiveInt

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope.factors import RopeFactors
from megatron_longrope2.rope.hf import unscaled_model
from megatron_longrope2.rope.load import load_factors
from megatron_longrope2.rope.methods import make_factors

_FACTS = ("rope_base", "rotary_dim", "original_length", "target_length")


@Parameter(name="*", group="The model")
@dataclass(frozen=True)
class Model:
    """What is known of the model.

    Attributes:
        rope_base: The RoPE base (rope_theta in config.json).
        rotary_dim: The number of rotated dimensions of an attention head.
        original_length: The window that the model was pre-trained on, in tokens.
        target_length: The extended window, in tokens.
        critical_dim: The cosine dimension from which factors reach the scale. The methods ntk-rcd and
            yarn-rcd need it; a CSV does not hold it.
        hf_dir: A Hugging Face model folder, which tells RoPE base, rotated dimensions and original length.
    """

    rope_base: PositiveFloat | None = None
    rotary_dim: PositiveInt | None = None
    original_length: PositiveInt | None = None
    target_length: PositiveInt | None = None
    critical_dim: NonNegativeInt | None = None
    hf_dir: Path | None = None

    def load(self, place: str) -> RopeFactors:
        """Factors that are this model's (`load_factors`); a CSV gets from here what it does not hold.

        Raises:
            InputError: as `load_factors`.
        """
        known = self._known(Path(place).suffix == ".csv")
        return load_factors(place, **known, critical_dim=self.critical_dim)

    def make(self, method: str, **options: Any) -> RopeFactors:
        """The factors of a closed-form method (`make_factors`); options that are None count as not given.

        Raises:
            InputError: as `make_factors`; or something is not known of the model.
        """
        known = self._known(True)
        for name in _FACTS:
            if name not in known:
                raise InputError(
                    f"--{name.replace('_', '-')}: missing; give it, or --hf-dir for the model's own"
                )
        given = {name: value for name, value in options.items() if value is not None}
        return make_factors(method, **known, critical_dim=self.critical_dim, **given)

    def _known(self, from_folder: bool) -> dict[str, Any]:
        own = {} if self.hf_dir is None or not from_folder else unscaled_model(self.hf_dir)
        return own | {name: getattr(self, name) for name in _FACTS if getattr(self, name) is not None}
