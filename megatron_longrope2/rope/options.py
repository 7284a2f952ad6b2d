"""The options of `longrope2 factors` that say what model the factors are for."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cyclopts.types import NonNegativeInt, PositiveFloat, PositiveInt

from megatron_longrope2.errors import InputError
from megatron_longrope2.options import options
from megatron_longrope2.rope.factors import RopeFactors
from megatron_longrope2.rope.hf import read_rope
from megatron_longrope2.rope.load import load_factors
from megatron_longrope2.rope.methods import make_factors


@options("The model")
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
        return load_factors(place, **self._known(from_folder=Path(place).suffix == ".csv"))

    def make(self, method: str, **options: Any) -> RopeFactors:
        """The factors of a closed-form method, with the options of `make_factors`.

        Raises:
            InputError: as `make_factors`; or something is not known of the model.
        """
        known = self._known(from_folder=True)
        for name in ("rope_base", "rotary_dim", "original_length", "target_length"):
            if name not in known:
                raise InputError(
                    f"--{name.replace('_', '-')}: missing; give it, or --hf-dir for the model's own"
                )
        return make_factors(method, **known, **options)

    def _known(self, *, from_folder: bool) -> dict[str, Any]:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        folder = given.pop("hf_dir", None)
        return (unscaled_model(folder) if folder and from_folder else {}) | given


def unscaled_model(folder: Path) -> dict[str, Any]:
    """What the methods need to know of a model folder: `rope_base`, `rotary_dim`, `original_length`.

    Raises:
        InputError: the config is not readable, or the RoPE that the model was trained with is rescaled: the
            methods start from one that is not.
    """
    rope = read_rope(folder)
    if rope.factors is not None and rope.factors.short_factor[-1] != 1:
        raise InputError(
            f"{rope.source}: rope_type: {rope.rope_type} rescales the short window too, and the methods "
            "start from plain RoPE; give base, dimension and length instead of the folder"
        )
    return rope.facts | {"original_length": rope.original_length}
