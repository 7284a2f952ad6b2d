"""Write needle samples as training documents."""

from megatron_longrope2.data.settings import NeedleSettings


def main(*, settings: NeedleSettings) -> None:
    """Write needle samples as training documents.

    A sample is book text of an exact length in which a number is hidden, with a question about the number at
    its end. The samples are written as OUTPUT.bin and OUTPUT.idx, for `longrope2 train --pool`.
    """
    # Megatron takes seconds to import; wrong options need not wait for it.
    from megatron_longrope2.data.needle_pool import write_needles

    count, books = write_needles(settings)
    lengths = " / ".join(map(str, settings.lengths))
    print(f"{settings.output}: {count} samples of {lengths} tokens from {books} books")
