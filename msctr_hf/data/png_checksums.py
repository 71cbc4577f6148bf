"""Verification of the checksums of PNG files, of which decoders skip some or all."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from typing import Any

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # color type -> channels
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_STORED_BYTES = (1 << 16) - 1  # the most that a block of a zlib stream can hold uncompressed
_IHDR_BYTES = 13
_SURPLUS_STEP, _MOST_SURPLUS = 1 << 20, 1 << 24  # bytes after the pixels, which decoders skip
_LONGEST_CHUNK = (1 << 31) - 1


@dataclass(frozen=True)
class VerifiedPng:
    """PNG in which every checksum is right.

    Args:
        data (`bytes`): The same image; if the file is complete, its pixels are uncompressed, so that they are not
            decompressed twice.
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
    compressed = b"".join([part.content for part in parts])
    inflate = zlib.decompressobj()
    try:
        pixels = inflate.decompress(compressed, num_bytes)
        surplus = _read_to_checksum(inflate)
    except zlib.error as error:
        raise ValueError(f"its compressed pixels are damaged ({error})") from None
    if len(pixels) < num_bytes:
        raise ValueError(f"it holds only {len(pixels)} of {num_bytes} bytes of pixels")
    if not inflate.eof and parts[-1].end < len(data):
        raise ValueError("its compressed pixels are damaged (they do not end with the image)")
    if surplus or not inflate.eof or num_bytes > _LONGEST_CHUNK // 2:
        return None
    checksum_end = len(compressed) - len(inflate.unused_data)
    chunk = _chunk(b"IDAT\x78\x01", *_stored_blocks(pixels), compressed[checksum_end - 4 : checksum_end])
    view = memoryview(data)
    return b"".join([view[: parts[0].start], *chunk, view[parts[-1].end :]])


def _read_to_checksum(inflate: Any) -> int:
    """Read on to the end of a zlib stream, where its checksum is compared; return the number of surplus bytes."""
    surplus = len(inflate.decompress(inflate.unconsumed_tail, 1))
    while surplus and not inflate.eof and inflate.unconsumed_tail and surplus < _MOST_SURPLUS:
        surplus += len(inflate.decompress(inflate.unconsumed_tail, _SURPLUS_STEP))
    return surplus


def _chunk(*pieces: bytes | memoryview) -> Sequence[bytes | memoryview]:
    """Frame the name and the content of a chunk, which are in pieces, by their length and checksum."""
    length, checksum = -4, 0
    for piece in pieces:
        length += len(piece)
        checksum = zlib.crc32(piece, checksum)
    return (struct.pack(">I", length), *pieces, struct.pack(">I", checksum))


def _stored_blocks(pixels: bytes) -> Iterator[bytes | memoryview]:
    """Yield the blocks of a zlib stream (RFC 1951, section 3.2.4) that holds the pixels uncompressed."""
    view = memoryview(pixels)
    for start in range(0, len(pixels), _STORED_BYTES):
        block = view[start : start + _STORED_BYTES]
        is_last = start + _STORED_BYTES >= len(pixels)
        yield struct.pack("<BHH", is_last, len(block), _STORED_BYTES ^ len(block))
        yield block


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
