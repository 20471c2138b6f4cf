"""Rotation and mirroring that a container asks for, as exact array flips."""

from __future__ import annotations

import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame

from persam_video.types import UInt8Array

Orientation = tuple[bool, bool, bool]
"""(transpose, then flip left-right, then flip up-down)."""


def orientation_of(frame: VideoFrame) -> Orientation:
    """What makes a decoded frame upright, from its display matrix.

    The display matrix (a b u, c d v, x y w) maps a stored point to a shown one by
    x' = a x + c y, y' = b x + d y (ISO/IEC 14496-12, 8.3.2). Angles between the right ones go to
    the nearest.
    """
    data = frame.side_data.get(SideDataType.DISPLAYMATRIX)  # type: ignore[call-overload]
    if data is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].astype(np.int64).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def upright(image: UInt8Array, orientation: Orientation) -> UInt8Array:
    """(H, W, 3) image turned by ``orientation``; a view, not a copy."""
    transpose, flip_x, flip_y = orientation
    if transpose:
        image = image.transpose(1, 0, 2)
    if flip_x:
        image = image[:, ::-1]
    return image[::-1] if flip_y else image
