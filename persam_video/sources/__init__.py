"""Frames in: image folders, video files, cameras, network streams, pipes."""

from persam_video.sources.base import Source
from persam_video.sources.spec import open_source

__all__ = ["Source", "open_source"]
