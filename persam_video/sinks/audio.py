"""The sound of the source inside the overlay video, packet by packet where the format allows it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet

_log = logging.getLogger(__name__)

# Codecs that players expect inside each container; any other sound is encoded anew as AAC.
_EVERYWHERE = ("aac", "mp3", "ac3", "eac3", "alac")
_CARRIED = {
    "mp4": (*_EVERYWHERE, "opus"),
    "matroska": (*_EVERYWHERE, "opus"),
    "mov": _EVERYWHERE,
}
_AAC_BIT_RATE = 160_000

_SoundPacket: TypeAlias = "Packet[AudioStream]"


class AudioCarrier:
    """Copies the first sound track of a file into an output, alongside its video frames.

    Args:
        path: File whose sound is carried over.
        output: Container that is being written; its stream is added here.
        start_s: Time on the clock of ``path`` that becomes 0 in the output.

    Raises:
        av.error.FFmpegError: ``path`` cannot be opened.
    """

    def __init__(self, path: Path, output: OutputContainer, start_s: float) -> None:
        self._path = path
        self._output = output
        self._input: InputContainer = av.open(str(path))
        self._packets: Iterator[_SoundPacket] = iter(())
        self._next: _SoundPacket | None = None
        try:
            self._open(start_s)
        except BaseException:
            self._input.close()
            raise

    def advance(self, until_s: float) -> None:
        """Write the sound that begins before ``until_s`` on the output's clock.

        A sound track that is damaged ends there, with a warning: masks matter more than sound.
        """
        while self._next is not None:
            packet = self._next
            assert packet.pts is not None and packet.time_base is not None  # _open saw to it
            if packet.pts * packet.time_base >= until_s:
                return
            self._output.mux(packet)
            self._next = self._pull()

    def close(self) -> None:
        """Release the input; a second call does nothing."""
        self._next = None
        self._input.close()

    def _open(self, start_s: float) -> None:
        if not self._input.streams.audio:
            return
        source = self._input.streams.audio[0]
        if source.codec_context is None:  # this build of FFmpeg does not know the codec
            _log.warning("%s: the sound is in an unknown format and is left out", self._path)
            return
        # Matroska has no edit list: a packet before 0 would shift the video's times.
        may_begin_early = self._output.format.name != "matroska"
        if source.codec_context.codec.canonical_name in _CARRIED[self._output.format.name]:
            target = self._output.add_stream_from_template(source)
            self._packets = _copied(self._input, source, target, start_s, may_begin_early)
        else:
            target = self._output.add_stream("aac", rate=source.codec_context.sample_rate or 48_000)
            target.codec_context.layout = "mono" if source.codec_context.channels == 1 else "stereo"
            target.codec_context.bit_rate = _AAC_BIT_RATE
            self._packets = _encoded(self._input, source, target, start_s)
        self._next = self._pull()

    def _pull(self) -> _SoundPacket | None:
        try:
            return next(self._packets, None)
        except av.error.FFmpegError as error:
            _log.warning("%s: the sound ends early: %s", self._path, error)
            return None


def _copied(
    container: InputContainer,
    source: AudioStream,
    target: AudioStream,
    start_s: float,
    may_begin_early: bool,
) -> Iterator[_SoundPacket]:
    """Packets of the source, moved so that ``start_s`` is 0."""
    for packet in container.demux(source):
        if packet.pts is None or packet.dts is None or packet.time_base is None:
            continue  # the empty packet that ends the file, or one without a time
        start = Fraction(start_s).limit_denominator(1_000_000) / packet.time_base
        # The packet that ends at the start is kept: AAC decodes each one with its forerunner.
        if packet.pts + (packet.duration or 0 if may_begin_early else 0) < start:
            continue
        packet.pts -= round(start)
        packet.dts -= round(start)
        packet.stream = target
        yield packet


def _encoded(
    container: InputContainer, source: AudioStream, target: AudioStream, start_s: float
) -> Iterator[_SoundPacket]:
    """The source's sound from ``start_s`` on as AAC packets, ``start_s`` at 0."""
    encoder = target.codec_context
    rate = encoder.sample_rate
    resampler = av.AudioResampler(encoder.format, encoder.layout, rate)
    fifo = av.AudioFifo()
    position: int | None = None  # samples since start_s at the head of the next frame
    for frame in chain(container.decode(source), (None,)):
        if frame is not None and (frame.time is None or frame.time < start_s):
            continue
        if frame is not None and position is None:
            assert frame.time is not None
            position = math.floor((frame.time - start_s) * rate + 0.5)
        for resampled in resampler.resample(frame):
            resampled.pts = None  # the fifo counts samples itself; gaps in broken files close up
            fifo.write(resampled)
        while (block := fifo.read(encoder.frame_size or 1024, partial=frame is None)) is not None:
            assert position is not None
            block.pts, block.time_base = position, Fraction(1, rate)
            position += block.samples
            yield from target.encode(block)
    yield from target.encode(None)
