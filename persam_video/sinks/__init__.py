"""Results out: label maps, masks, cut-outs, overlay video, contact sheet, COCO JSON.

Every sink is a context manager that takes a frame and its ``TrackResult``. It checks its output
when it is made, before anything is computed.
"""

from persam_video.sinks.base import MultiSink, Sink
from persam_video.sinks.contact_sheet import ContactSheetSink
from persam_video.sinks.overlay import FILL_ALPHA, draw_overlay
from persam_video.sinks.png import CutoutPngSink, ObjectPngSink, PalettePngSink
from persam_video.sinks.rle_json import RleJsonSink
from persam_video.sinks.stored_masks import StoredMask, StoredMasks, open_masks, pair_masks
from persam_video.sinks.video import OverlayVideoSink

__all__ = [
    "FILL_ALPHA",
    "ContactSheetSink",
    "CutoutPngSink",
    "MultiSink",
    "ObjectPngSink",
    "OverlayVideoSink",
    "PalettePngSink",
    "RleJsonSink",
    "Sink",
    "StoredMask",
    "StoredMasks",
    "draw_overlay",
    "open_masks",
    "pair_masks",
]
