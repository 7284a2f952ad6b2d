"""LongRoPE2 (arXiv 2502.20082) on Megatron-Core: rescaled RoPE, its factor search, mixed-window training."""

__version__ = "0.1.0"
