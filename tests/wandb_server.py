"""As much of W&B's server as a run and `wandb sync` talk to: it keeps what it is sent, and knows no artifact to be read."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """What was sent, by the run's id."""

    def __init__(self) -> None:
        self.address = ""
        self.groups: dict[str, str] = {}
        self.history: dict[str, list[tuple[int, list[dict[str, Any]]]]] = defaultdict(list)  # (place of the first row, rows) a request
        self.alerts: dict[str, list[tuple[str, str]]] = defaultdict(list)
        self.artifacts: list[tuple[str, str, frozenset[str]]] = []  # name, type, aliases
        self.files: dict[str, int] = {}  # name -> bytes

    def query(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """The answer to a GraphQL operation."""
        if name == "UpsertBucket":
            if values.get("groupName"):
                self.groups[values["name"]] = values["groupName"]
            project = {"id": "p", "name": values["project"], "entity": {"id": "e", "name": "me"}}
            bucket = {"id": values["name"], "name": values["name"], "config": values.get("config") or "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}
        if name == "RunResumeStatus":
            rows = [row for _, rows in self.history[values["name"]] for row in rows]
            counts = {"historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0}
            tails = {"historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]), "eventsTail": "[]", "summaryMetrics": "{}"}
            bucket = {"id": values["name"], "name": values["name"], "config": "{}", "tags": [], "wandbConfig": '{"t": 1}'} | counts | tails
            return {"model": {"id": "p", "name": "p", "internalId": "1", "entity": {"id": "e", "name": "me"}, "bucket": bucket}}
        if name == "NotifyScriptableRunAlert":
            self.alerts[values["runName"]].append((values["title"], values["text"]))
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.address}/upload/{file}"} for file in values["files"]]
            return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": files}}
        if name == "CreateArtifact":
            given = values["input"]
            aliases = frozenset(one["alias"] for one in given["aliases"])
            self.artifacts.append((given["artifactCollectionName"], given["artifactTypeName"], aliases))
            sequence = {"id": "s", "latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": given["digest"], "state": "COMMITTED", "artifactSequence": sequence}}}
        if name == "Viewer":
            return {"viewer": {"id": "u", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}}
        return {"serverInfo": {"features": []}, "project": None}

    def stream(self, run_id: str, files: dict[str, Any]) -> None:
        if "wandb-history.jsonl" in files:
            sent = files["wandb-history.jsonl"]
            self.history[run_id].append((sent["offset"], [json.loads(row) for row in sent["content"]]))


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            reply: dict[str, Any] = {}
            if self.path.startswith("/graphql"):
                asked = json.loads(body)
                reply = {"data": server.query(asked["operationName"], asked.get("variables") or {})}
            elif self.path.endswith("/file_stream"):
                server.stream(self.path.split("/")[-2], json.loads(body).get("files") or {})
            elif self.path.startswith("/upload/"):
                server.files[self.path.removeprefix("/upload/")] = len(body)
            data = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, *words: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.address = f"http://127.0.0.1:{http.server_address[1]}"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield server
        http.shutdown()
