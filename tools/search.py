"""Search the rescaling factors of a model (LongRoPE2, section 3.2), under plain Python or torchrun."""

from megatron_longrope2 import device
from megatron_longrope2.search.settings import SearchSettings


def main(*, settings: SearchSettings, dry_run: bool = False) -> None:
    """Search the rescaling factors of a model; under plain Python or torchrun.

    Args:
        dry_run: Time the model, print what the search costs at most, and write nothing.
    """
    device.install()
    import torch.distributed as dist

    from megatron_longrope2.search.run import expected_cost, run_search

    if dry_run:
        cost = expected_cost(settings)
        steps = f"{cost['steps']} steps of {cost['seconds_per_step']:.2f} s and " if cost["steps"] else ""
        lines = [
            f"at most {steps}{cost['candidates']} candidates, {cost['evaluations']} evaluations of "
            f"{settings.target_length} tokens ({cost['tokens']:.3g} tokens)",
            f"{cost['seconds_per_evaluation']:.2f} s an evaluation, {cost['workers']} at once: at most "
            f"{cost['seconds'] / 3600:.2f} h, {cost['gpu_hours']:.1f} device hours; pruning saves part of it",
        ]
    else:
        run_search(settings)
        lines = [f"{settings.output}:", (settings.output / "search.md").read_text(encoding="utf-8")]
    if dist.get_rank() == 0:
        print(*lines, sep="\n")
    dist.destroy_process_group()
