"""An S3 server on this machine's loopback, in a process of its own, that notes every request."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

BUCKET = "bucket"
PATIENCE_SECONDS = 60.0
_SERVE = """
import sys
answer, sys.stdout = sys.stdout, sys.stderr
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
print(server.get_host_and_port()[1], file=answer, flush=True)
sys.stdin.read()
server.stop()
"""
_LINE = re.compile(r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/1\.[01]" (?P<status>[0-9]+)')
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Request(NamedTuple):
    """One line of the server's log; 206 is a range."""

    method: str
    path: str
    status: int


class S3:
    """The server; `environment` is what reaches it."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "requests"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        assert self._process.stdout is not None
        self.http = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.http,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "PREDISTILL_CACHE": str(folder / "cache"),
        }

    def make_bucket(self) -> None:
        """The one that all tests write to."""
        import s3fs

        s3fs.S3FileSystem().mkdir(BUCKET)

    def requests(self, below: str = "") -> list[Request]:
        """What was asked of it so far, below a path of the bucket."""
        time.sleep(0.05)  # the last answer is logged by another process
        lines = _COLOUR.sub("", self._log.read_text(encoding="utf-8", errors="replace")).splitlines()
        found = [Request(m["method"], m["path"], int(m["status"])) for m in map(_LINE.search, lines) if m]
        return [request for request in found if request.path.startswith(f"/{BUCKET}/{below}")]

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(PATIENCE_SECONDS)
        finally:
            self._process.kill()
