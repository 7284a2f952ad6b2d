"""The tiny model that scores are compared on."""

from tests.evaluation.conftest import measured, tiny_llama

__all__ = ["measured", "tiny_llama"]
