"""Files that are either whole or absent: written beside their place, flushed, then moved there."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import OutputError

REPLACE_ATTEMPTS = 20
REPLACE_PAUSE_SECONDS = 0.05
TEMPORARY_BYTES = 200


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path` atomically.

    Raises:
        OutputError: the folder is missing or read-only, or the disk is full.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Put UTF-8 text with \\n line ends at `path` atomically; errors as `write_bytes`.

    Half a character, as a file's name may hold, becomes a question mark.
    """
    write_bytes(path, text.encode("utf-8", "replace"))


def check_output(path: Path, overwrite: bool) -> None:
    """Raise unless `path` may become a file: no folder, and free or to be overwritten."""
    if os.path.isdir(path):
        raise OutputError(f"{path} is a folder; give the name of the .safetensors file to write.")
    if os.path.exists(path) and not overwrite:
        raise OutputError(f"{path} exists already. Choose another name, or pass --overwrite.")
    if not os.path.isdir(path.parent):
        raise OutputError(f"The folder {path.parent} does not exist; create it or name another.")


def try_name(path: Path) -> None:
    """Raise OutputError unless its folder takes a file of such a name, and its temporary one.

    What is tried is a name of the same letters and length but the last, so that nobody who lists
    the folder meets an empty model.
    """
    path = Path(path)
    with explained(path):
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=_temporary_prefix(path.name), suffix=".part"
        )
        os.close(handle)
        os.unlink(temporary)
        alike = path.with_name(path.name[:-1] + "~")
        try:
            handle = os.open(alike, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return
        os.close(handle)
        alike.unlink()


def _temporary_prefix(name: str) -> str:
    """The beginning of a temporary name for `name`; drives take names of 255 bytes."""
    return f".{os.fsencode(name)[:TEMPORARY_BYTES].decode('utf-8', 'ignore')}."


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to; flushed and moved to `path` if the block succeeds."""
    path = Path(path)
    temporary: Path | None = None
    try:
        with explained(path):
            handle, name = tempfile.mkstemp(
                dir=path.parent, prefix=_temporary_prefix(path.name), suffix=".part"
            )
            os.close(handle)
            temporary = Path(name)
            yield temporary
            _flush(temporary)
            with contextlib.suppress(OSError):  # drives without such rights refuse the question
                temporary.chmod(0o644)
            replace(temporary, path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an OSError of writing `path` into an OutputError that says what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(_explain(path, error)) from error


def flush_files(folder: Path) -> None:
    """Make sure that the files in `folder` are on the disk before the folder is moved."""
    for file in folder.iterdir():
        _flush(file)


def replace(source: Path, target: Path, rename: Callable[[Path, Path], None] = os.replace) -> None:
    """Move `source` onto `target`; on Windows a reader may hold it for a moment, so try again."""
    for attempt in range(REPLACE_ATTEMPTS):
        try:
            return rename(source, target)
        except PermissionError:
            if attempt == REPLACE_ATTEMPTS - 1:
                raise
            time.sleep(REPLACE_PAUSE_SECONDS)


def _flush(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _explain(path: Path, error: OSError) -> str:
    reasons = {
        errno.ENOENT: f"the folder {path.parent} does not exist; create it or name another",
        errno.ENOTDIR: f"{path.parent} is a file, not a folder; name another place",
        errno.EACCES: f"the folder {path.parent} may not be written to; name another place",
        errno.EROFS: f"{path.parent} is read-only; name another place",
        errno.ENAMETOOLONG: f"its name of {len(os.fsencode(path.name))} bytes, or its path, is too "
        "long for this drive, which usually takes names of 255 bytes; name it shorter",
        errno.ENOSPC: "the disk is full; free some space and run again",
        errno.EISDIR: f"{path} is a folder; name a file",
    }
    reason = reasons.get(error.errno or 0, str(error))
    return f"{path} could not be written: {reason}."
