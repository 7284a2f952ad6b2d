"""Benchmarks run in this process, one after the other."""

from tests.model.conftest import megatron

__all__ = ["megatron"]
