"""Regular files: those that can be opened and read to their end.

To open a pipe waits until somebody writes to it, and a device may have no end. So a file that a
user names is looked at before it is opened.
"""

import os
import stat
from pathlib import Path


def problem(path: Path) -> str | None:
    """Why there is no regular file at this path, in a few words; None if there is one."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "a link to a file that does not exist" if path.is_symlink() else "no such file"
    except (OSError, ValueError) as error:  # a circle of links, no permission, a NUL in the name
        return (getattr(error, "strerror", None) or str(error)).lower()
    if stat.S_ISDIR(mode):
        return "a folder"
    if not stat.S_ISREG(mode):
        return "a pipe, a socket or a device, and no regular file"
    return None
