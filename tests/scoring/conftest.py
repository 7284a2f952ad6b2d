"""The tiny model that scores are compared on."""

from tests.evaluation.conftest import measured, tiny_llama
from tests.search.conftest import tiny_root

__all__ = ["measured", "tiny_llama", "tiny_root"]
