"""Run an iterator in a background thread, a bounded number of items ahead.

for batch in prefetch(slow_batches(), depth=4): ...
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Generator, Iterator
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class _End(NamedTuple):
    """Last item of the queue: the iterator is exhausted, or raised."""

    error: BaseException | None


def prefetch(items: Iterator[T], depth: int) -> Iterator[T]:
    """Yield what `items` yields, computed in a thread at most `depth` items ahead.

    An exception in the thread is raised here, after the items before it. The thread starts with the first item asked
    for and ends when the returned generator is exhausted, closed or garbage collected.
    """
    ready: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def offer(item: T | _End) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                offer(item)
                if stopped.is_set():
                    return
        except BaseException as raised:
            error = raised
        finally:
            if isinstance(items, Generator):
                items.close()
        offer(_End(error))

    def finish() -> None:
        stopped.set()
        # not joined where the generator is collected by the thread itself
        if thread is not threading.current_thread():
            thread.join()

    thread = threading.Thread(target=work, name="sae-prefetch", daemon=True)
    thread.start()
    # Python ends daemon threads at any point; inside torch that aborts the process
    atexit.register(finish)
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        atexit.unregister(finish)
        finish()
