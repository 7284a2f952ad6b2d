"""Self-attention rotates packs: at one cost, with the fused kernel too, and with every attention factor.

Transformer Engine's kernel is stood in for by the formula that it computes.
"""

from argparse import Namespace
from dataclasses import replace
from typing import Any

import pytest
import torch
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.transformer.attention import SelfAttention
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import models
from megatron_longrope2.model.arguments import factors_of
from megatron_longrope2.model.dims import ModelDims
from megatron_longrope2.rope import AttentionFactor, RopeFactors

SHAPE = ModelDims("tiny", 2, 64, 128, 4, 2, 16, 128, 64)
PACKS = [[300], [100] * 3, [65, 3, 64, 100, 68]]
FACTORS = {"none": AttentionFactor(), "one": AttentionFactor(1.2, 1.2), "two": AttentionFactor(1.0, 1.3)}


def rotated(states: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding in float64 of states [tokens, batch, heads, dim], as Transformer Engine defines it."""
    dims = angles.shape[-1]
    turned, passed = states[..., :dims].double(), states[..., dims:]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * angles.double().cos() + torch.cat([-second, first], -1) * angles.double().sin()
    return torch.cat([turned.to(states.dtype), passed], -1)


@pytest.fixture(scope="module")
def args(megatron: None) -> Namespace:  # noqa: ARG001
    return models.start(SHAPE, 512, bf16=False)


@pytest.fixture(params=["torch", "fused"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    if request.param == "torch":
        return {}
    calls = lambda states, angles, interleaved: rotated(states, angles)  # noqa: E731, ARG005
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb", calls)
    monkeypatch.setattr(rope_utils, "fused_apply_rotary_pos_emb_thd", None)  # it takes one window's angles
    return {"apply_rope_fusion": True}


def model_of(args: Namespace, **changes: Any) -> Any:
    model = models.our_model(Namespace(**{**vars(args), **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)  # as made, attention hardly matters
    return model


def gradients(model: Any, lengths: list[int]) -> dict[str, Tensor]:
    """The loss, and the gradients, of one pack."""
    model.zero_grad(set_to_none=True)
    loss = models.mean_loss(model, lengths, SHAPE.vocab_size)()
    loss.backward()
    return {"loss": loss.detach()} | {name: value.grad for name, value in model.named_parameters()}


@pytest.mark.parametrize("lengths", PACKS, ids=str)
@pytest.mark.parametrize("attention_factor", FACTORS.values(), ids=FACTORS)
def test_equals_transformers(
    args: Namespace,
    implementation: dict[str, Any],
    attention_factor: AttentionFactor,
    lengths: list[int],
) -> None:
    factors = replace(factors_of(args), attention_factor=attention_factor)
    model = model_of(args, longrope2_factors=factors.to_dict(), **implementation)
    found = gradients(model, lengths)
    theirs = models.hf_model(model, SHAPE, factors)
    loss = torch.zeros(())
    for tokens in models.tokens_of(lengths, SHAPE.vocab_size).split(lengths):
        logits = theirs(tokens[None], use_cache=False).logits[0]
        loss = loss + torch.nn.functional.cross_entropy(logits, tokens, reduction="sum") / sum(lengths)
    loss.backward()
    torch.testing.assert_close(found.pop("loss"), loss.detach(), rtol=1e-6, atol=1e-6)
    converted = models.hf_weights(model, SHAPE, found)
    for name, parameter in theirs.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(converted[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("lengths", PACKS[:2], ids=str)
def test_partial_rotation_equals_upstreams_with_scaled_cosine_and_sine(
    args: Namespace, implementation: dict[str, Any], lengths: list[int]
) -> None:
    """Only the rotated dimensions of a query may be scaled."""
    partial = RopeFactors.from_dict(
        factors_of(args).to_dict()
        | {"rotary_dim": 8, "long_factor": [1, 2, 3, 4], "short_factor": [1] * 4}
        | {"attention_factor": {"short": 1.2, "long": 1.2}},
        source="test",
    )
    changes = {"rotary_percent": 0.5, "longrope2_factors": partial.to_dict()}
    model, upstreams = model_of(args, **changes, **implementation), model_of(args, **changes)
    upstreams.load_state_dict(model.state_dict())
    for layer in upstreams.decoder.layers:
        layer.self_attention.__class__ = SelfAttention
        layer.self_attention._yarn_concentration_factor = 1.2
    ours = gradients(model, lengths)
    for name, value in gradients(upstreams, lengths).items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6, msg=name)


class Operations(TorchDispatchMode):
    """Counts the operations of a layer, but for those of its core attention."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.count, self._counts = 0, False
        for module, counts in ((layer, True), (layer.self_attention.core_attention, False)):
            module.register_forward_pre_hook(lambda *_, counts=counts: self._set(counts))
            module.register_forward_hook(lambda *_, counts=counts: self._set(not counts))

    def _set(self, counts: bool) -> None:
        self._counts = counts

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += self._counts
        assert not self._counts or function is not torch.ops.aten._local_scalar_dense.default, (
            "a layer reads a number back from the device"
        )
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("attention_factor", FACTORS.values(), ids=FACTORS)
def test_costs_the_same_whatever_the_number_of_documents(
    args: Namespace, implementation: dict[str, Any], attention_factor: AttentionFactor
) -> None:
    factors = replace(factors_of(args), attention_factor=attention_factor)
    model = model_of(args, longrope2_factors=factors.to_dict(), **implementation)
    counts = {}
    for lengths in ([374], [60] * 4 + [26] * 4 + [80], [2] * 187, [200] + [2] * 186):
        forward = models.mean_loss(model, lengths, SHAPE.vocab_size)
        operations = Operations(model.decoder.layers[0])
        with operations, torch.no_grad():
            forward()
        counts[len(lengths), max(lengths)] = operations.count
    assert min(counts.values()) > 10
    assert max(counts.values()) <= 1.1 * min(counts.values()), counts
