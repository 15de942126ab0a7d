"""Work done ahead in threads, where it leaves Python's lock: decoding, resizing, reading, checksums."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Protocol, TypeVar

from vilamp_lite.common.progress import is_measured

Item = TypeVar("Item")
Made = TypeVar("Made", covariant=True)


class ClosableIterator(Iterator[Made], Protocol[Made]):
    """What `made_ahead` takes: a `FrameStream`, or any generator."""

    def close(self) -> None:
        """End it early."""
        ...


def made_ahead(items: ClosableIterator[Made]) -> Iterator[Made]:
    """Yield items while a thread makes the next one: a stream's batches, or what is made of them.

    Where the caller's work on an item takes longer than making one, making then takes no time of its own. Memory: two
    items. While the stages of the work are measured, nothing is made ahead.

    Args:
        items: what `stream_frames` returns, or a generator over it; closed at the end.
    """
    with closing(items), ThreadPoolExecutor(1, "ahead") as maker:
        if is_measured():
            yield from items
            return
        following = maker.submit(next, items, None)
        while (item := following.result()) is not None:
            following = maker.submit(next, items, None)
            yield item


def mapped_ahead(function: Callable[[Item], Made], items: Iterable[Item], threads: int) -> Iterator[Made]:
    """Yield function(item) of each item in order, while threads make the following ones, one each.

    What the function raises is raised here, in its turn. Memory: `threads` results, and the one in use.
    """
    left = iter(items)
    with ThreadPoolExecutor(threads, "ahead") as pool:
        coming = deque(pool.submit(function, item) for item in islice(left, threads))
        try:
            while coming:
                made = coming.popleft().result()
                coming.extend(pool.submit(function, item) for item in islice(left, 1))
                yield made
        finally:
            for future in coming:
                future.cancel()
