"""A local replacement of W&B's server for tests: GraphQL, the file stream, file uploads; it can refuse requests or not answer.

It stores the data that the real SDK sends and answers the SDK's queries. An unknown query is an error with the query's name, so
that no test passes because of an empty answer.
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
class StoredRun:
    """A run as a server stores it."""

    name: str
    project: str
    fields: dict[str, Any] = field(default_factory=dict)  # displayName, groupName, jobType, tags, state
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
    """The server; `refuse` is an HTTP status, "hang" or None, for paths that contain `only`."""

    def __init__(self) -> None:
        self.runs: dict[str, StoredRun] = {}
        self.views: list[dict[str, Any]] = []
        self.refuse: int | str | None = None
        self.only = ""
        self.released = threading.Event()
        handler = type("Handler", (Handler,), {"server_side": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # a client may close the connection
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, operation: str, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        handlers: dict[str, Callable[[str, dict[str, Any]], Any]] = {
            "Viewer": self.viewer, "GetDefaultEntity": self.viewer, "RunResumeStatus": self.resume_status,
            "UpsertBucket": self.upsert,
            "ServerFeaturesQuery": lambda *_: {"serverInfo": {"features": []}}, "CreateRunFiles": self.create_files,
            "Run": self.single_run, "Runs": self.all_runs, "RunFiles": self.run_files, "GetProjects": self.projects,
            "UpsertView2": self.upsert_view,
            "upsertView": self.upsert_view,
            "ProjectInternalId": lambda *_: {"project": {"id": "1", "internalId": "1"}},
        }  # fmt: skip
        if operation not in handlers:
            return {"errors": [{"message": f"unknown operation {operation}: {query} {variables}"}]}
        return {"data": handlers[operation](query, variables)}

    def viewer(self, *_: Any) -> Any:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {"viewer": {"id": "1", "entity": ENTITY, "username": "someone", "email": "", "flags": "{}", "teams": teams}}

    def resume_status(self, _: str, variables: dict[str, Any]) -> Any:
        run = self.runs.get(variables["name"])
        entity = {"id": "1", "name": ENTITY}
        history, events = (run.lines.get(f"wandb-{kind}.jsonl", []) if run else [] for kind in ("history", "events"))
        bucket = run and {
            "id": run.name, "name": run.name, "summaryMetrics": json.dumps(run.summary), "config": json.dumps(run.config),
            "displayName": run.fields["displayName"], "logLineCount": 0, "historyLineCount": len(history),
            "eventsLineCount": len(events), "historyTail": json.dumps(history[-1:]), "eventsTail": json.dumps(events[-1:]),
            "tags": run.fields["tags"], "notes": None, "wandbConfig": json.dumps(run.config["_wandb"]["value"]),
        }  # fmt: skip
        return {"model": {"id": "1", "name": variables["project"], "entity": entity, "bucket": bucket}}

    def upsert(self, _: str, variables: dict[str, Any]) -> Any:
        name = variables["name"]
        inserted = name not in self.runs
        run = self.runs.setdefault(name, StoredRun(name, variables["project"]))
        run.fields |= {key: value for key, value in variables.items() if value is not None and key != "config"}
        run.config |= json.loads(variables["config"] or "{}")
        project = {"id": "1", "name": run.project, "entity": {"id": "1", "name": ENTITY}}
        bucket = {
            "id": name, "name": name, "displayName": run.fields["displayName"], "description": None, "sweepName": None,
            "config": json.dumps(run.config), "project": project,
            "historyLineCount": len(run.lines.get("wandb-history.jsonl", [])),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def create_files(self, _: str, variables: dict[str, Any]) -> Any:
        names = variables["files"]
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{variables['run']}/{name}"} for name in names]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def node(self, run: StoredRun) -> dict[str, Any]:
        return {
            "id": run.name, "name": run.name, "displayName": run.fields.get("displayName"), "tags": run.fields.get("tags"),
            "state": "finished", "group": run.fields.get("groupName"), "jobType": run.fields.get("jobType"), "sweepName": None,
            "config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}",
            "historyLineCount": len(run.history), "historyKeys": None, "projectId": "1", "commit": None, "readOnly": False,
            "createdAt": "2026-01-01T00:00:00", "heartbeatAt": "2026-01-01T00:00:00", "description": None, "notes": None,
            "user": {"name": "someone", "username": "someone"},
        }  # fmt: skip

    def single_run(self, _: str, variables: dict[str, Any]) -> Any:
        run = self.runs.get(variables["name"])
        return {"project": {"run": self.node(run) if run and run.project == variables["project"] else None}}

    def all_runs(self, _: str, variables: dict[str, Any]) -> Any:
        nodes = [
            {"node": self.node(run), "cursor": run.name} for run in self.runs.values() if run.project == variables["project"]
        ]
        page = {"endCursor": None, "hasNextPage": False}
        return {
            "project": {
                "internalId": "1",
                "runCount": len(nodes),
                "readOnly": False,
                "runs": {"edges": nodes, "pageInfo": page},
            }
        }

    def run_files(self, _: str, variables: dict[str, Any]) -> Any:
        run = self.runs[variables["name"]]
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

    def upsert_view(self, _: str, variables: dict[str, Any]) -> Any:
        self.views.append(variables | {"spec": json.loads(variables["spec"])})
        project = {"id": "1", "name": variables["projectName"], "entityName": ENTITY}
        view = {"id": str(len(self.views)), "name": variables["name"], "project": project, "updatedAt": "2026-01-01T00:00:00"}
        view |= {key: variables[key] for key in ("type", "displayName", "description", "spec")}
        return {"upsertView": {"view": view, "inserted": True}}

    def stream(self, name: str, sent: dict[str, Any]) -> None:
        """Store a post of the file stream: lines of files from an offset on."""
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

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        server = self.server_side
        if server.refuse and server.only in self.path:
            if server.refuse == "hang":
                server.released.wait(120)
                self.close_connection = True
                return
            self.respond(b'{"errors": [{"message": "refused"}]}', int(server.refuse))
        elif self.path == "/graphql":
            request = json.loads(body)
            (operation,) = re.findall(r"(?:query|mutation)\s+(\w+)", request["query"])[:1]
            self.respond(json.dumps(server.answer(operation, request["query"], request.get("variables") or {})).encode())
        elif stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            server.stream(stream.group(1), json.loads(body))
            self.respond(b"{}")
        elif stored := re.fullmatch(r"/storage/([^/]+)/(.+)", self.path):
            run, name = stored.groups()
            if self.command == "PUT":
                server.runs[run].files[name] = body
                self.respond(b"")
            else:
                self.respond(server.runs[run].files[name])
        else:
            self.respond(b"{}", 404)

    do_GET = do_POST = do_PUT = handle_request  # noqa: N815

    def respond(self, content: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass
