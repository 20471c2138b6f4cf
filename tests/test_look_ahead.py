"""Looking at the next frame early: what is said is the same, and no thread is left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_background import NOTHING, WIDTH, labels_of, scenery, with_thing

from persam_video.tracking.background import Background, Change, Reduced
from persam_video.tracking.look_ahead import LookAhead
from persam_video.types import BoolArray, UInt8Array

FRAMES = 8
CUT = 6  # the first frame of another scene


@cache
def clip() -> tuple[list[UInt8Array], list[BoolArray]]:
    """A thing that crosses a pan, and a cut."""
    wide, other = scenery(), 255 - scenery(1)
    views = [(other if i >= CUT else wide)[:, 4 * i : 4 * i + WIDTH].copy() for i in range(FRAMES)]
    images, masks = zip(*(with_thing(v, 60 + 8 * i) for i, v in enumerate(views)), strict=True)
    return [*images], [*masks]


def told(background: Background | LookAhead, changes: Change) -> tuple[bytes, bytes, bool]:
    return changes.votes.numpy().tobytes(), changes.empty.numpy().tobytes(), background.cut


def followed(
    background: Background | LookAhead,
    known: dict[int, list[int]],
    changed: dict[int, str],
) -> Iterator[tuple[bytes, bytes, bool]]:
    """What a background says about the frames of the clip.

    Args:
        background: Started anew.
        known: After a frame it gets to know so many-th ones after that.
        changed: After a frame it is told something, once it has gone on.
    """
    images, masks = clip()
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        yield told(background, background.look(image))
        background.learn(labels_of(mask))
        if isinstance(background, LookAhead):
            for number in known.get(i, []):
                background.know(images[min(i + number, FRAMES - 1)])
            background.go_on()
        what = changed.get(i)
        if what == "forget":
            background.forget(np.roll(mask, 20, axis=1))
        elif what == "release":
            background.release(mask)
        elif what == "learn":
            background.learn(labels_of(NOTHING))


@settings(max_examples=15, deadline=None)
@given(
    known=st.dictionaries(
        st.integers(0, FRAMES - 1), st.lists(st.integers(1, 2), min_size=1, max_size=2)
    ),
    changed=st.dictionaries(
        st.integers(1, FRAMES - 1), st.sampled_from(["forget", "release", "learn"]), max_size=2
    ),
)
def test_it_says_the_same_whatever_it_knows(
    known: dict[int, list[int]], changed: dict[int, str]
) -> None:
    expected = [*followed(Background(), {}, changed)]
    assert expected[CUT][2]
    assert [*followed(LookAhead(512), known, changed)] == expected
    assert len({votes for votes, _, _ in expected}) > FRAMES // 2  # it does say something


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2), (3, 2, 1, 0), (0, 2, 3), (5, 6)])
def test_frames_known_in_another_order_or_never_shown_change_nothing(
    order: tuple[int, ...],
) -> None:
    images, masks = clip()
    plain, ahead = Background(), LookAhead(512)
    for number in order:
        ahead.know(images[number])
    for image, mask in zip(images[:5], masks, strict=False):
        assert told(ahead, ahead.look(image)) == told(plain, plain.look(image))
        for background in (plain, ahead):
            background.learn(labels_of(mask))
        ahead.go_on()
    assert len(ahead._known) <= len(order)


def test_the_next_frame_is_looked_at_before_it_is_asked_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, masks = clip()
    look_at, looked = Background.look_at, list[str]()

    def noted(self: Background, picture: Reduced) -> Change:
        looked.append(threading.current_thread().name)
        return look_at(self, picture)

    monkeypatch.setattr(Background, "look_at", noted)
    ahead = LookAhead(512)
    for image in images[:2]:
        ahead.know(image)
    ahead.look(images[0])
    ahead.learn(labels_of(masks[0]))
    ahead.go_on()
    ahead.wait()
    assert looked == [threading.current_thread().name, "persam-beside"]
    assert not [t for t in threading.enumerate() if t.name == "persam-beside"]
    ahead.look(images[1])
    ahead.go_on()  # nothing is known any more
    assert len(looked) == 2
    for image in (images[4], images[3]):
        ahead.know(image)
    ahead.go_on()  # at another one than will be asked about
    ahead.look(images[3])
    ahead.look(images[4])
    assert [name == "persam-beside" for name in looked] == [False, True, True, False, False]


def test_what_fails_early_fails_when_it_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    images, masks = clip()
    ahead = LookAhead(512)
    for image in images[:2]:
        ahead.know(image)
    ahead.look(images[0])
    ahead.learn(labels_of(masks[0]))
    with monkeypatch.context() as patched:

        def fail(self: Background, picture: Reduced) -> Change:
            raise ValueError("the picture is gone")

        patched.setattr(Background, "look_at", fail)
        ahead.go_on()
        ahead.wait()
    with pytest.raises(ValueError, match="the picture is gone"):
        ahead.look(images[1])
    assert ahead.look(images[1]).votes.any()  # and then it is looked at again
