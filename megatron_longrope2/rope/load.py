"""Reading factors from wherever a user has them: a file, a published set, a Hugging Face model folder."""

import math
from importlib.resources import files
from pathlib import Path

from megatron_longrope2.errors import InputError
from megatron_longrope2.files import read_json
from megatron_longrope2.rope.factors import RopeFactors
from megatron_longrope2.rope.hf import factors_from_hf, read_hf_config

_PUBLISHED = files(__package__) / "published"


def published_names() -> list[str]:
    """Names of the published factor sets that come with the package; each file states its source."""
    return sorted(
        item.name.removesuffix(".json") for item in _PUBLISHED.iterdir() if item.name.endswith(".json")
    )


def load_factors(
    place: str | Path,
    *,
    rope_base: float | None = None,
    rotary_dim: int | None = None,
    original_length: int | None = None,
    target_length: int | None = None,
    critical_dim: int | None = None,
) -> RopeFactors:
    """Read factors from a JSON factor file, a CSV (one number a line), a published set's name, or the RoPE
    of a Hugging Face model that is rescaled already (its folder or `config.json`).

    What is known of the model may be given: a CSV holds numbers only and needs `rope_base`,
    `original_length` and `target_length`; what another file says must agree with them.

    Args:
        place: path of the file or folder, or one of `published_names()`.
        rope_base, rotary_dim: the model's RoPE base and rotated dimensions of a head.
        original_length, target_length: tokens.
        critical_dim: for a CSV, the dimension from which the factors reach the scale.

    Raises:
        InputError: nothing is there, it is not valid, or it contradicts what was given.
    """
    given = {
        "rope_base": rope_base,
        "rotary_dim": rotary_dim,
        "original_length": original_length,
        "target_length": target_length,
    }
    path = Path(place)
    if path.suffix == ".csv":
        factors = _from_csv(path, given, critical_dim)
    elif path.name == "config.json" or (path / "config.json").exists():
        factors = _from_hf_folder(path.parent if path.name == "config.json" else path)
    elif path.exists() or path.suffix:
        factors = RopeFactors.from_dict(read_json(path), source=str(path))
    elif str(place) in published_names():
        published = _PUBLISHED / f"{place}.json"
        factors = RopeFactors.from_dict(read_json(Path(str(published))), source=str(place))
    else:
        raise InputError(
            f"{place}: no such factor file, nor a published set; published are {', '.join(published_names())}"
        )
    for name, value in given.items():
        if value is not None and not math.isclose(getattr(factors, name), value, rel_tol=1e-9):
            raise InputError(
                f"{place}: {name}: the factors are for {getattr(factors, name):g}, not {value:g}; "
                "use factors made for this model"
            )
    return factors


def _from_hf_folder(folder: Path) -> RopeFactors:
    source = str(folder / "config.json")
    factors = factors_from_hf(read_hf_config(folder), source)
    if factors is None:
        raise InputError(
            f"{source}: rope_type: default, not rescaled: there are no factors to read; make some"
        )
    return factors


def _from_csv(path: Path, given: dict[str, float | None], critical_dim: int | None) -> RopeFactors:
    for name in ("rope_base", "original_length", "target_length"):
        if given[name] is None:
            raise InputError(f"{path}: {name}: a CSV does not hold it; give it beside the file")
    try:
        lines = path.read_text(encoding="utf-8").strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            values.append(float(line))
        except ValueError as error:
            raise InputError(f"{path}: line {number}: {line[:40]!r} is not one number") from error
    model = {"rotary_dim": 2 * len(values)} | {
        name: value for name, value in given.items() if value is not None
    }
    return RopeFactors(
        method="custom",
        critical_dim=critical_dim,
        long_factor=tuple(values),
        provenance={"file": path.name},
        source=str(path),
        **model,  # type: ignore[arg-type]
    )
