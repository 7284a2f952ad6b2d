"""The tiny model that the command line is tried on."""

from tests.evaluation.conftest import tiny_llama

__all__ = ["tiny_llama"]
