"""Megatron's official extension points, `GPTModelConfig` and `GPTModelBuilder`, for LongRoPE2."""

from dataclasses import dataclass
from typing import Any, ClassVar

from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training.models.gpt import GPTModelBuilder, GPTModelConfig

from megatron_longrope2.model.layer_specs import longrope2_layer_spec
from megatron_longrope2.model.learned_factors import LearnedFactors
from megatron_longrope2.model.rotary import LongRoPE2RotaryEmbedding
from megatron_longrope2.rope import RopeFactors


@dataclass(kw_only=True)
class LongRoPE2ModelConfig(GPTModelConfig):
    """Upstream's model configuration and the RoPE factors of both windows.

    Attributes:
        learned_factors: what gives the long window's factors in their place, if they are learned.
    """

    builder: ClassVar[str] = "megatron_longrope2.model.builder.LongRoPE2ModelBuilder"
    rope_factors: RopeFactors
    learned_factors: LearnedFactors | None = None
    transformer_layer_spec: Any = None

    def __post_init__(self) -> None:
        """Raises InputError if the factors belong to another model."""
        if self.transformer_layer_spec is None:  # without --spec
            self.transformer_layer_spec = longrope2_layer_spec
        factors = self.rope_factors
        rotary_dim = int(self.transformer.kv_channels * self.rotary_percent)
        factors.check_model("--rope-factors", rope_base=self.rotary_base, rotary_dim=rotary_dim)


class LongRoPE2ModelBuilder(GPTModelBuilder):
    """Builds upstream's GPTModel and gives it the rotary embedding with the switch."""

    _model_config: LongRoPE2ModelConfig

    def build_model(self, pg_collection: ProcessGroupCollection, *args: Any, **kwargs: Any) -> GPTModel:
        """One pipeline stage; the arguments are upstream's."""
        model = super().build_model(pg_collection, *args, **kwargs)
        rotary = LongRoPE2RotaryEmbedding(
            self._model_config.rope_factors,
            rotary_interleaved=model.config.rotary_interleaved,
            cp_group=pg_collection.cp,
        )
        if self._model_config.learned_factors is not None:
            rotary.learn(self._model_config.learned_factors)
        model.rotary_pos_emb = rotary
        for layer in model.decoder.layers:
            layer.self_attention.active = rotary.active
        return model
