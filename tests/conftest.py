"""Settings for all tests."""

import pytest
from hypothesis import settings

# Shared machines stall for seconds: time belongs in benchmarks.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# What takes minutes each: a worker that began one last would keep the others waiting.
LONGEST = (
    "test_chain.py",
    "test_tiny_demo.py",
    "test_recipes.py",
    "test_resume.py",
    "test_train_parallel.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the Makefile has pytest-xdist keep the order."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
