"""A checkpoint opens where it is, not where it was written, with the arguments that training takes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_longrope2.checkpoint.conversion import import_hf
from megatron_longrope2.checkpoint.settings import ImportSettings, VerifySettings
from megatron_longrope2.checkpoint.verify import compare_logits
from megatron_longrope2.errors import InputError
from megatron_longrope2.evaluation.settings import CheckpointSettings
from megatron_longrope2.evaluation.subject import open_subject
from megatron_longrope2.model.loading import load_model, unload_model
from megatron_longrope2.model.settings import LayoutSettings
from megatron_longrope2.rope import AttentionFactor
from megatron_longrope2.search.run import load as load_for_search
from megatron_longrope2.search.settings import Algorithm, SearchSettings
from tests.big_machine import LAYOUT, LAYOUT_WORDS, big_machine, checkpoint, config_of, forget, training
from tests.checkpoint.test_round_trip import longrope2_factors
from tests.checkpoint.tiny_models import VOCAB, save_model

__all__ = ["big_machine", "checkpoint"]


def test_tokenizer_of_a_moved_checkpoint(tmp_path: Path, megatron: None) -> None:  # noqa: ARG001
    here, there = tmp_path / "here", tmp_path / "there"
    import_hf(ImportSettings(save_model(tmp_path / "hf"), here))
    here.rename(there)
    model = load_model(there)
    assert model.args.tokenizer_model == str(there / "tokenizer")
    assert len(model.tokenizer()) == VOCAB
    unload_model()
    (there / "tokenizer").rename(tmp_path / "gone")
    with pytest.raises(InputError) as refusal:
        load_model(there)
    assert str(refusal.value) == (
        f"{there}: tokenizer_model: {here / 'tokenizer'} is gone; "
        f"copy the tokenizer's files to {there / 'tokenizer'}"
    )


def searching(checkpoint: Path, algorithm: Algorithm = "evolution", **layout: Any) -> None:
    load_for_search(
        SearchSettings(
            load=checkpoint,
            books=checkpoint,
            target_length=256,
            output=checkpoint,
            algorithm=algorithm,
            layout=LayoutSettings(**layout),
        )
    )


VERBS: dict[str, Callable[..., object]] = {
    "evaluate": lambda folder, **layout: open_subject(
        CheckpointSettings(load=folder), LayoutSettings(**layout)
    ),
    "search": searching,
    "verify": lambda folder, **layout: compare_logits(
        folder, folder, VerifySettings(layout=LayoutSettings(**layout))
    ),
}


@pytest.mark.usefixtures("big_machine")
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "words",
    [
        "",
        "--transformer-impl local",
        "--no-rope-fusion --attention-backend flash --sequence-parallel --cp-comm-type a2a "
        "--recompute-granularity selective --recompute-modules core_attn mlp",
    ],
)
def test_every_verb_builds_the_model_that_training_builds(
    verb: str, words: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config_of(lambda: training(checkpoint, [*LAYOUT_WORDS, *words.split()], monkeypatch))
    found = config_of(lambda: VERBS[verb](checkpoint, **LAYOUT, megatron=tuple(words.split())))
    assert found.rope_factors == wanted.rope_factors
    assert wanted.transformer.apply_rope_fusion == ("local" not in words and "no-rope" not in words)
    differing = {
        name
        for name, value in vars(wanted.transformer).items()
        if vars(found.transformer)[name] != value and not callable(value)  # how weights are drawn
    }
    assert differing == {"calculate_per_token_loss"}  # the trainer's own


@pytest.mark.usefixtures("big_machine")
@pytest.mark.parametrize("verb", VERBS)
def test_no_factor_file_is_refused_or_unfused(verb: str, checkpoint: Path, tmp_path: Path) -> None:
    factors = replace(longrope2_factors(tmp_path), attention_factor=AttentionFactor(1.0, 1.1435))
    factors.save(tmp_path / "factors.json")
    import_hf(
        ImportSettings(checkpoint.parent / "hf", tmp_path / "there", rope_factors=tmp_path / "factors.json")
    )
    found = config_of(lambda: VERBS[verb](tmp_path / "there", **LAYOUT))
    assert found.rope_factors.attention_factor.long == 1.1435
    assert found.transformer.apply_rope_fusion


@pytest.mark.usefixtures("big_machine")
@pytest.mark.parametrize("verb", VERBS)
def test_transformer_engines_attention_is_for_half_precision(verb: str, checkpoint: Path) -> None:
    """In float32 it forms all scores, tokens x tokens; who wants it must say so."""
    assert config_of(lambda: VERBS[verb](checkpoint)).transformer.transformer_impl == "local"
    for words in (("--transformer-impl", "transformer_engine"), ("--fp16",)):
        transformer = config_of(lambda words=words: VERBS[verb](checkpoint, megatron=words)).transformer
        assert transformer.transformer_impl == "transformer_engine"


@pytest.mark.usefixtures("big_machine")
def test_learned_factors_need_the_unfused_rotation(checkpoint: Path) -> None:
    found = config_of(lambda: searching(checkpoint, algorithm="gradient", **LAYOUT)).transformer
    assert found.transformer_impl == "transformer_engine"
    assert not found.apply_rope_fusion


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lenghts 4096", "Megatron's arguments: unrecognized arguments: --lenghts 4096; `longrope2 train"),
        ("--attention-backend fast", "Megatron's arguments: 'fast' is none of the choices"),
        ("--recompute-granularity full", "Megatron's arguments: "),
        (
            "--load elsewhere",
            "--megatron: --load is set by the command; give it before --megatron, if at all",
        ),
        ("--tensor-model-parallel-size=2", "--megatron: --tensor-model-parallel-size is set by the command"),
    ],
)
def test_bad_arguments_are_one_line(words: str, message: str, checkpoint: Path) -> None:
    with pytest.raises(InputError) as refusal:
        load_model(checkpoint, LayoutSettings(megatron=tuple(words.split())))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    forget()
