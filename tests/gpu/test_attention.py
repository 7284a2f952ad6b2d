"""The torch core attention on each device, in each precision and kernel, against a float64 softmax."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_longrope2.model.attention import QUERY_BLOCK
from tests.gpu.conftest import ON_GPU
from tests.model.test_attention import make_core, packed, reference

# Relative to the largest value: a few roundings of outputs and of what their gradients are made of.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2}
SHAPES = {"llama": (8, 2, 128), "phi3": (4, 4, 96), "small": (4, 2, 64)}
BOUNDARIES = (0, 7, 7, 150, 406)  # an empty document, and longer ones than a kernel's tile


def leaves(shape: str, tokens: int, keys: int, rows: int | None) -> tuple[Tensor, ...]:
    """Query, key and value in float64 with numbers that bfloat16 holds."""
    heads, groups, dim = SHAPES[shape]
    torch.manual_seed(tokens)
    middle = () if rows is None else (rows,)
    sizes = ((tokens, heads), (keys, groups), (keys, groups))
    return tuple(
        torch.randn(length, *middle, count, dim).bfloat16().double().requires_grad_()
        for length, count in sizes
    )


def assert_as_in_float64(
    inputs: tuple[Tensor, ...], expected: Tensor, attend: Any, where: str, dtype: Any
) -> None:
    """Output and gradients of `attend` at `dtype` on the device are those of `expected`."""
    copies = tuple(x.detach().to(where, dtype).requires_grad_() for x in inputs)
    actual = attend(*copies)
    weights = torch.randn(expected.shape).bfloat16()
    wanted = torch.autograd.grad((expected * weights.double()).sum(), inputs)
    found = torch.autograd.grad(actual, copies, weights.to(where, dtype))
    for one, other in zip((actual, *found), (expected, *wanted), strict=True):
        assert one.dtype == dtype
        difference = (one.detach().double().cpu() - other.detach()).abs().max()
        assert difference <= TOLERANCE[dtype] * other.abs().max()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_packed_documents(where: str, dtype: torch.dtype, shape: str) -> None:
    """On a GPU in half precision: torch's variable-length flash attention."""
    core = make_core(*SHAPES[shape])
    inputs = leaves(shape, BOUNDARIES[-1], BOUNDARIES[-1], None)
    spans = [pair for pair in itertools.pairwise(BOUNDARIES) if pair[0] < pair[1]]
    expected = torch.cat([reference(*(x[start:end] for x in inputs)) for start, end in spans])
    pack = packed(*BOUNDARIES)
    attend = lambda *qkv: core(*qkv, None, packed_seq_params=pack)  # noqa: E731
    assert_as_in_float64(inputs, expected, attend, where, dtype)


@pytest.mark.parametrize("queries", [1, 100, 300])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_rows_and_cached_keys(where: str, dtype: torch.dtype, queries: int) -> None:
    """300 keys: all queries, or the last ones with a KV cache."""
    core = make_core(*SHAPES["llama"])
    inputs = leaves("llama", queries, 300, 2)
    expected = torch.stack([reference(*(x[:, row] for x in inputs)) for row in range(2)], dim=1)
    assert_as_in_float64(inputs, expected, lambda *qkv: core(*qkv, None), where, dtype)


KERNELS = [
    ("cpu", SDPBackend.FLASH_ATTENTION, torch.bfloat16),
    ("cpu", SDPBackend.MATH, torch.float32),
    pytest.param("cuda", SDPBackend.FLASH_ATTENTION, torch.bfloat16, marks=ON_GPU),
    pytest.param("cuda", SDPBackend.CUDNN_ATTENTION, torch.bfloat16, marks=ON_GPU),
    pytest.param("cuda", SDPBackend.EFFICIENT_ATTENTION, torch.float32, marks=ON_GPU),
]


@pytest.mark.parametrize(("where", "kernel", "dtype"), KERNELS)
def test_every_kernel(where: str, kernel: SDPBackend, dtype: torch.dtype) -> None:
    core = make_core(*SHAPES["llama"])
    inputs = leaves("llama", 300, 300, 2)
    expected = torch.stack([reference(*(x[:, row] for x in inputs)) for row in range(2)], dim=1)

    def attend(*qkv: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return core(*qkv, None)

    assert_as_in_float64(inputs, expected, attend, where, dtype)


class LargestStorage(TorchDispatchMode):
    """The most bytes behind any operation's result."""

    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.bytes = max([self.bytes, *(tensor.untyped_storage().nbytes() for tensor in tensors)])
        return result


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("form", ["one document", "short documents", "rows", "cached keys"])
def test_memory_grows_with_the_tokens(where: str, dtype: torch.dtype, form: str) -> None:
    """128K tokens of LLaMA3-8B's attention on a GPU, forward and backward; 2K on a CPU."""
    tokens, shape = (131072, (32, 8, 128)) if where == "cuda" else (2048, (2, 1, 16))
    if where == "cuda" and dtype == torch.float32:
        tokens //= 4  # kernels without tensor cores take minutes at 128K
    core, (heads, groups, dim) = make_core(*shape), shape
    rows = () if form in ("one document", "short documents") else (1,)
    queries = 512 if form == "cached keys" else tokens
    sizes = ((queries, heads), (tokens, groups), (tokens, groups))
    inputs = [
        torch.randn(n, *rows, count, dim, device=where, dtype=dtype, requires_grad=True) for n, count in sizes
    ]
    document = tokens // 16 if form == "short documents" else tokens
    pack = None if rows else packed(*range(0, tokens + 1, document))
    if where == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with LargestStorage() as largest:
        core(*inputs, None, packed_seq_params=pack).sum().backward()
    whole = tokens * heads * dim  # elements of the queries of all tokens
    mask = QUERY_BLOCK * tokens if form == "cached keys" else 0
    assert largest.bytes <= 2 * 4 * max(whole, mask)
    # Output, gradients, and float32 sums of the gradients of repeated keys and values.
    used = torch.cuda.max_memory_allocated() - before
    assert used <= 20 * whole * dtype.itemsize + 4 * mask
