"""`longrope2 factors`: rescaling factors without model or GPU."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.types import PositiveFloat

from megatron_longrope2.errors import InputError
from megatron_longrope2.files import write_json
from megatron_longrope2.rope.hf import factors_to_hf, merge_into_hf, read_config, read_rope
from megatron_longrope2.rope.load import published_names
from megatron_longrope2.rope.methods import Method, with_longrope_attention
from megatron_longrope2.rope.options import Model
from megatron_longrope2.rope.tables import comparison_table, factor_table, summary

main = App(name="factors", help="Make, show, check and convert rescaling factors.")
ANY_MODEL = Model()
FACTORS = Parameter(
    help="A factor file (.json), a CSV of long factors (one a line), a Hugging Face model folder whose RoPE "
    f"is rescaled, or the name of a published set: {', '.join(published_names())}. A CSV needs the options "
    "that say what model it is for."
)


@main.command
def make(
    *,
    method: Method,
    output: Path,
    attention_factor: bool = False,
    beta_fast: PositiveFloat | None = None,
    beta_slow: PositiveFloat | None = None,
    no_truncate: bool = False,
    model: Model = ANY_MODEL,
) -> None:
    """Make factors by a closed-form method and write the factor file.

    Args:
        method: How to rescale; none makes factors of 1.
        output: The factor file to write.
        attention_factor: Multiply the long window's cosine and sine by YaRN's temperature, 0.1 ln(scale) + 1.
        beta_fast: YaRN's ramp starts where a dimension has this many periods in the original window (32 if
            not given).
        beta_slow: YaRN's ramp ends where a dimension has this many periods in the original window (1 if not
            given).
        no_truncate: Do not round the ends of YaRN's ramp outwards to whole dimensions.
    """
    ramp = {"beta_fast": beta_fast, "beta_slow": beta_slow, "truncate": False if no_truncate else None}
    given = {name: value for name, value in ramp.items() if value is not None}
    factors = model.make(method, attention_factor=attention_factor, **given)
    factors.save(output)
    print(f"{summary(factors)}\nwrote {output}")


@main.command
def show(
    factors: Annotated[tuple[str, ...], FACTORS],
    /,
    *,
    plot: Path | None = None,
    cosine: int | None = None,
    model: Model = ANY_MODEL,
) -> None:
    """Print one set dimension by dimension (its period, factor, and whether it stays in distribution), or
    several sets side by side.

    Args:
        plot: Also draw the factors by dimension into this image.
        cosine: Let the plot show the cosine of this dimension of the first set instead.
    """
    if cosine is not None and plot is None:
        raise InputError("--cosine: needs --plot, the image to draw it in")
    sets = {place: model.load(place) for place in factors}
    first = sets[factors[0]]
    print(comparison_table(sets) if len(sets) > 1 else f"{summary(first)}\n\n{factor_table(first)}")
    if plot is not None:
        from megatron_longrope2.rope.plots import plot_cosine, plot_factors

        if cosine is None:
            plot_factors(sets, plot)
        else:
            plot_cosine(first, cosine, plot)
        print(f"wrote {plot}")


@main.command
def check(
    factors: Annotated[str, FACTORS], /, *, checkpoint: Path | None = None, model: Model = ANY_MODEL
) -> None:
    """Check that factors are valid, fit a model, and are the ones that it carries.

    Args:
        checkpoint: A Megatron checkpoint to check against.
    """
    held = model.load(factors)
    print(summary(held))
    if model.hf_dir is not None:
        rope = read_rope(model.hf_dir)
        print(held.check_carried(rope.source, rope.factors, **rope.facts))
    if checkpoint is not None:
        from megatron_longrope2.checkpoint.megatron_files import MegatronTensors

        tensors = MegatronTensors(checkpoint)
        print(held.check_carried(str(checkpoint), tensors.factors, **tensors.rope_facts))


@main.command
def convert(
    factors: Annotated[str, FACTORS],
    /,
    *,
    output: Path,
    to: Literal["json", "csv", "hf"] | None = None,
    longrope_attention_factor: bool = False,
    split_attention: bool = False,
    model: Model = ANY_MODEL,
) -> None:
    """Convert factors between factor file, CSV and Hugging Face config.

    Args:
        output: The file to write.
        to: The format to write. The format hf is the config.json of --hf-dir with its RoPE replaced, or the
            RoPE fields alone without that option. If not given, the suffix of the output decides between csv
            and json.
        longrope_attention_factor: Multiply cosine and sine of both windows by sqrt(1 + ln s / ln L), where L
            is the original length and s the target length / L, as the code of LongRoPE2's authors does; the
            paper has no such factor.
        split_attention: In the format hf, allow attention factors that differ between the windows. vLLM reads
            the pair; plain transformers applies the long one to both windows.
    """
    held = model.load(factors)
    if longrope_attention_factor:
        held = with_longrope_attention(held)
    if to != "hf":
        held.save(output, to)
    elif model.hf_dir is None:
        write_json(output, factors_to_hf(held, split_attention=split_attention))
    else:
        config, source = read_config(model.hf_dir), str(model.hf_dir / "config.json")
        write_json(output, merge_into_hf(config, held, source, split_attention=split_attention))
    print(f"wrote {output}")
