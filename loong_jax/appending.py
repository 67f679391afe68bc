"""Files that grow record by record, each of them whole."""

import errno
import os
from pathlib import Path


def append_whole(path: Path, record: bytes) -> None:
    """Append all of ``record`` to a file, at once, or nothing.

    Raises:
        OSError: there is no room for it, or the file cannot be written.
    """
    with path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            if file.write(record) < len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(end)
            raise
