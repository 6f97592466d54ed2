"""A small stand-in for W&B's server, on loopback: GraphQL, the file stream, file uploads; and refusals, time-outs, silence.

It keeps what the real SDK sends and answers the queries that the real SDK makes; a query it does not know is an error that
names it, so that a test which passes did not pass by an empty answer.
"""

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "people"


@dataclass
class Kept:
    """One run, as a server keeps it."""

    name: str
    project: str
    stated: dict[str, Any] = field(default_factory=dict)  # displayName, groupName, jobType, tags, state
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)  # of each streamed file
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    preempting: bool = False

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]


class Server:
    """`refuse` is an HTTP status, "hang" or None; `only`: which paths it is about."""

    def __init__(self) -> None:
        self.runs: dict[str, Kept] = {}
        self.views: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.refuse: int | str | None = None
        self.only = ""
        self.released = threading.Event()
        handler = type("Handler", (Handler,), {"server_side": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # a client that hangs up
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, operation: str, query: str, given: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(operation)
        known: dict[str, Callable[[str, dict[str, Any]], Any]] = {
            "Viewer": self.viewer, "GetDefaultEntity": self.viewer, "RunResumeStatus": self.resume_status,
            "UpsertBucket": self.upsert,
            "ServerFeaturesQuery": lambda *_: {"serverInfo": {"features": []}}, "CreateRunFiles": self.create_files,
            "Run": self.one_run, "Runs": self.all_runs, "RunFiles": self.run_files, "GetProjects": self.projects,
            "UpsertView2": self.upsert_view,
            "upsertView": self.upsert_view,
            "ProjectInternalId": lambda *_: {"project": {"id": "1", "internalId": "1"}},
        }  # fmt: skip
        if operation not in known:
            return {"errors": [{"message": f"the stand-in does not know {operation}: {query} {given}"}]}
        return {"data": known[operation](query, given)}

    def viewer(self, *_: Any) -> Any:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {"viewer": {"id": "1", "entity": ENTITY, "username": "someone", "email": "", "flags": "{}", "teams": teams}}

    def resume_status(self, _: str, given: dict[str, Any]) -> Any:
        run = self.runs.get(given["name"])
        entity = {"id": "1", "name": ENTITY}
        history, events = (run.lines.get(f"wandb-{kind}.jsonl", []) if run else [] for kind in ("history", "events"))
        bucket = run and {
            "id": run.name, "name": run.name, "summaryMetrics": json.dumps(run.summary), "config": json.dumps(run.config),
            "displayName": run.stated["displayName"], "logLineCount": 0, "historyLineCount": len(history),
            "eventsLineCount": len(events), "historyTail": json.dumps(history[-1:]), "eventsTail": json.dumps(events[-1:]),
            "tags": run.stated["tags"], "notes": None, "wandbConfig": json.dumps(run.config["_wandb"]["value"]),
        }  # fmt: skip
        return {"model": {"id": "1", "name": given["project"], "entity": entity, "bucket": bucket}}

    def upsert(self, _: str, given: dict[str, Any]) -> Any:
        name = given["name"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, Kept(name, given["project"]))
        run.stated |= {key: value for key, value in given.items() if value is not None and key != "config"}
        run.config |= json.loads(given["config"] or "{}")
        project = {"id": "1", "name": run.project, "entity": {"id": "1", "name": ENTITY}}
        bucket = {
            "id": name, "name": name, "displayName": run.stated["displayName"], "description": None, "sweepName": None,
            "config": json.dumps(run.config), "project": project,
            "historyLineCount": len(run.lines.get("wandb-history.jsonl", [])),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def create_files(self, _: str, given: dict[str, Any]) -> Any:
        names = given["files"]
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{given['run']}/{name}"} for name in names]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def node(self, run: Kept) -> dict[str, Any]:
        return {
            "id": run.name, "name": run.name, "displayName": run.stated.get("displayName"), "tags": run.stated.get("tags"),
            "state": "finished", "group": run.stated.get("groupName"), "jobType": run.stated.get("jobType"), "sweepName": None,
            "config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}",
            "historyLineCount": len(run.history), "historyKeys": None, "projectId": "1", "commit": None, "readOnly": False,
            "createdAt": "2026-01-01T00:00:00", "heartbeatAt": "2026-01-01T00:00:00", "description": None, "notes": None,
            "user": {"name": "someone", "username": "someone"},
        }  # fmt: skip

    def one_run(self, _: str, given: dict[str, Any]) -> Any:
        run = self.runs.get(given["name"])
        return {"project": {"run": self.node(run) if run and run.project == given["project"] else None}}

    def all_runs(self, _: str, given: dict[str, Any]) -> Any:
        nodes = [{"node": self.node(run), "cursor": run.name} for run in self.runs.values() if run.project == given["project"]]
        page = {"endCursor": None, "hasNextPage": False}
        return {
            "project": {
                "internalId": "1",
                "runCount": len(nodes),
                "readOnly": False,
                "runs": {"edges": nodes, "pageInfo": page},
            }
        }

    def run_files(self, _: str, given: dict[str, Any]) -> Any:
        run = self.runs[given["name"]]
        nodes = [
            {"cursor": name, "node": {
                "id": name, "name": name, "url": f"{self.url}/storage/{run.name}/{name}", "sizeBytes": len(content), "md5": "",
                "directUrl": f"{self.url}/storage/{run.name}/{name}", "mimetype": "", "updatedAt": "2026-01-01T00:00:00",
            }}
            for name, content in run.files.items()
        ]  # fmt: skip
        page = {"endCursor": None, "hasNextPage": False}
        files = {"fileCount": len(nodes), "files": {"edges": nodes, "pageInfo": page}}
        return {"project": {"internalId": "1", "run": files}}

    def projects(self, *_: Any) -> Any:
        nodes = [
            {"__typename": "Project", "id": "1", "name": name, "entityName": ENTITY, "createdAt": "2026-01-01T00:00:00",
             "isBenchmark": False, "user": None}
            for name in {"rlvr_sweeps", *(run.project for run in self.runs.values())}
        ]  # fmt: skip
        edges = [{"node": node} for node in nodes]
        return {"models": {"pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}, "edges": edges}}

    def upsert_view(self, _: str, given: dict[str, Any]) -> Any:
        self.views.append(given | {"spec": json.loads(given["spec"])})
        project = {"id": "1", "name": given["projectName"], "entityName": ENTITY}
        view = {"id": str(len(self.views)), "name": given["name"], "project": project, "updatedAt": "2026-01-01T00:00:00"}
        view |= {key: given[key] for key in ("type", "displayName", "description", "spec")}
        return {"upsertView": {"view": view, "inserted": True}}

    def stream(self, name: str, sent: dict[str, Any]) -> None:
        """What the file stream posts: lines of a file from an offset on, as the server keeps them."""
        run = self.runs[name]
        for file, chunk in sent.get("files", {}).items():
            if file == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
                continue
            lines = run.lines.setdefault(file, [])
            lines[chunk["offset"] : chunk["offset"] + len(chunk["content"])] = chunk["content"]
        if sent.get("complete"):
            run.exit_code = sent.get("exitcode")
        run.preempting = run.preempting or bool(sent.get("preempting"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_side: Server

    def handle_it(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        side = self.server_side
        if side.refuse and side.only in self.path:
            if side.refuse == "hang":
                side.released.wait(120)
                self.close_connection = True
                return
            self.say(b'{"errors": [{"message": "refused"}]}', int(side.refuse))
        elif self.path == "/graphql":
            asked = json.loads(body)
            (operation,) = re.findall(r"(?:query|mutation)\s+(\w+)", asked["query"])[:1]
            self.say(json.dumps(side.answer(operation, asked["query"], asked.get("variables") or {})).encode())
        elif stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            side.stream(stream.group(1), json.loads(body))
            self.say(b"{}")
        elif stored := re.fullmatch(r"/storage/([^/]+)/(.+)", self.path):
            run, name = stored.groups()
            if self.command == "PUT":
                side.runs[run].files[name] = body
                self.say(b"")
            else:
                self.say(side.runs[run].files[name])
        else:
            self.say(b"{}", 404)

    do_GET = do_POST = do_PUT = handle_it  # noqa: N815

    def say(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass
