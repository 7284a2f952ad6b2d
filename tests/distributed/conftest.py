"""The pools of the training tests."""

from tests.training.conftest import pools

__all__ = ["pools"]
