"""Does memory grow with the length of a clip? Loops a short clip and prints the peaks as JSON.

    python tools/memory.py CLIP --mask FIRST.png                500 frames against the first 50
    python tools/memory.py CLIP --mask FIRST.png --frames 200 --input-size 512

Everything runs as in ``persam-video track``: reader thread, tracker, writer thread, palette PNG and
overlay video. Peaks are the largest resident memory while tracking; loading the network is left
out where the system allows it (Linux), as its own peak would hide a growth below it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import persam_video as pv
from persam_video.writing import peak_memory

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def looped(open_clip: Callable[[], pv.Source], frames: int) -> Iterator[pv.Frame]:
    """The clip's frames again and again, with indices and times that go on."""
    index = 0
    while True:
        with open_clip() as source:
            rate = source.info.rate or 25
            for frame in source:
                if index == frames:
                    return
                yield replace(frame, index=index, time_s=float(index / rate), name=f"{index:05d}")
                index += 1


def forget_peak() -> bool:
    """Let the system's high-water mark start from what is resident now; False where it cannot."""
    try:
        CLEAR_REFS.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """Largest resident memory since ``forget_peak``, or of the whole process without /proc."""
    if not STATUS.is_file():
        return peak_memory() or 0
    line = next(x for x in STATUS.read_text("ascii").splitlines() if x.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


class _Mallinfo2(ctypes.Structure):
    """glibc's ``struct mallinfo2`` (mallinfo(3)), of all arenas."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def allocated_bytes() -> int | None:
    """Memory that something has asked for and not let go of yet; None where nobody tells.

    What is let go of mostly remains resident: the allocator keeps it for the next who asks.
    """
    if platform.system() != "Linux":
        return None
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:  # glibc has it from 2.33 on
        return None
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def measure(clip: str, mask: Path, config: pv.Config, first: int, frames: int) -> dict[str, object]:
    """Peaks after the first and after all frames, and their ratio."""
    tracker = pv.Tracker.from_config(config)
    reference = pv.Reference(pv.read_mask_file(mask))
    loading_left_out = forget_peak()
    peaks: list[int] = []
    with tempfile.TemporaryDirectory(prefix="persam_video-") as folder:
        sinks = [
            pv.PalettePngSink(Path(folder) / "masks"),
            pv.OverlayVideoSink(Path(folder) / "overlay.mp4", None),
        ]
        source = looped(lambda: pv.open_source(clip), frames)
        pv.run(source, tracker, reference, sinks, lambda _: peaks.append(peak_bytes()))
    return {
        "clip": clip,
        "objects": len(tracker.object_ids),
        "loading_left_out": loading_left_out,
        "first_frames": first,
        "frames": len(peaks),
        "peak_first_bytes": peaks[first - 1],
        "peak_all_bytes": peaks[-1],
        "ratio": peaks[-1] / peaks[first - 1],
    }


def commit() -> str:
    """What is checked out, "+" at its end when files were changed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", help="image folder or video file")
    parser.add_argument("--mask", type=Path, required=True, help="mask of its first frame")
    parser.add_argument("--first", type=int, default=50, help="frames of the first peak")
    parser.add_argument("--frames", type=int, default=500, help="frames of the second peak")
    parser.add_argument("--input-size", type=int, help="side of the network's input")
    args = parser.parse_args()
    if not 1 <= args.first <= args.frames:
        parser.error(f"--first must be in 1..{args.frames} (--frames), got {args.first}")
    config = pv.Config(encoder=pv.EncoderConfig(input_size=args.input_size))
    figures = measure(args.clip, args.mask, config, args.first, args.frames)
    facts = {"commit": commit(), "machine": platform.platform(), "input_size": args.input_size}
    print(json.dumps(figures | facts, indent=1))


if __name__ == "__main__":
    main()
