"""Mixed context window training on Megatron's own `pretrain` loop."""
