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
        dry_run: Print the token table of the mix and stop. Needs --mix.
    """
    if dry_run and not mix:
        raise InputError("--dry-run: prints the token table of a mix; give --mix")
    # Megatron takes seconds to import; wrong options need not wait for it.
    from megatron_longrope2.data import mix as mixes
    from megatron_longrope2.data.preprocess import preprocess

    if mix:
        sources = mixes.load_mix(mix)
        if not dry_run:
            mixes.preprocess_mix(sources, settings)
        print(mixes.token_table(sources, settings))
        return
    manifest = preprocess(settings)
    for name, size in manifest.buckets.items():
        print(f"{name}: {size.documents:,} documents, {size.tokens:,} tokens")
    if manifest.documents_too_long:
        print(f"dropped as longer than the last bucket: {manifest.documents_too_long:,} documents")
