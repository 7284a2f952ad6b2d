"""Scores of tokens: the samples, and one scorer each for Megatron checkpoints and for Hugging Face models."""
