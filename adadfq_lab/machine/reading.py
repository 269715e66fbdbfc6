"""Reading a file that the user names: only regular files, never more than a limit, and one line about what is wrong.

A folder, a FIFO (opening one blocks), a device without an end, a missing file, a name that the file system does not
take and a file without permission each raise a UserError that names the file. Everything in the package that opens a user's
file goes through `open_regular`, or asks `check_regular` first if a library opens the file itself.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from adadfq_lab.errors import UserError

LIMIT = 2**26
"""Default limit of `read_bytes` and `read_json`, in bytes."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_regular(path: Path) -> os.stat_result:
    """Returns the status of the regular file `path`, without opening it; raises UserError if it is anything else."""
    try:
        return _regular(path, os.stat(path))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def open_regular(path: Path) -> BinaryIO:
    """Opens the regular file `path` for reading, unbuffered; raises UserError if it is missing, unreadable or not a file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO without a writer does not block
    except (OSError, ValueError) as error:
        check_regular(path)  # a socket cannot be opened, but its kind says more than the system's error
        raise _unreadable(path, error) from None
    try:
        _regular(path, os.fstat(handle))
    except BaseException:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb", buffering=0)


def read_bytes(path: Path, *, limit: int = LIMIT) -> bytes:
    """The content of `path`; raises UserError as `open_regular` does, and if the file is larger than `limit` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UserError(f"{path} has {size:,} bytes, more than the {limit:,} that such a file may have")
        try:
            content = b""
            while len(content) <= limit and (more := file.read(limit + 1 - len(content))):
                content = content + more if content else more
        except OSError as error:
            raise _unreadable(path, error) from None
    return content[:limit]


def read_json(path: Path, *, limit: int = LIMIT) -> Any:
    """What the JSON file `path` holds; raises UserError as `read_bytes` does, and if it is not JSON."""
    try:
        return json.loads(read_bytes(path, limit=limit))
    except UserError:
        raise
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: it is not JSON") from None


def _regular(path: Path, status: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is {_KINDS.get(stat.S_IFMT(status.st_mode), 'not a file')}; give a file")
    return status


def _unreadable(path: Path, error: OSError | ValueError) -> UserError:
    """One line about why `path` cannot be read. A ValueError is about a name with a null character."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, FileNotFoundError):
        return UserError(f"there is no file {path}")
    reason = error.strerror if isinstance(error, OSError) else "its name holds a null character"
    return UserError(f"cannot read {path}: {reason}")
