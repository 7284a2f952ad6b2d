"""The factor object and its file: round trips, equality, precision, every refusal."""

import dataclasses
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_longrope2.errors import InputError
from megatron_longrope2.rope import AttentionFactor, RopeFactors, load_factors, make_factors
from megatron_longrope2.rope.factors import FORMAT

FIELDS: dict[str, Any] = {
    "format": FORMAT,
    "method": "longrope2",
    "rope_base": 10000.0,
    "rotary_dim": 8,
    "original_length": 256,
    "target_length": 2048,
    "critical_dim": 2,
    "long_factor": [1.0, 2.5, 8.0, 9.5],
    "short_factor": [1.0, 1.0, 1.0, 1.0],
    "attention_factor": {"short": 1.0, "long": 1.2},
    "provenance": {"seed": 7},
}


def factors() -> RopeFactors:
    return RopeFactors.from_dict(FIELDS)


def test_dict_round_trip() -> None:
    assert factors().to_dict() == FIELDS


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "factors.json"
    factors().save(path)
    assert json.loads(path.read_text()) == FIELDS
    assert load_factors(path) == factors()
    assert load_factors(path).provenance == {"seed": 7}


def test_optional_fields_have_defaults() -> None:
    names = ("short_factor", "attention_factor", "provenance")
    read = RopeFactors.from_dict({name: value for name, value in FIELDS.items() if name not in names})
    assert read.short_factor == (1.0,) * 4
    assert read.attention_factor == AttentionFactor(1.0, 1.0)
    assert read.provenance == {}


def test_equality_is_of_the_numbers_not_of_their_history() -> None:
    assert factors() == dataclasses.replace(factors(), provenance={"seed": 8})
    assert len({factors(), dataclasses.replace(factors(), provenance={})}) == 1
    assert factors() != dataclasses.replace(factors(), attention_factor=AttentionFactor())


def test_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        factors().rope_base = 1.0  # type: ignore[misc]
    provenance = {"seed": 1}
    held = dataclasses.replace(factors(), provenance=provenance)
    provenance["seed"] = 2
    assert held.provenance == {"seed": 1}


def test_pickles() -> None:
    assert pickle.loads(pickle.dumps(factors())) == factors()


def test_accepts_lists_of_whole_numbers() -> None:
    lists: dict[str, Any] = {"long_factor": [1, 2.5, 8, 9.5], "short_factor": [1, 1, 1, 1]}
    held = dataclasses.replace(factors(), **lists)
    assert held == factors()
    assert all(type(value) is float for value in held.long_factor)


def test_inv_freq() -> None:
    plain = 10000.0 ** -np.array([0, 0.25, 0.5, 0.75])
    assert factors().inv_freq("short") == pytest.approx(plain, rel=1e-15)
    assert factors().inv_freq("long") == pytest.approx(plain / [1, 2.5, 8, 9.5], rel=1e-15)


def test_inv_freq_is_rounded_once() -> None:
    model = make_factors("yarn", rope_base=500000, rotary_dim=128, original_length=8192, target_length=131072)
    exact, single = model.inv_freq("long"), model.inv_freq("long", np.float32)
    assert (exact.dtype, single.dtype) == (np.float64, np.float32)
    assert np.abs(single / exact - 1).max() <= 2.0**-24


@given(st.lists(st.floats(1, 1e6), min_size=4, max_size=4).map(sorted))
def test_json_keeps_every_bit(vector: list[float]) -> None:
    held = dataclasses.replace(factors(), long_factor=tuple(vector))
    assert RopeFactors.from_dict(json.loads(json.dumps(held.to_dict()))).long_factor == tuple(vector)


def test_ood_dims() -> None:
    """L = 256 and 4 dimensions: periods 6, 63, 628, 6283, so d_tcd = 2 and factors 2 and 3 must reach 8."""
    assert factors().theoretical_critical_dim == 2
    assert factors().ood_dims() == []
    assert dataclasses.replace(factors(), long_factor=(1, 2, 7.99, 8)).ood_dims() == [2]


REFUSALS = [
    ("format", "longrope2-factors/9", "format: not a factor file"),
    ("method", "", "method: String should have at least 1 character"),
    ("rope_base", "10000", "rope_base: Input should be a valid number, not '10000'"),
    ("rope_base", 0.5, "rope_base: Input should be greater than 1, not 0.5"),
    ("rope_base", math.nan, "rope_base: Input should be a finite number, not nan"),
    ("rotary_dim", 8.0, "rotary_dim: Input should be a valid integer, not 8.0"),
    ("rotary_dim", 7, "rotary_dim: Input should be a multiple of 2, not 7"),
    ("rotary_dim", 16, "long_factor: 4 numbers, but half the rotary dimension is 8"),
    ("original_length", 0, "original_length: Input should be greater than or equal to 1, not 0"),
    ("original_length", True, "original_length: Input should be a valid integer, not True"),
    ("target_length", 256, "target_length: 256 is not larger than original_length 256"),
    ("critical_dim", 5, r"critical_dim: 5 is outside \[0, 4\]"),
    ("critical_dim", "x", "critical_dim: Input should be a valid integer"),
    ("long_factor", [1.0, 2.0, 8.0], "long_factor: 3 numbers, but half the rotary dimension is 4"),
    ("long_factor", [1.0, math.nan, 8.0, 9.0], "long_factor.1: Input should be a finite number"),
    ("long_factor", [1.0, 2.0, 8.0, math.inf], "long_factor.3: Input should be a finite number"),
    (
        "long_factor",
        [0.5, 2.0, 8.0, 9.0],
        "long_factor.0: Input should be greater than or equal to 1, not 0.5",
    ),
    ("long_factor", [1.0, 3.0, 2.0, 9.0], r"long_factor: entry 2 \(2\) is below entry 1 \(3\)"),
    ("long_factor", [1.0, "2", 8.0, 9.0], "long_factor.1: Input should be a valid number, not '2'"),
    ("long_factor", 8.0, "long_factor: Input should be a valid tuple"),
    ("short_factor", [1.0, 1.0], "short_factor: 2 numbers"),
    ("short_factor", [1.0, 1.0, 1.0, 0.9], "short_factor.3: Input should be greater than or equal to 1"),
    ("short_factor", 1.0, "short_factor: Input should be a valid tuple"),
    ("attention_factor", 1.2, "attention_factor: Input should be a dictionary"),
    ("attention_factor", {"middle": 1.2}, "attention_factor.middle: Unexpected keyword argument"),
    ("attention_factor", {"long": 0}, "attention_factor.long: Input should be greater than 0, not 0"),
    ("attention_factor", {"short": math.inf}, "attention_factor.short: Input should be a finite number"),
    ("attention_factor", {"short": None}, "attention_factor.short: Input should be a valid number, not None"),
    ("provenance", "me", "provenance: Input should be a valid dictionary"),
    ("critical_dimension", 3, "critical_dimension: Unexpected keyword argument$"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSALS)
def test_refusals_name_file_and_field(tmp_path: Path, name: str, value: Any, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(FIELDS | {name: value}))
    with pytest.raises(InputError, match=f"^{path}: {message}"):
        load_factors(path)


@pytest.mark.parametrize("name", ["method", "rope_base", "rotary_dim", "critical_dim", "long_factor"])
def test_refuses_a_missing_field(name: str) -> None:
    with pytest.raises(InputError, match=f"mine: {name}: Field required"):
        RopeFactors.from_dict({key: value for key, value in FIELDS.items() if key != name}, source="mine")


@pytest.mark.parametrize("value", [[], "text", None, {}])
def test_refuses_what_is_no_factor_file(value: Any) -> None:
    with pytest.raises(InputError, match="mine: format: not a factor file"):
        RopeFactors.from_dict(value, source="mine")


def test_check_model() -> None:
    factors().check_model(rope_base=10000, rotary_dim=8, source="model")
    with pytest.raises(InputError, match="model: rope_base: the factors are for 10000, the model has 500000"):
        factors().check_model(rope_base=500000, rotary_dim=8, source="model")
    with pytest.raises(InputError, match="model: rotary_dim: the factors are for 8, the model has 64"):
        factors().check_model(rope_base=10000, rotary_dim=64, source="model")


def test_differences_are_of_what_rotates() -> None:
    renamed = dataclasses.replace(factors(), method="other", critical_dim=None)
    assert factors().differences(renamed) == []
    rounded = dataclasses.replace(
        factors(), long_factor=tuple(np.float32([1.0, 2.5000001, 8.0, 9.5]).tolist())
    )
    assert factors().differences(rounded) == []
    changed = dataclasses.replace(
        factors(), target_length=4096, long_factor=(1, 2.5, 9, 9.5), attention_factor=AttentionFactor()
    )
    assert factors().differences(changed) == [
        "target_length: 2048 against 4096",
        "attention_factor.long: 1.2 against 1",
        "long_factor: dimension 2 is 8 against 9",
    ]
    smaller = dataclasses.replace(factors(), rotary_dim=4, long_factor=(1.0, 8.0), short_factor=())
    assert "rotary_dim: 8 against 4" in factors().differences(smaller)


def test_factors_that_a_model_carries() -> None:
    model = {"rope_base": 10000, "rotary_dim": 8}
    assert factors().check_carried("m", None, **model) == "m: fits; carries no factors yet"
    assert factors().check_carried("m", factors(), **model) == "m: fits; carries these factors"
    other = dataclasses.replace(factors(), long_factor=(1, 2.5, 9, 9.5))
    with pytest.raises(InputError, match=r"m: long_factor: dimension 2 is 8 against 9: the factors against"):
        factors().check_carried("m", other, **model)
    with pytest.raises(InputError, match="m: rotary_dim: the factors are for 8, the model has 32"):
        factors().check_carried("m", None, rotary_dim=32)


@pytest.mark.parametrize(("name", "form"), [("f.csv", None), ("f.txt", "csv")])
def test_csv_is_the_long_factors_alone(tmp_path: Path, name: str, form: Any) -> None:
    factors().save(tmp_path / name, form)
    assert (tmp_path / name).read_text() == "1.0\n2.5\n8.0\n9.5\n"
