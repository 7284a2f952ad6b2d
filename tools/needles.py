"""Write needle samples as training documents."""

from megatron_longrope2.data.settings import NeedleSettings


def main(*, settings: NeedleSettings) -> None:
    """Write needle samples as training documents.

    A sample is book text of an exact length in which a number is hidden, with a question about the number at
    its end. The samples are written as OUTPUT.bin and OUTPUT.idx, for `longrope2 train --pool`.
    """
    # Megatron takes seconds to import; wrong options need not wait for it.
    from tqdm import tqdm

    from megatron_longrope2.data.documents import draw_books
    from megatron_longrope2.data.needles import NeedleSampler
    from megatron_longrope2.data.pools import write_documents
    from megatron_longrope2.data.tokenizer import load_tokenizer
    from megatron_longrope2.data.wording import wording

    tokenizer = load_tokenizer(settings.tokenizer)
    books = draw_books(settings.books, settings.seed, max(settings.lengths))
    sampler = NeedleSampler(
        tokenizer,
        books,
        seed=settings.seed,
        keys=settings.keys,
        lengths=settings.lengths,
        most_books=settings.samples,
        wording=wording(settings.needle_wording),
    )
    samples = sampler.samples(settings.samples, settings.lengths, settings.needle_depths)
    documents = (sample.tokens.numpy() for sample in tqdm(samples, "needles", settings.samples))
    count = write_documents(settings.output, documents, vocab_size=len(tokenizer))
    print(f"{settings.output}: {count} samples of {' / '.join(map(str, settings.lengths))} tokens")
