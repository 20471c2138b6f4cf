"""A thread that hands on what it makes, through a bounded queue that either side can end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Generic, TypeVar

T = TypeVar("T")


def ahead(items: Generator[T, None, None], depth: int, name: str) -> Generator[T, None, None]:
    """The items of a generator that runs on a thread of its own, up to ``depth`` ahead."""
    channel = Channel[T](depth)
    thread = threading.Thread(target=_feed, args=(items, channel), name=name, daemon=True)
    thread.start()
    try:
        yield from channel
    finally:
        channel.abandon()
        # Ends with the item in progress. Ctrl-C gets out of a source that never delivers.
        thread.join()


def _feed(items: Generator[T, None, None], channel: Channel[T]) -> None:
    try:
        with closing(items):
            while channel.has_room():
                try:
                    channel.put(next(items))
                except StopIteration:
                    break
    except BaseException as error:  # handed to the caller's thread, whatever it is
        channel.end(error)
    else:
        channel.end()


class Channel(Generic[T]):
    """Bounded queue from one thread to another that either of them can end."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = self._abandoned = False
        self._error: BaseException | None = None

    def has_room(self) -> bool:
        """Producer: wait until there is room; False once the consumer has gone."""
        with self._changed:
            while len(self._items) >= self._depth and not self._abandoned:
                self._changed.wait()
            return not self._abandoned

    def put(self, item: T) -> bool:
        """Producer: hand on an item, waiting for room; False once the consumer has gone."""
        with self._changed:
            if self.has_room():
                self._items.append(item)
                self._changed.notify_all()
            return not self._abandoned

    def end(self, error: BaseException | None = None) -> None:
        """Producer: nothing follows, or an error does."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def abandon(self) -> None:
        """Consumer: nothing more is wanted."""
        with self._changed:
            self._abandoned = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        """Consumer: the items, then the end or the producer's error."""
        while True:
            with self._changed:
                while not self._items and not self._ended:
                    self._changed.wait()
                if not self._items:
                    break
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error
