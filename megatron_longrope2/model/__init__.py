"""What Megatron is given: rotary embedding, core attention, layer specs, model configuration, builder."""
