"""Verification of the checksums of PNG files, of which decoders skip some or all."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from types import ModuleType

inflater: ModuleType = zlib
try:  # optional: it decompresses twice to three times as fast as zlib, and refuses the same streams
    from isal import isal_zlib
except ImportError:
    pass
else:
    inflater = isal_zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # color type -> channels
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_STORED_BYTES = (1 << 16) - 1  # the most that a block of a zlib stream can hold uncompressed
_IHDR_BYTES = 13
_SLICE_BYTES = 1 << 15
_MOST_SURPLUS = 1 << 24  # bytes after the pixels, which decoders skip
_MOST_KEPT = 1 << 27  # bytes of larger images are decompressed twice, so that they are not in memory three times


@dataclass(frozen=True)
class VerifiedPng:
    """PNG in which every checksum is right.

    Args:
        data (`bytes`): The same image; if the file is complete, its pixels are uncompressed, so that they are not
            decompressed twice, unless they are more than 128 MB.
        bits (`int`): Bits per channel.
        is_complete (`bool`): Whether the file has all its chunks and exactly the pixels that its header states.
        is_interlaced (`bool`): Whether the pixels are stored in seven passes.
        may_be_rotated (`bool`): Whether a chunk may contain an orientation.
    """

    data: bytes
    bits: int
    is_complete: bool
    is_interlaced: bool
    may_be_rotated: bool


@dataclass(frozen=True)
class _Chunk:
    kind: bytes
    content: memoryview
    start: int
    end: int


def verify_png(data: bytes) -> VerifiedPng:
    """Verify the checksums of all chunks and of the compressed pixels of a PNG whose header Pillow has accepted.

    Source: PNG specification, third edition, sections 5.3 (CRC-32 of every chunk) and 10.1 (Adler-32 of the pixels).

    Raises:
        ValueError: If a checksum is wrong, or pixels are missing.
    """
    chunks = list(_verified_chunks(data))
    if not chunks or chunks[0].kind != b"IHDR" or len(chunks[0].content) != _IHDR_BYTES:
        raise ValueError("it does not begin with a header")
    header = bytes(chunks[0].content)
    run = dropwhile(lambda chunk: chunk.kind != b"IDAT", chunks)
    parts = list(takewhile(lambda chunk: chunk.kind == b"IDAT", run))
    unpacked = _with_uncompressed_pixels(data, parts, _num_bytes(header)) if parts else None
    return VerifiedPng(
        data=data if unpacked is None else unpacked,
        bits=header[8],
        is_complete=unpacked is not None and chunks[-1].kind == b"IEND",
        is_interlaced=header[12] != 0,
        may_be_rotated=any(map(_may_rotate, chunks)),
    )


def _verified_chunks(data: bytes) -> Iterator[_Chunk]:
    """Yield the chunks up to the end of the image; the last one may be cut off by the end of the file."""
    view = memoryview(data)
    start = len(SIGNATURE)
    while start + 8 <= len(data):
        end = start + 12 + int.from_bytes(view[start : start + 4], "big")
        kind = data[start + 4 : start + 8]
        if end > len(data):
            yield _Chunk(kind, view[start + 8 :], start, len(data))
            return
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise ValueError(f"the checksum of its chunk {kind.decode('latin-1')!r} is wrong")
        yield _Chunk(kind, view[start + 8 : end - 4], start, end)
        if kind == b"IEND":
            return
        start = end


def _with_uncompressed_pixels(data: bytes, parts: list[_Chunk], num_bytes: int) -> bytes | None:
    """Replace compressed pixels by the same pixels uncompressed; return `None` if they do not end with the image."""
    keeps_blocks = num_bytes <= _MOST_KEPT
    pixels = _Pixels(num_bytes, keeps_blocks)
    try:
        pixels.read(b"".join([part.content for part in parts]))
    except inflater.error as error:
        raise ValueError(f"its compressed pixels are damaged ({error})") from None
    if pixels.missing:
        raise ValueError(f"it holds only {num_bytes - pixels.missing} of {num_bytes} bytes of pixels")
    if pixels.checksum is None and parts[-1].end < len(data):
        raise ValueError("its compressed pixels are damaged (they do not end with the image)")
    if pixels.surplus or pixels.checksum is None:
        return None
    if not keeps_blocks:
        return data
    stream = (b"\x78\x01", *pixels.blocks, pixels.checksum)
    frame = struct.pack(">I4s", sum(map(len, stream)), b"IDAT")
    # the chunk needs no checksum: Pillow and libspng read past that of pixels, and it was verified above
    view = memoryview(data)
    return b"".join([view[: parts[0].start], frame, *stream, bytes(4), view[parts[-1].end :]])


class _Pixels:
    """Pixels as the blocks of a zlib stream that holds them uncompressed (RFC 1951, section 3.2.4).

    Compressed bytes are read in slices, since zlib copies what it has not read yet, and blocks are kept as they come,
    since joining them would double the time for memory.
    """

    def __init__(self, num_bytes: int, keeps_blocks: bool):
        self.keeps_blocks = keeps_blocks
        self.blocks: list[bytes] = []
        self.missing = num_bytes
        self.surplus = 0
        self.checksum: bytes | None = None

    def read(self, compressed: bytes) -> None:
        """Decompress all pixels and compare their checksum; stop early if far more follow than the image has."""
        inflate = inflater.decompressobj()
        view = memoryview(compressed)
        for start in range(0, len(view), _SLICE_BYTES):
            waiting: bytes | memoryview = view[start : start + _SLICE_BYTES]
            end = start + len(waiting)
            while self.surplus <= _MOST_SURPLUS:
                most = min(self.missing, _STORED_BYTES) or _STORED_BYTES
                block = inflate.decompress(waiting, most)
                self._keep(block)
                waiting = inflate.unconsumed_tail
                if inflate.eof:
                    end -= len(inflate.unused_data)
                    self.checksum = compressed[end - 4 : end]
                    return
                if not waiting and len(block) < most:
                    break

    def _keep(self, block: bytes) -> None:
        if self.missing and block:
            self.missing -= len(block)
            if not self.keeps_blocks:
                return
            header = struct.pack("<BHH", not self.missing, len(block), _STORED_BYTES ^ len(block))
            self.blocks += (header, block)
        else:
            self.surplus += len(block)


def _num_bytes(header: bytes) -> int:
    """Compute the bytes of all rows, each of which begins with the number of its filter."""
    width, height, bits, color = struct.unpack(">IIBB", header[:10])
    passes = _PASSES if header[12] else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0:
            total += rows * (1 + (columns * bits * _CHANNELS[color] + 7) // 8)
    return total


def _may_rotate(chunk: _Chunk) -> bool:
    is_profile = chunk.kind == b"tEXt" and bytes(chunk.content[:16]) == b"Raw profile type"
    return is_profile or chunk.kind in (b"eXIf", b"iTXt", b"zTXt")
