"""Make the next item while the last one is being written."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor


def ahead[T](items: Iterable[T]) -> Iterator[T]:
    """The same items, the next one always under way in a thread (so that two are in memory at a time)."""
    source = iter(items)
    done = object()
    with ThreadPoolExecutor(max_workers=1) as pool:
        following = pool.submit(next, source, done)
        while (item := following.result()) is not done:
            following = pool.submit(next, source, done)
            yield item  # type: ignore[misc]
