"""Things that do not need each other, done at the same time.

One frame takes many small steps. Shared by several threads, such a step waits longer for them than
it gains; so each is done by one, and the others do something else meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, pairwise
from typing import Any, Generic, TypeVar

import torch

from persam_video.sam.machine import processor_threads, take_threads, threads_taken

A = TypeVar("A")
B = TypeVar("B")

_this_thread = threading.local()
"""``count``: threads that may work for this one, itself included, while torch works on one.
``beside``: the same, of those that ask nothing of the accelerator."""


@contextmanager
def small_steps() -> Iterator[None]:
    """Let torch work on one thread for a while; those it had are for ``spread``.

    A thread that torch first meets meanwhile has one, too, until it takes others.
    """
    with _sharing(_threads()):
        yield


@contextmanager
def large_step() -> Iterator[None]:
    """Within ``small_steps``: let torch have its threads back for a while."""
    with threads_taken(_threads()):
        yield


@contextmanager
def shared_on(device: torch.device) -> Iterator[None]:
    """``spread`` nothing for a while unless the work is the processor's.

    Threads that ask an accelerator for many small steps wait for each other, as Python runs one of
    them at a time; and not every accelerator bears several. ``side_by_side`` goes on.
    """
    if device.type == "cpu":
        yield
    else:
        before, beside = _beside(), _threads()
        with _sharing(1):
            _this_thread.beside = beside
            try:
                yield
            finally:
                _this_thread.beside = before


def side_by_side(here: Callable[[], A], there: Callable[[], B]) -> tuple[A, B]:
    """Call one function on this thread and another one on a thread of its own; see ``spread``.

    Args:
        here: It alone may ask something of an accelerator.
        there: It must not.

    Returns:
        What the two return.
    """
    calls: list[Callable[[], Any]] = [here, there]
    own, other = _shared(lambda call: call(), calls, _beside() or _threads())
    return own, other


def spread(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """Call a function with each item, on as many threads as torch has here.

    With one there is nothing to gain, and nothing is different from a loop. Else each thread has
    its share of the items, one after the other, and torch works on one thread in each.

    Args:
        function: Must not change what another call of it needs.
        items: The first ones are for this thread.

    Returns:
        What it returned, in the order of the items.

    Raises:
        Exception: What it raised, when all threads have ended; of several errors the one of the
            earliest item. Only Ctrl-C does not wait for the others.
    """
    return _shared(function, list(items), _threads())


class Meanwhile(Generic[A]):
    """A function that is called at once, on a thread of its own; ``result`` waits for it.

    Torch works on one thread in it; ``spread`` has those that the caller may have.

    Args:
        function: Asks nothing of an accelerator, unless nobody else does meanwhile.
        threads: For ``spread``, itself included; None = as many as the caller.
    """

    def __init__(self, function: Callable[[], A], threads: int | None = None) -> None:
        self._function, self._threads = function, _threads() if threads is None else threads
        self._inference = torch.is_inference_mode_enabled()  # which every thread has for itself
        self._result: list[A] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="persam-beside", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when it has ended, with a result or an error."""
        self._thread.join()

    def result(self) -> A:
        """What the function returns, or raises."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def _work(self) -> None:
        take_threads(1)
        _this_thread.count = self._threads
        try:
            with torch.inference_mode(self._inference):
                self._result.append(self._function())
        except BaseException as error:  # raised again on the caller's thread
            self._error = error


def _shared(function: Callable[[A], B], items: list[A], threads: int) -> list[B]:
    """``spread``, on so many threads."""
    count = min(threads, len(items))
    if count < 2:
        return [function(item) for item in items]
    bounds = [len(items) * i // count for i in range(count + 1)]
    own, *shares = [items[low:high] for low, high in pairwise(bounds)]

    def each(share: list[A]) -> list[B]:
        return [function(item) for item in share]

    others: list[Meanwhile[list[B]]] = []
    with _sharing(1 if _beside() else threads // count):
        try:
            for share in shares:
                others.append(Meanwhile(partial(each, share), threads // count))
            found = each(own)
        finally:
            for other in others:
                other.wait()
    return [*found, *chain.from_iterable(other.result() for other in others)]


def _threads() -> int:
    """How many threads may work for this one, itself included."""
    count: int | None = getattr(_this_thread, "count", None)
    return processor_threads() if count is None else count


def _beside() -> int | None:
    """The same, within ``shared_on`` an accelerator, of those that ask nothing of it."""
    count: int | None = getattr(_this_thread, "beside", None)
    return count


@contextmanager
def _sharing(count: int) -> Iterator[None]:
    before = getattr(_this_thread, "count", None)
    _this_thread.count = count
    try:
        with threads_taken(1):
            yield
    finally:
        _this_thread.count = before
