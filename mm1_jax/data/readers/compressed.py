"""Streams of files that may be compressed (.gz, .zst, or .zip of one file), and their lines.

Reading raises nothing but BadRecord, whatever is wrong with a file.
"""

import codecs
import gzip
import io
import itertools
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import zstandard

from mm1_jax.data.readers.entries import Rejected
from mm1_jax.data.readers.source_files import MAX_ENTRY_BYTES, entry_id, is_hidden
from mm1_jax.data.record_files import BadRecord
from mm1_jax.storage import GIT_LFS, stand_in

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
COMPRESSIONS = ("", ".gz", ".zst", ".zip")
# A line of only brackets takes about 20 times its size once it is parsed.
MAX_LINE_BYTES = 64 * 2**20

# Text compresses to a fifth, repetitive text to a fiftieth. Anything that compresses more was made
# to fill memory or to take forever. Content of up to `_SMALL_BYTES` is harmless at any ratio.
_MAX_RATIO = 200
_SMALL_BYTES = 2**30
# A block of a Zstandard frame holds up to 128 KiB in 4 bytes, so a chunk is at most 128 MiB of
# data.
_ZSTD_CHUNK = 4096


def compressed(*suffixes: str) -> tuple[str, ...]:
    """Returns the suffixes, plain and with each compression."""
    return tuple(suffix + how for suffix in suffixes for how in COMPRESSIONS)


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """Opens a file as a stream of its decompressed content."""
    with ExitStack() as stack:
        try:
            # Anything else, such as a pipe, could block a reader forever.
            if not path.is_file():
                raise BadRecord("there is no such file")
            size = path.stat().st_size
            with path.open("rb") as file:
                head = file.read(64)
            if head.startswith(GIT_LFS):
                raise BadRecord(stand_in(head))
            read = _reader(path, stack)
        except BadRecord:
            raise
        except Exception as error:  # The exceptions of zipfile share no base class.
            raise _unreadable(error) from error
        yield stack.enter_context(io.BufferedReader(_BoundedReader(read, size), 2**16))


def _reader(path: Path, stack: ExitStack) -> Callable[[int], bytes]:
    """Returns a function that reads up to the given number of bytes."""
    suffix = path.suffix.lower()
    file = stack.enter_context(path.open("rb"))
    if suffix == ".gz":
        return stack.enter_context(gzip.GzipFile(fileobj=file)).read
    if suffix == ".zst":
        return _ZstdReader(file).read
    if suffix == ".zip":
        archive = stack.enter_context(zipfile.ZipFile(file))
        return stack.enter_context(archive.open(_only_member(archive))).read
    return file.read


def _only_member(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    members = [
        member
        for member in archive.infolist()
        if not member.is_dir() and not is_hidden(member.filename)
    ]
    if len(members) != 1:
        raise BadRecord(f"a zip of {len(members)} files, expected one")
    if members[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # The other methods allocate memory by what the file claims.
        raise BadRecord("a zip that is neither stored nor deflated")
    return members[0]


def _unreadable(error: Exception) -> BadRecord:
    return BadRecord(f"it cannot be read further: {type(error).__name__}: {error}")


class _ZstdReader:
    """Reads Zstandard frame by frame: the library's own stream accepts a truncated frame."""

    def __init__(self, file: io.BufferedReader):
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ENTRY_BYTES)
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._output = io.BytesIO()

    def read(self, size: int) -> bytes:
        while not (data := self._output.read(size)):
            frame = self._frame
            is_inside = frame is not None and not frame.eof
            rest = b"" if frame is None or is_inside else frame.unused_data
            chunk = rest or self._file.read(_ZSTD_CHUNK)
            if not chunk:
                if is_inside:
                    raise EOFError("the file ends inside a frame")
                return b""
            if frame is None or not is_inside:
                frame = self._frame = self._decompressor.decompressobj()
            self._output = io.BytesIO(frame.decompress(chunk))
        return data


class _BoundedReader(io.RawIOBase):
    """Limits the output of `read` to what a benign file of `size` bytes can expand to."""

    def __init__(self, read: Callable[[int], bytes], size: int):
        self._read = read
        self._left = max(_SMALL_BYTES, _MAX_RATIO * size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            data = self._read(len(buffer))
        except Exception as error:  # The exceptions of the decompressors share no base class.
            raise _unreadable(error) from error
        self._left -= len(data)
        if self._left < 0:
            raise BadRecord(f"it holds more than {_MAX_RATIO} times its size")
        buffer[: len(data)] = data
        return len(data)


def lines(path: Path) -> Iterator[tuple[str, bytes] | Rejected]:
    """Yields the id and the bytes of each non-blank line.

    Nothing after a line that is too long, or after damage to a compressed file, can be read; the
    last item is then a Rejected.
    """
    number = 0
    try:
        with opened(path) as stream:
            for number in itertools.count(1):
                line = stream.readline(MAX_LINE_BYTES + 1)
                if not line:
                    return
                if len(line) > MAX_LINE_BYTES:
                    raise BadRecord(
                        f"a line of more than {MAX_LINE_BYTES} bytes; what follows it is not read"
                    )
                if line.strip():
                    yield entry_id(path, number), line
    except BadRecord as error:
        yield Rejected(entry_id(path, number), str(error))


def read_document(path: Path) -> str:
    """Reads the text of a file of one document, which may be compressed."""
    with opened(path) as stream:
        data = stream.read(MAX_LINE_BYTES + 1)
    if len(data) > MAX_LINE_BYTES:
        raise BadRecord(f"a document of more than {MAX_LINE_BYTES} bytes")
    return decode_text(data)


def decode_text(data: bytes) -> str:
    """Decodes UTF-8, with or without a byte order mark; raises BadRecord for anything else."""
    # ASCII text in UTF-16 is also valid UTF-8, with NUL as every second character.
    if data.startswith(_UTF16_MARKS) or 3 * data.count(0) > len(data) > 8:
        raise BadRecord("not UTF-8: it looks like UTF-16 or UTF-32; iconv converts it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRecord(f"not UTF-8: {error}") from error
