"""What Megatron is given: rotary embedding, torch core attention, layer specs, model configuration and builder."""
