"""`longrope2 export`."""

from megatron_longrope2.checkpoint.settings import ExportSettings


def main(*, settings: ExportSettings, dry_run: bool = False) -> None:
    """Convert a Megatron checkpoint of any parallel layout to a Hugging Face model folder.

    Args:
        dry_run: Check everything, print the mapping table and write nothing.
    """
    from megatron_longrope2.checkpoint.conversion import export_hf, mapping_table

    rows = export_hf(settings, dry_run=dry_run)
    print(mapping_table(rows) if dry_run else f"{settings.save_dir}: a Hugging Face model folder")
