"""The CPU stand-ins, each in a process of its own: they change torch for good."""

import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: nothing stands in for it")


def run(script: str) -> str:
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout + finished.stderr


def test_stand_ins() -> None:
    output = run("""
import torch
from megatron_longrope2 import device

device.install()
device.install()  # once is enough, twice does no harm
assert device.distributed_backend() == "gloo" and not device.has_gpu()

assert torch.zeros(2, device="cuda").device.type == "cpu"
assert torch.zeros(2, device=torch.device("cuda", 0)).device.type == "cpu"
assert torch.empty(2, device=torch.cuda.current_device()).device.type == "cpu"
assert torch.ones(2).to("cuda").device.type == "cpu"
assert torch.ones(2).to(device="cuda:0", dtype=torch.float64).dtype == torch.float64
assert torch.tensor([1], pin_memory=True, device="cuda").tolist() == [1]
with torch.device("meta"):
    assert torch.zeros(2).is_meta and torch.nn.Linear(2, 2).weight.is_meta
tensor = torch.ones(2)
assert tensor.cuda(non_blocking=True) is tensor
assert torch.ones(2).type() == "torch.cuda.FloatTensor"
assert torch.ones(2).bfloat16().type() == "torch.cuda.BFloat16Tensor"
assert torch.ones(2).type(torch.float64).dtype == torch.float64
assert isinstance(torch.nn.Linear(2, 2).cuda(), torch.nn.Linear)

state = torch.cuda.get_rng_state()
first = torch.rand(3)
torch.cuda.set_rng_state(state)
assert torch.equal(torch.rand(3), first)

with torch.cuda.stream(torch.cuda.Stream()):
    torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
event = torch.cuda.Event(enable_timing=True)
event.record(); event.synchronize()
assert event.query() and torch.cuda.Event().elapsed_time(event) == 0

@torch.compile(mode="max-autotune")
def double(x):
    return 2 * x
assert double(torch.ones(1)).item() == 2 and torch.compile(double) is double
""")
    assert output.count("no GPU found: Megatron runs on the CPU over gloo") == 1


def test_megatron_starts_without_a_warning_and_does_not_compile_its_helpers_again() -> None:
    output = run("""
from megatron_longrope2 import device
device.install()
import megatron.training.training
from megatron.core.datasets.utils import compile_helpers
compile_helpers()  # upstream runs make in a folder without a Makefile, and exits
""")
    assert "UserWarning" not in output


def test_a_process_without_a_launcher_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_longrope2 import device

    monkeypatch.delenv("RANK", raising=False)
    assert device.rendezvous_store() is not None
    monkeypatch.setenv("RANK", "0")
    assert device.rendezvous_store() is None


def test_rope_does_not_import_torch_or_megatron() -> None:
    run("""
import sys
import megatron_longrope2.rope
assert not {"torch", "megatron", "transformers"} & set(sys.modules)
""")
