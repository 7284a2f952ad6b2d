"""Which parallel layouts of a training run fit into memory, and how long each takes. Needs no Megatron."""
