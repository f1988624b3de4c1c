"""A release mirror: serves Ollama releases under the paths that the project's own releases have."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tests.lab.ollama_release import ARCHIVE_NAME, CHECKSUM_NAME, OllamaRelease
from tests.lab.serving import Answer, FileServer


class ReleaseMirror(FileServer):
    """`/v<version>/ollama-linux-amd64.tar.zst` and `/v<version>/sha256sum.txt` for the given releases.

    Beside the faults of every file server: `wrong_checksum` makes the checksum file tell a wrong sum.
    """

    def __init__(self, releases: Iterable[OllamaRelease]) -> None:
        super().__init__()
        self._releases = {release.version: release for release in releases}
        self.wrong_checksum = False

    def reset(self) -> None:
        super().reset()
        self.wrong_checksum = False

    def answer(self, path: str, host: str) -> Answer:
        asked = re.fullmatch(r"/v([^/]+)/([^/]+)", path)
        release = self._releases.get(asked[1]) if asked else None
        if asked and release and asked[2] == ARCHIVE_NAME:
            return Answer(file=release.archive, headers={"Content-Type": "application/octet-stream"})
        if asked and release and asked[2] == CHECKSUM_NAME:
            sha256 = "0" * 64 if self.wrong_checksum else release.sha256
            return Answer(body=f"{sha256}  ./{ARCHIVE_NAME}\n".encode(), headers={"Content-Type": "text/plain"})
        return Answer(status=404, body=b"Not Found\n")
