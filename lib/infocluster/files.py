# SPDX-License-Identifier: Apache-2.0
"""Whole files: written so that a reader sees the old content or the new, and durable when the call returns.

Life of a replacement: a temporary name in the same directory, written, fsynced, renamed over, the directory
fsynced. A temporary name begins with ``.~`` and ends in random hexadecimal; `is_temporary` tells them.

Source: open(2), rename(2), fsync(2). A hit loads this module, so it stays with `posix`.
"""

import posix

TEMPORARY = ".~"


def write_all(fd: int, content: bytes) -> None:
    """Write all bytes to a descriptor, however many calls that takes.

    Raises:
        OSError: as write(2); part of the content may then be written.
    """
    view = memoryview(content)
    while view:
        view = view[posix.write(fd, view) :]


def read(path: str) -> bytes:
    """Return a file's whole content.

    Raises:
        OSError: as open(2) and read(2).
    """
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        size = posix.fstat(fd).st_size
        chunks = []
        while chunk := posix.read(fd, max(size, 65536)):
            chunks.append(chunk)
            if len(chunk) == size:  # the common case: one read took it all; one more would only say so
                break
        return b"".join(chunks)
    finally:
        posix.close(fd)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable.

    Raises:
        OSError: as open(2) and fsync(2).
    """
    fd = posix.open(path or ".", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    try:
        posix.fsync(fd)
    finally:
        posix.close(fd)


def temporary_name(name: str) -> str:
    """Return a name that nobody else uses, to stand in for `name` in its directory until it is whole."""
    # 40 characters are at most 160 bytes; a name may have 255.
    return f"{TEMPORARY}{name[:40]}.{posix.urandom(6).hex()}"


def is_temporary(name: str) -> bool:
    """Tell whether a directory entry is (left over from) a write that was not finished."""
    return name.startswith(TEMPORARY)


def replace(path: str, content: bytes, mode: int = 0o644, durable: bool = True) -> None:
    """Put a file in place whole, with exactly this mode.

    Raises:
        OSError: nothing was changed and no temporary file is left.
    """
    directory, _, name = path.rpartition("/")
    temporary = f"{directory or '.'}/{temporary_name(name)}"
    fd = posix.open(temporary, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600)
    try:
        try:
            write_all(fd, content)
            posix.fchmod(fd, mode)
            if durable:
                posix.fsync(fd)
        finally:
            posix.close(fd)
        posix.rename(temporary, path)
    except BaseException:
        posix.unlink(temporary)
        raise
    if durable:
        sync_directory(directory)


def make_directories(path: str, mode: int = 0o755) -> None:
    """Make a directory and what is missing above it, each durable; one that exists is left as it is.

    Raises:
        OSError: as mkdir(2).
    """
    try:
        posix.mkdir(path, mode)
    except FileExistsError:
        return
    except FileNotFoundError:
        parent = path.rstrip("/").rpartition("/")[0]
        if not parent:
            raise
        make_directories(parent, mode)
        make_directories(path, mode)
        return
    sync_directory(path.rstrip("/").rpartition("/")[0])
