"""The background of a clip, which may look at the next frame before it is asked about it.

Comparing a frame with the background takes what was learnt from the frame before, and the picture.
Beside a GPU, where the processor's part of a step is the longest, both are there long before the
next step begins: the objects are still learning, and SAM's encoder has given the frame away.
"""

from __future__ import annotations

from collections import deque

from persam_video.tracking.background import Background, Change, Reduced
from persam_video.tracking.side_by_side import Meanwhile
from persam_video.types import BoolArray, UInt8Array

_AHEAD = 4
"""Pictures known ahead, at most."""


class LookAhead:
    """``Background``, and pictures that it will be shown.

    What it says is the same whether it knows them or not.

    Args:
        longest: As for ``Background``.
    """

    def __init__(self, longest: int) -> None:
        self._background = Background(longest)
        self._known: deque[tuple[UInt8Array, Reduced]] = deque(maxlen=_AHEAD)
        self._early: tuple[UInt8Array, Reduced, Meanwhile[tuple[Background, Change]]] | None = None

    @property
    def cut(self) -> bool:
        """Whether the latest frame is from another scene or viewpoint than the one before."""
        return self._background.cut

    def know(self, image_rgb: UInt8Array) -> None:
        """Do what ``look`` does with a frame alone; on another thread, up to four frames ahead.

        Args:
            image_rgb: The very (H, W, 3) uint8 RGB array that ``look`` will be given.
        """
        self._known.append((image_rgb, self._background.reduced(image_rgb)))

    def go_on(self) -> None:
        """Look at the next frame on a thread of its own, if it is known.

        All is learnt from the latest one, as far as can be told: what is learnt nevertheless makes
        it look once more.
        """
        if self._known:
            image, picture = self._known.popleft()
            twin = self._background.twin()
            self._early = image, picture, Meanwhile(lambda: (twin, twin.look_at(picture)))

    def wait(self) -> None:
        """Return when nothing is done on another thread."""
        if self._early is not None:
            self._early[2].wait()

    def look(self, image_rgb: UInt8Array) -> Change:
        """``Background.look``."""
        if self._early is not None and self._early[0] is image_rgb:
            _, _, looking = self._early
            self._early = None
            self._background, change = looking.result()
            return change
        self._look_again()
        for place, (image, picture) in enumerate([*self._known]):
            if image is image_rgb:
                for _ in range(place + 1):  # those before it have been passed over
                    self._known.popleft()
                return self._background.look_at(picture)
        return self._background.look(image_rgb)

    def learn(self, labels: UInt8Array, *, all_tracked: bool = True) -> None:
        """``Background.learn``."""
        self._look_again()
        self._background.learn(labels, all_tracked=all_tracked)

    def forget(self, objects: BoolArray) -> None:
        """``Background.forget``."""
        self._look_again()
        self._background.forget(objects)

    def release(self, places: BoolArray) -> None:
        """``Background.release``."""
        self._look_again()
        self._background.release(places)

    def _look_again(self) -> None:
        """What was seen early is not what there is now."""
        if self._early is not None:
            image, picture, looking = self._early
            looking.wait()  # it reads what is about to change
            self._early = None
            self._known.appendleft((image, picture))
