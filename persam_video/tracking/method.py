"""What the tracker asks of a method that finds masks."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from persam_video.tracking.background import Change
from persam_video.tracking.objects import TrackedObject
from persam_video.types import Embedding


class Method(Protocol):
    """Finds masks; see ``PersamMethod`` and ``PropagationMethod`` for the arguments."""

    def learn(
        self,
        objects: list[TrackedObject],
        embedding: Embedding,
        *,
        in_clip: bool = True,
        whole: Embedding | None = None,
    ) -> None:
        """Take each object's ``logits`` as its reference in a frame, or in another picture.

        Where the embedding is of a part of the clip's first frame, ``whole`` is of all of it.
        """

    def prepare(self, objects: list[TrackedObject], embedding: Embedding) -> None:
        """Compute of a new frame what needs no ``change``; ``segment`` takes it over."""

    def segment(
        self, objects: list[TrackedObject], embedding: Embedding, change: Change | None = None
    ) -> tuple[Tensor, Tensor]:
        """(N, 4h, 4w) logits and (N,) scores of the objects in a new frame.

        ``change`` is what ``Background.look`` says about it, over the padded square.
        """

    def remember(self, objects: list[TrackedObject], embedding: Embedding) -> None:
        """Learn from the frame just segmented, after the objects have competed for its pixels."""
