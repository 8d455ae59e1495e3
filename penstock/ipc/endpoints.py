"""Where the sockets of one engine are: a private directory. Loads no socket library, so that a process can be told its
address before this one has loaded anything."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

# A Unix socket's path must fit sockaddr_un.sun_path: 108 bytes on Linux, 104 on macOS, with the final zero.
_MAX_PATH = 100


class PrivateEndpoints:
    """A fresh directory that only this user can enter, with one socket path per direction.

    ``address`` names one that somebody else has made, and will remove.
    """

    def __init__(self, address: str | None = None) -> None:
        self._is_own = address is None
        if address is not None:
            self._directory = Path(address)
            return
        self._directory = Path(tempfile.mkdtemp(prefix="penstock-"))
        if len(str(self._directory)) + len("/to-client") > _MAX_PATH:
            self._directory.rmdir()
            self._directory = Path(tempfile.mkdtemp(prefix="penstock-", dir="/tmp"))

    @property
    def address(self) -> str:
        """What the engine process is told: the directory."""
        return str(self._directory)

    def remove(self) -> None:
        if self._is_own:
            shutil.rmtree(self._directory, ignore_errors=True)


def to_engine(address: str) -> str:
    return f"ipc://{address}/to-engine"


def to_client(address: str) -> str:
    return f"ipc://{address}/to-client"
