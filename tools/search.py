"""Search the rescaling factors of a model (LongRoPE2, section 3.2), under plain Python or torchrun."""

from megatron_longrope2 import device
from megatron_longrope2.search.settings import SearchSettings
from megatron_longrope2.tables import text_table


def main(*, settings: SearchSettings, dry_run: bool = False) -> None:
    """Search the rescaling factors of a model; under plain Python or torchrun.

    Args:
        dry_run: Time the model, print what the search costs at most, and write nothing.
    """
    device.install()
    import torch.distributed as dist

    from megatron_longrope2.search.run import expected_cost, run_search

    if dry_run:
        cost = [(name, f"{value:.4g}") for name, value in expected_cost(settings).items()]
        lines = [text_table(("at most", "(pruning saves evaluations)"), cost)]
    else:
        run_search(settings)
        lines = [f"{settings.output}:", (settings.output / "search.md").read_text(encoding="utf-8")]
    if dist.get_rank() == 0:
        print(*lines, sep="\n")
    dist.destroy_process_group()
