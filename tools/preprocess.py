"""Turn text into tokens, sorted by document length."""

from megatron_longrope2.data.settings import PreprocessSettings
from megatron_longrope2.errors import InputError


def main(*, settings: PreprocessSettings, mix: str | None = None, dry_run: bool = False) -> None:
    """Turn text into tokens, sorted by document length.

    Writes `short` and `long` .bin and .idx files and a manifest.json into the output folder; with --mix, a
    folder of them for every source, and the mix.json that `longrope2 train --mix` reads.

    Args:
        mix: YAML file of sources, length buckets and token budgets, or `paper` for the mix of the LongRoPE2
            paper.
        dry_run: Print the token table of the mix, with what a sample of the text says that there will be, and
            stop. Needs --mix. Exit status 2 means that the mix cannot be filled.
    """
    if dry_run and not mix:
        raise InputError("--dry-run: prints the token table of a mix; give --mix")
    # Megatron takes seconds to import; wrong options need not wait for it.
    from megatron_longrope2.data.mix import load_mix, preprocess_mix
    from megatron_longrope2.data.preprocess import preprocess

    if mix:
        preprocess_mix(load_mix(mix), settings, dry_run=dry_run)
        return
    manifest = preprocess(settings)
    for name, size in manifest.buckets.items():
        print(f"{name}: {size.documents:,} documents, {size.tokens:,} tokens")
    if manifest.documents_too_long:
        print(f"dropped as longer than the last bucket: {manifest.documents_too_long:,} documents")
