"""tools/audit asks about every version, and says so when nobody answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import ModuleType
from typing import Any

import pytest

from tests import programs


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return programs.load("audit", monkeypatch)


@pytest.fixture
def database() -> Iterator[str]:
    """Knows of a hole in one package, whatever its version."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            results = [
                {"vulns": [{"id": "GHSA-1"}]} if query["package"]["name"] == "protobuf" else {}
                for query in asked["queries"]
            ]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"results": results}).encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_pinned_and_lowest_versions_are_asked_about(tool: ModuleType) -> None:
    asked = tool.versions()
    assert len(set(asked)) == len(asked)
    for dependency in ("torch", "numpy", "lmdb", "click", "h5py", "onnx"):
        assert len([name for name, _ in asked if name == dependency]) >= 2
    assert "protobuf" in {name for name, _ in asked}


def test_what_is_known_is_told(
    tool: ModuleType, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(database) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("audit: protobuf ")
    assert said[0].endswith(": GHSA-1")
    assert said[-1].endswith(f"something is known of {len(said) - 1}")
    assert tool.known_holes([("torch", "2.13.0")], database) == []


def test_silence_is_told(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main("http://127.0.0.1:1") == 0
    assert capsys.readouterr().out.startswith("audit: NOT DONE, http://127.0.0.1:1 gives no answer")
