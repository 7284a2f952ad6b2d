import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_longrope2.model.norm import RMSNorm


def test_is_rms_norm() -> None:
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=1)
    norm = RMSNorm(config=config, hidden_size=8, eps=1e-3)
    norm.weight.data = torch.arange(8.0)
    x = torch.randn(5, 8)
    expected = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-3).sqrt() * torch.arange(8.0)
    torch.testing.assert_close(norm(x).double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("parallel", [True, False])
def test_carries_the_sequence_parallel_mark(parallel: bool) -> None:
    config = TransformerConfig(
        num_layers=1,
        hidden_size=8,
        num_attention_heads=2,
        tensor_model_parallel_size=2,
        sequence_parallel=parallel,
    )
    assert RMSNorm(config=config, hidden_size=8).weight.sequence_parallel is parallel
