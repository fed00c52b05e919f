"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from runtime.errors import FileError


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write that takes `path`'s place when the block ends, and leaves nothing behind if that fails.

    It is written under another name in the same folder, flushed to the disk and renamed. What was at `path` stays
    readable until then, also for who has it mapped, and hands on its permissions; a link there is followed. FileError
    names `path` and what the system said.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileNotFoundError):
            temporary.chmod(path.stat().st_mode & 0o777)
        temporary.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        raise FileError(path, f"cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):  # after a failure; gone after a success
            temporary.unlink()


def flush_folder(folder: Path) -> None:
    """Makes a rename last; some systems cannot open a folder, and need not."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
