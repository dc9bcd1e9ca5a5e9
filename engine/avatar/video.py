"""`VideoReader`: frames by index from a video inside another file, decoded on demand, never all in memory."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import av
import av.error
import cv2
import numpy as np

from engine.errors import AvatarFileError
from engine.media import FPS

GOP_FRAMES = 12  # the encoder's key-frame distance: a jump or a step backwards decodes at most this many
CACHE_BYTES = 64 * 1024 * 1024  # decoded 4:2:0 frames kept by one reader


class FileWindow(io.RawIOBase):
    """Bytes [offset, offset + size) of a file, as a read-only file."""

    def __init__(self, path: Path, offset: int, size: int):
        self._file = path.open("rb")
        self._offset, self._size, self._position = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + position)
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, count: int | None = -1) -> bytes:
        left = max(0, self._size - self._position)
        self._file.seek(self._offset + self._position)
        data = self._file.read(left if count is None or count < 0 else min(left, count))
        self._position += len(data)
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


class VideoReader:
    """Frames of a constant 25 fps video (4:2:0, BT.601, even size) without B-frames, of shape (height, width).

    Decoded frames are kept in 4:2:0, at most `cache_bytes` of them and little more than two groups of pictures: reading
    forwards decodes each frame once, reading backwards decodes each group once.
    Threads may share a reader; they read one after the other.
    Raises AvatarFileError where the video is damaged or of another size or length.
    """

    def __init__(
        self,
        path: Path,
        *,
        offset: int = 0,
        size: int | None = None,
        shape: tuple[int, int],
        frames: int,
        cache_bytes: int = CACHE_BYTES,
    ):
        self.frames = frames
        self.shape = shape
        self._path = path
        self._lock = threading.Lock()
        self._window = FileWindow(path, offset, path.stat().st_size - offset if size is None else size)
        try:
            self._container = av.open(self._window, "r", format="mp4")
            self._stream = self._container.streams.video[0]
        except (av.error.FFmpegError, IndexError) as error:
            self._window.close()
            raise self._refusal(f"holds a video that does not open ({error})") from error
        codec = self._stream.codec_context
        if (codec.height, codec.width) != shape or self._stream.frames != frames:
            opened = f"{codec.width}x{codec.height} with {self._stream.frames} frames"
            self._container.close()
            self._window.close()
            raise self._refusal(f"holds a video of {opened}, expected {shape[1]}x{shape[0]} with {frames} frames")
        codec.thread_count = 1  # one thread for each reader, because sessions share the cores
        frame_bytes = shape[0] * shape[1] * 3 // 2
        self._capacity = max(1, min(cache_bytes // frame_bytes, 2 * GOP_FRAMES + 4))
        self._cache: OrderedDict[int, av.VideoFrame] = OrderedDict()
        self._decoder: Iterator[av.VideoFrame] = iter(())
        self._next = -1  # the index that the decoder yields next; -1: it must seek first

    def read(self, index: int) -> np.ndarray:
        """Frame `index` as [H, W, 3] uint8 RGB, a fresh array."""
        # OpenCV rounds. swscale's fast path truncates, which would darken every copy of a copy by a grey level.
        return cv2.cvtColor(self.read_yuv(index), cv2.COLOR_YUV2RGB_I420)

    def read_yuv(self, index: int) -> np.ndarray:
        """Frame `index` as 4:2:0 planes [H * 3 / 2, W] uint8, the layout of `av.VideoFrame.from_ndarray`."""
        return self._frame(index).to_ndarray(format="yuv420p")

    def close(self) -> None:
        """Free decoder, cache and file. Safe to call twice."""
        with self._lock:
            self._decoder = iter(())
            self._cache = OrderedDict()
            self._next = -1
            self._container.close()
            self._window.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _frame(self, index: int) -> av.VideoFrame:
        if not 0 <= index < self.frames:
            raise IndexError(f"frame {index} of a video of {self.frames} frames")
        with self._lock:
            if self._window.closed:
                raise ValueError("the video is closed")
            if index not in self._cache:
                self._decode_until(index)
            return self._cache[index]

    def _decode_until(self, index: int) -> None:
        try:
            if not 0 <= index - self._next < GOP_FRAMES or self._next < 0:
                self._container.seek(self._pts(index), stream=self._stream)
                self._decoder = self._container.decode(self._stream)
            while True:
                frame = next(self._decoder, None)
                if frame is None or frame.pts is None:
                    raise self._refusal(f"holds a video that ends before frame {index}")
                if (frame.height, frame.width) != self.shape or frame.format.name != "yuv420p":
                    raise self._refusal("holds a video whose frames change size or format")
                place = round((frame.pts - (self._stream.start_time or 0)) * float(self._stream.time_base or 0) * FPS)
                self._next = place + 1
                self._cache[place] = frame
                while len(self._cache) > self._capacity:
                    self._cache.popitem(last=False)
                if place == index:
                    return
                if place > index:
                    raise self._refusal(f"holds a video without frame {index}")
        except av.error.FFmpegError as error:
            self._next = -1
            raise self._refusal(f"holds a video that breaks off at frame {index} ({error})") from error

    def _pts(self, index: int) -> int:
        return round(index / FPS / float(self._stream.time_base or 1)) + (self._stream.start_time or 0)

    def _refusal(self, reason: str) -> AvatarFileError:
        return AvatarFileError(f"{self._path}: {reason}; enrol the speaker again with `precompute`")
