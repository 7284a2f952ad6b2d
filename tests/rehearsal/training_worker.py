"""A training step on the CPU, measured as a rehearsal is: on ranks that compute, or rehearsed.

The arguments are a file for the result and the options of the layout, or in one word of JSON those of all
layouts, which are rehearsed. Both take the CPU's way through the code.
"""

import json
import sys
from pathlib import Path

from megatron_longrope2 import device

device.install()

import torch
import torch.nn.functional as F
from megatron.core.optimizer import clip_grads
from torch import Tensor

from megatron_longrope2.model import attention
from megatron_longrope2.rehearsal import kernels
from megatron_longrope2.rehearsal.meter import Meter
from megatron_longrope2.rehearsal.model import shape_arguments
from megatron_longrope2.rehearsal.rehearse import rehearse
from megatron_longrope2.rehearsal.settings import Job, MachineSettings, Stage
from megatron_longrope2.rehearsal.stages import train
from tests.processes import ROOT

MODEL = str(ROOT / "examples/tiny_cpu/base")
TARGET = 512


def without_fusion(**_: object) -> None:
    """Only what stands in for kernels that a fake device has not, whatever memory they take."""
    F.scaled_dot_product_attention = attention_on_a_cpu
    clip_grads.l2_norm_impl = kernels._norm_of_all


def attention_on_a_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What torch calls on a CPU, to which a mask is numbers."""
    assert not enable_gqa
    if attn_mask is not None:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return attend(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def main() -> None:
    output, *words = sys.argv[1:]
    if words[0].startswith("["):
        layouts = json.loads(words[0])
        attention.has_varlen_kernel = lambda _: False
        attention._repeats_heads = lambda *_, **__: False
        kernels.install = without_fusion
        stages = [Stage(("train", *layout), 2) for layout in layouts]
        found = rehearse(Job(tuple(stages), MODEL, TARGET), MachineSettings())
        result = [[one.stage, one.rank, one.peak, one.categories] for one in found]
        Path(output).write_text(json.dumps(result))
        return
    with Meter("cpu") as meter:
        train(words, TARGET, shape_arguments(MODEL, None), meter)
    import torch.distributed as dist

    Path(f"{output}.{dist.get_rank()}").write_text(json.dumps(meter.peak))


if __name__ == "__main__":
    main()
