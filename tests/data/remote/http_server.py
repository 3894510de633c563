"""A file server for tests, run as a process of its own: `http_server.py FOLDER` prints its port.

POST /_set takes a JSON object: ranges (bool), login ("user:password"), token (a query parameter), delay (seconds of
every answer), faults (a list; each is used up by one GET that it fits):
    {"path": suffix, "kind": "status", "status": 503}   also with "retry_after"
    {"kind": "slow"}      headers, then nothing for 30 s       {"kind": "cut"}     half of the body, then the end
    {"kind": "short"}     half of the body, said to be all     {"kind": "long"}    one byte more than asked for
    {"kind": "flip"}      a body with every "t" changed        {"kind": "nolength", ...}  cut, without a Content-Length
GET /_log gives [path, range] of every request so far, and how many ran at the same time at most.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import threading
import time
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

STATE: dict[str, Any] = {"ranges": True, "login": None, "token": None, "delay": 0.0, "faults": []}
LOG: list[list[Any]] = []
BUSY = {"now": 0, "most": 0}
LOCK = threading.Lock()


def next_fault(path: str) -> dict[str, Any]:
    with LOCK:
        for number, fault in enumerate(STATE["faults"]):
            if path.endswith(fault.get("path", "")):
                times = fault.get("times", 1)
                if times > 1:
                    fault["times"] = times - 1
                    return fault
                return STATE["faults"].pop(number)
    return {"kind": "none"}


@lru_cache(maxsize=8)
def content(file: Path, _changed: int) -> bytes:
    return file.read_bytes()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder = Path()

    def do_POST(self) -> None:
        STATE.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.answer(200, b"")

    def do_GET(self) -> None:
        if self.path == "/_log":
            self.answer(200, json.dumps({"requests": LOG, "most": BUSY["most"]}).encode())
            return
        with LOCK:
            BUSY["now"] += 1
            BUSY["most"] = max(BUSY["most"], BUSY["now"])
        try:
            time.sleep(STATE["delay"])
            self.serve()
        finally:
            with LOCK:
                BUSY["now"] -= 1

    def serve(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        LOG.append([path, self.headers.get("Range")])
        file = self.folder / path.lstrip("/")
        login = base64.b64encode((STATE["login"] or "").encode()).decode()
        if STATE["login"] and self.headers.get("Authorization") != f"Basic {login}":
            self.answer(401, b"")
        elif STATE["token"] and parse_qs(parts.query).get("token") != [STATE["token"]]:
            self.answer(403, b"")
        elif file.is_dir():
            self.answer(200, "".join(f'<a href="{p.name}">{p.name}</a>' for p in sorted(file.iterdir())).encode())
        elif not file.is_file():
            self.answer(404, b"")
        else:
            self.send_file(content(file, file.stat().st_mtime_ns), next_fault(path))

    def send_file(self, data: bytes, fault: dict[str, Any]) -> None:
        if fault["kind"] == "status":
            wait = {"Retry-After": str(fault["retry_after"])} if "retry_after" in fault else {}
            self.answer(fault["status"], b"", **wait)
            return
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "") if STATE["ranges"] else None
        if asked is None:
            self.answer(200, data, fault["kind"])
            return
        start, stop = int(asked[1]), min(int(asked[2]) + 1, len(data))
        if start >= len(data):
            self.answer(416, b"", **{"Content-Range": f"bytes */{len(data)}"})
            return
        where = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        self.answer(206, data[start:stop], fault["kind"], **where)

    def answer(self, status: int, body: bytes, kind: str = "none", **headers: str) -> None:
        half = body[: len(body) // 2]
        said = {"short": half, "long": body + b"!"}.get(kind, body)
        sent = {"short": half, "long": body + b"!", "cut": half, "nolength": half, "slow": b""}.get(kind, body)
        if kind == "flip":
            sent = bytes(byte ^ 1 if byte == ord("t") else byte for byte in body)  # texts, not only tar headers
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if kind == "nolength":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(sent)
        self.wfile.flush()
        if kind == "slow":
            time.sleep(30)
        if kind in ("cut", "nolength", "slow"):
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    Handler.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
