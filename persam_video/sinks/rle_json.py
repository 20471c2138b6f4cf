"""All masks in one COCO JSON file, run-length coded."""

from __future__ import annotations

import contextlib
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from persam_video.files import atomic_path
from persam_video.geometry import mask_to_box
from persam_video.rle import encode_rle
from persam_video.sinks.base import SinkLifeCycle, claim_file
from persam_video.types import BoolArray, Frame, TrackResult


class RleJsonSink(SinkLifeCycle):
    """COCO JSON with images, annotations (RLE, box, area, score) and one category per object id.

    A lost object has no annotation, as COCO wants it. Beyond COCO, each image carries
    ``frame_index``, ``time_s`` and ``objects`` (id, score and state of every known object), so that
    the file holds the whole result. Images and annotations go to disk as they come; memory does not
    grow.

    Args:
        path: File to write, .json.
        overwrite: Allow replacing an existing file.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        super().__init__(path)
        claim_file(path, (".json",), overwrite)
        self._open = ExitStack()
        self._output: IO[str] | None = None
        self._images: IO[str] | None = None
        self._image_count = 0
        self._annotation_count = 0
        self._object_ids: set[int] = set()

    def _write(self, frame: Frame, result: TrackResult) -> None:
        output, images = self._files()
        masks = {object_id: result.mask(object_id) for object_id in result.object_ids}
        visible = {object_id: mask for object_id, mask in masks.items() if mask.any()}
        image_id = self._image_count + 1
        annotations = [
            _annotation(self._annotation_count + number, image_id, object_id, mask, result)
            for number, (object_id, mask) in enumerate(visible.items(), 1)
        ]
        # Everything is computed before the first byte is written, so that Ctrl-C leaves no half.
        if annotations:
            output.write((",\n" if self._annotation_count else "\n") + ",\n".join(annotations))
        images.write((",\n" if self._image_count else "\n") + _image(image_id, frame, result))
        self._annotation_count += len(annotations)
        self._image_count = image_id
        self._object_ids.update(result.object_ids)

    def _files(self) -> tuple[IO[str], IO[str]]:
        """The file to be, which gets the annotations first, and a nameless one for the images."""
        if self._output is None or self._images is None:
            temporary = self._open.enter_context(atomic_path(self.path))
            self._output = self._open.enter_context(temporary.open("w", encoding="utf-8"))
            nameless = tempfile.TemporaryFile("w+", encoding="utf-8", dir=self.path.parent)  # noqa: SIM115 - lives as long as the sink
            self._images = self._open.enter_context(nameless)
            self._output.write(
                '{"info": {"description": "masks by persam-video"},\n"annotations": ['
            )
        return self._output, self._images

    def _finish(self) -> None:
        if self._output is None or self._images is None:
            return
        categories = [{"id": n, "name": f"object {n}"} for n in sorted(self._object_ids)]
        self._output.write('\n],\n"images": [')
        self._images.seek(0)
        for line in self._images:
            self._output.write(line)
        self._output.write(f'\n],\n"categories": {json.dumps(categories)}}}\n')
        self._open.close()

    def _discard(self, error: BaseException) -> None:
        # Closing flushes, which fails again on a full disk; the first error is the one to tell.
        with contextlib.suppress(OSError):
            self._open.__exit__(type(error), error, error.__traceback__)


def _annotation(
    annotation_id: int, image_id: int, object_id: int, mask: BoolArray, result: TrackResult
) -> str:
    box = mask_to_box(mask)
    assert box is not None  # only visible objects get here
    x1, y1, x2, y2 = (int(value) for value in box)
    return json.dumps(
        {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": object_id,
            "segmentation": encode_rle(mask).to_json(),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": int(mask.sum()),
            "iscrowd": 0,
            "score": round(float(result.scores[object_id]), 6),
        }
    )


def _image(image_id: int, frame: Frame, result: TrackResult) -> str:
    height, width = frame.size_hw
    return json.dumps(
        {
            "id": image_id,
            "file_name": f"{frame.stem}.jpg",
            "width": width,
            "height": height,
            "frame_index": frame.index,
            "time_s": frame.time_s,
            "objects": [
                {
                    "id": object_id,
                    "score": round(float(result.scores[object_id]), 6),
                    "state": result.states[object_id].value,
                }
                for object_id in result.object_ids
            ],
        }
    )
