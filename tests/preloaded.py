"""What the processes of tests find imported already."""

import os

# Threads do not survive a fork.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from megatron_longrope2 import device

device.install()

import cyclopts
import matplotlib.pyplot
import megatron.training
import megatron.training.training
import pyarrow.parquet
import scipy.stats
import torch.distributed.checkpoint
import torch.utils.tensorboard
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = [
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "LlamaForCausalLM",
    "PreTrainedTokenizerFast",
    "cyclopts",
    "matplotlib",
    "megatron",
    "pyarrow",
    "scipy",
    "torch",
    "transformers",
]
