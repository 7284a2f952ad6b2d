"""Scores of tokens: one scorer each for Megatron checkpoints and for Hugging Face models."""
