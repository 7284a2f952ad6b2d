"""What the processes of tests find imported already: the package, and what it and the tests import late."""

import os

# Threads do not survive a fork.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from megatron_longrope2 import device

device.install()

import importlib
import pkgutil

import matplotlib.pyplot
import megatron.training.training
import scipy.stats
import torch.distributed.checkpoint
import torch.utils.tensorboard
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

import megatron_longrope2

__all__ = [
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "LlamaForCausalLM",
    "PreTrainedTokenizerFast",
    "matplotlib",
    "megatron",
    "scipy",
    "torch",
]

for module in pkgutil.walk_packages(megatron_longrope2.__path__, "megatron_longrope2."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
