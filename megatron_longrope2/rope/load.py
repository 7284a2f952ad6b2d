"""Reading factors from wherever a user has them: a file, a published set, a Hugging Face model folder."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from megatron_longrope2.errors import InputError, naming
from megatron_longrope2.files import read_json, read_text
from megatron_longrope2.rope.factors import RopeFactors
from megatron_longrope2.rope.hf import read_rope

_PUBLISHED = Path(__file__).parent / "published"


def published_names() -> list[str]:
    """Names of the published factor sets that come with the package; each file states its source."""
    return sorted(path.stem for path in _PUBLISHED.glob("*.json"))


def load_factors(place: str | Path, *, critical_dim: int | None = None, **model: float | None) -> RopeFactors:
    """Read factors from a JSON factor file, a CSV (one number a line), a published set's name, or the RoPE
    of a Hugging Face model that is rescaled already (its folder or `config.json`).

    Args:
        place: path of the file or folder, or one of `published_names()`.
        critical_dim: for a CSV, the dimension from which the factors reach the scale.
        model: what is known of the model, None where it is not: `rope_base`, `rotary_dim`, `original_length`
            and `target_length`. What a file says must agree with it; a CSV holds numbers only and needs all
            but `rotary_dim`.

    Raises:
        InputError: nothing is there, it is not valid, or it contradicts what is known of the model.
    """
    known = {name: value for name, value in model.items() if value is not None}
    path = Path(place)
    if path.suffix == ".csv":
        factors = _from_csv(path, known, critical_dim)
    elif path.name == "config.json" or (path / "config.json").exists():
        rope = read_rope(path.parent if path.name == "config.json" else path)
        if rope.factors is None:
            raise InputError(f"{rope.source}: rope_type: default, not rescaled; make factors first")
        factors = rope.factors
    elif path.exists() or path.suffix:
        factors = RopeFactors.from_dict(read_json(path), source=str(path))
    elif str(place) in published_names():
        factors = RopeFactors.from_dict(read_json(_PUBLISHED / f"{place}.json"), source=str(place))
    else:
        raise InputError(
            f"{place}: no such factor file, nor a published set; published are {', '.join(published_names())}"
        )
    factors.check_model(str(place), **known)
    return factors


def _from_csv(path: Path, known: dict[str, Any], critical_dim: int | None) -> RopeFactors:
    for name in ("rope_base", "original_length", "target_length"):
        if name not in known:
            raise InputError(f"{path}: {name}: a CSV does not hold it; give it beside the file")
    with naming(path):
        values = TypeAdapter(tuple[float, ...]).validate_python(read_text(path).strip().splitlines())
        return RopeFactors(
            method="custom",
            critical_dim=critical_dim,
            long_factor=values,
            provenance={"file": path.name},
            **({"rotary_dim": 2 * len(values)} | known),
        )
