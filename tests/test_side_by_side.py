"""Things done at the same time: their results, their threads, and what they raise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from persam_video.tracking.side_by_side import (
    Meanwhile,
    large_step,
    shared_on,
    side_by_side,
    small_steps,
    spread,
)

WAIT_S = 10.0  # far more than any test needs; a hang fails instead of blocking the suite
BESIDE = "persam-beside"


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def met_by(count: int) -> Callable[[object], int]:
    """A function that returns once so many threads are in it, and tells its own thread."""
    barrier = threading.Barrier(count, timeout=WAIT_S)

    def meet(item: object) -> int:
        barrier.wait()
        return threading.get_ident()

    return meet


@pytest.mark.parametrize(("items", "threads"), [(2, 2), (4, 4), (8, 4)])
def test_items_are_spread_over_as_many_threads_as_torch_has(items: int, threads: int) -> None:
    own = spread(met_by(threads), range(items))
    assert len(set(own)) == threads
    assert own[: items // threads] == [threading.get_ident()] * (items // threads)


def test_results_are_in_the_order_of_the_items() -> None:
    assert spread(lambda i: i * i, range(11)) == [i * i for i in range(11)]
    assert spread(lambda i: i, []) == []


def test_torch_has_one_thread_in_each_and_its_threads_back_afterwards() -> None:
    assert spread(lambda _: torch.get_num_threads(), range(4)) == [1, 1, 1, 1]
    assert torch.get_num_threads() == 4


def test_an_item_of_two_may_have_half_of_the_threads_for_its_own_ones() -> None:
    inner = met_by(4)
    first, second = spread(lambda _: spread(inner, range(2)), range(2))
    assert len({*first, *second}) == 4


def test_a_thread_met_later_has_all_threads_again() -> None:
    spread(lambda _: None, range(4))
    seen: list[int] = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [4]


def test_one_thread_does_one_after_the_other() -> None:
    torch.set_num_threads(1)
    order: list[tuple[int, int]] = []
    assert spread(lambda i: order.append((i, threading.get_ident())), range(3)) == [None] * 3
    assert order == [(i, threading.get_ident()) for i in range(3)]


def test_small_steps_keep_the_threads_for_what_is_spread_and_for_a_large_step() -> None:
    with small_steps():
        assert torch.get_num_threads() == 1
        assert len(set(spread(met_by(4), range(4)))) == 4
        with large_step():
            assert torch.get_num_threads() == 4
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("inference", [False, True])
def test_inference_mode_is_the_caller_s(inference: bool) -> None:
    with torch.inference_mode(inference):
        assert spread(lambda _: torch.is_inference_mode_enabled(), range(4)) == [inference] * 4


def test_side_by_side_returns_what_each_function_does() -> None:
    meet = met_by(2)
    here, (thread, value) = side_by_side(lambda: (meet(0), "a"), lambda: (meet(1), 2.0))
    assert here == (threading.get_ident(), "a")
    assert thread != threading.get_ident() and value == 2.0


def test_with_one_thread_both_functions_are_done_here() -> None:
    torch.set_num_threads(1)
    here, there = side_by_side(threading.get_ident, threading.get_ident)
    assert here == there == threading.get_ident()


def test_meanwhile_the_caller_goes_on() -> None:
    meet = met_by(2)
    inner = Meanwhile(lambda: (meet(0), len(set(spread(met_by(4), range(4))))))
    meet(0)  # it would wait for this for ever, were it done first
    thread, threads = inner.result()
    assert thread != threading.get_ident() and threads == 4
    assert torch.get_num_threads() == 4
    one = Meanwhile(lambda: len({*spread(lambda _: threading.get_ident(), range(4))}), threads=1)
    assert one.result() == 1


def test_meanwhile_raises_its_error_when_it_is_asked() -> None:
    failing = Meanwhile(lambda: [][1])
    failing.wait()
    for _ in range(2):
        with pytest.raises(IndexError):
            failing.result()


@pytest.mark.parametrize("failing", [{0}, {2}, {1, 3}, {0, 3}])
def test_the_earliest_error_is_raised_when_all_have_ended(failing: set[int]) -> None:
    ended: list[int] = []

    def work(i: int) -> None:
        if i in failing:
            raise ValueError(f"item {i}")
        threading.Event().wait(0.05)  # others have failed meanwhile
        ended.append(i)

    with pytest.raises(ValueError, match=f"item {min(failing)}"):
        spread(work, range(4))
    assert sorted(ended) == sorted({0, 1, 2, 3} - failing)
    assert torch.get_num_threads() == 4
    assert not [thread for thread in threading.enumerate() if thread.name == BESIDE]
    assert len(set(spread(met_by(4), range(4)))) == 4  # as if nothing had happened


def test_a_thread_that_cannot_start_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    start, begun = threading.Thread.start, []

    def failing(thread: threading.Thread) -> None:
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        spread(lambda _: threading.Event().wait(0.05), range(4))
    assert len(begun) == 2 and not any(thread.is_alive() for thread in begun)
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("device", "threads"), [("cpu", 4), ("cuda", 1), ("mps", 1)])
def test_work_of_an_accelerator_is_not_spread(device: str, threads: int) -> None:
    with shared_on(torch.device(device)):
        assert len(set(spread(met_by(threads), range(4)))) == threads
        meet = met_by(2)
        here, _ = side_by_side(lambda: meet(0), lambda: meet(1))  # the other asks nothing of it
        assert here == threading.get_ident()
        inner = threads // 2 or 1
        own, _ = side_by_side(lambda: spread(met_by(inner), range(4)), lambda: None)
        assert len(set(own)) == inner
        assert torch.get_num_threads() == (4 if device == "cpu" else 1)
    assert torch.get_num_threads() == 4
