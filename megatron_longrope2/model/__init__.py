"""What Megatron is given: rotary embedding, core attention, layer specs, configuration, builder."""
