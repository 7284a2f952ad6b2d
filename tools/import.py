"""`longrope2 import`."""

from megatron_longrope2.checkpoint.settings import ImportSettings


def main(*, settings: ImportSettings, dry_run: bool = False) -> None:
    """Convert a Hugging Face model folder to a Megatron checkpoint that loads in any parallel layout.

    Args:
        dry_run: Check everything, print the mapping table and write nothing.
    """
    from megatron_longrope2.checkpoint.conversion import import_hf, mapping_table

    rows = import_hf(settings, dry_run=dry_run)
    where = settings.save_dir
    print(mapping_table(rows) if dry_run else f"{where}: {len(rows)} parameters; load it with --load {where}")
