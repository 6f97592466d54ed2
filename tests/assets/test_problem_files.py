"""Test problem files: .jsonl, .csv, .parquet and files on the hub, message lists, mapped columns, and splits by seed."""

import csv
import datetime
import decimal
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pyarrow
import pyarrow.parquet
import pytest

from rlvr_sweeps.assets.problem_files import read_problem_file
from rlvr_sweeps.assets.problems import is_on_this_machine, load_problems, messages, same_question
from rlvr_sweeps.assets.transfer import export_sets, import_sets
from rlvr_sweeps.config.identity import run_id
from rlvr_sweeps.errors import Damaged, Refused

ROWS = [{"problem": f'{n} + {n}, "in words"?\nYes', "solution": f"00{n}", "level": "easy"} for n in range(40)]
FIELDS = ("data.question=problem", "data.answer=solution")


def written(folder, suffix, rows=ROWS):
    """Write rows as a file of a format; return its path."""
    path = folder / f"rows.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == "csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:  # with the mark that spreadsheets write
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def source(composer, path, *overrides):
    """Return the training data of a configuration."""
    return composer.point(["data=local", f"data.path={path}", *overrides]).cfg["data"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_every_format_has_the_same_problems(composer, tmp_path, suffix):
    problems = load_problems(source(composer, written(tmp_path, suffix), *FIELDS))
    assert [(problem.question, problem.answer) for problem in problems] == [(row["problem"], row["solution"]) for row in ROWS]
    first = {**ROWS[0], "question": ROWS[0]["problem"], "answer": "000"}
    assert problems[0].columns == first  # every field by its own name, and the two that every problem has


def test_values_that_json_lacks(tmp_path):
    row = {
        "at": datetime.date(2026, 11, 28), "sum": decimal.Decimal("1.50"), "nothing": float("nan"), "parts": [{"a": 1}],
        "image": b"\x00",
    }  # fmt: skip
    assert read_problem_file(written(tmp_path, "parquet", [row])) == [
        {"at": "2026-11-28", "sum": "1.50", "nothing": None, "parts": [{"a": 1}]}
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("a.csv", "question,answer\n1?,1\n2?\n", "line 3 has not as many fields"), ("a.csv", 'question\n"1\n', "is not CSV"),
     ("a.parquet", "PAR1", "it is not Parquet"), ("a.csv", b"question\n\xff\n", "byte 9 is not UTF-8")],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Damaged, match=rf"{name} is damaged: .*{message}"):
        read_problem_file(tmp_path / name)


def test_message_lists_are_prompts(composer, tmp_path):
    """A list in .jsonl, and the same list as JSON text in .csv."""
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}
    rows = [{"question": [system, user], "answer": 4}]
    (from_json,) = load_problems(source(composer, written(tmp_path, "jsonl", rows)))
    (from_csv,) = load_problems(
        source(composer, written(tmp_path, "csv", [{"question": json.dumps([system, user]), "answer": 4}]))
    )
    assert messages(from_json, None) == messages(from_csv, None) == [system, user]
    assert from_json.id == from_csv.id and from_json.question == "Be brief.\n\n2 + 2?"
    with pytest.raises(Refused, match=r"model\.system_prompt is set, but .*'Be brief\.'"):
        messages(from_json, "Think.")
    for question in ([{"role": "assistant", "content": "4"}], ["2 + 2?"], [], [{"role": "user"}]):
        with pytest.raises(Refused, match="of which the last has the role user"):
            load_problems(source(composer, written(tmp_path, "jsonl", [{"question": question, "answer": 4}])))


def test_columns_are_mapped_and_refused(composer, tmp_path):
    path = written(tmp_path, "csv")
    (first, *_) = load_problems(source(composer, path, *FIELDS, "+data.columns={ground_truth: solution}"))
    assert first.columns["ground_truth"] == "000" and first.columns["level"] == "easy"
    for overrides, message in (
        ([], r"has no field 'question'; its fields are level, problem, solution"),
        ([*FIELDS, "+data.columns.unit=units"], "has no field 'units'"),
        ([*FIELDS, "+data.columns.question=level"], r"set by a setting of its own: data\.question=FIELD"),
        ([*FIELDS, "+data.columns.completions=level"], "a name that verifiers get already"),
    ):
        with pytest.raises(Refused, match=message):
            load_problems(source(composer, path, *overrides))
    later = written(tmp_path, "jsonl", [{"question": "1?", "answer": "1"}, {"question": "2?"}])
    with pytest.raises(Refused, match="has no field in row 2: 'answer'"):
        load_problems(source(composer, later))


def test_a_seed_splits_a_file_into_disjoint_parts(composer, tmp_path):
    copies = [{**row, "problem": f"{row['problem'].upper()} "} for row in ROWS[:10]]  # the same questions in another spelling
    path = written(tmp_path, "csv", ROWS + copies)

    def split(*overrides):
        cfg = composer.point(
            ["data=local", f"data.path={path}", *FIELDS, "benchmark=split", "data.test_size=10", *overrides]
        ).cfg
        return cfg, load_problems(cfg["data"]), load_problems(cfg["benchmark"]["split"])

    cfg, trained, tested = split()
    questions = [{same_question(problem.question) for problem in part} for part in (trained, tested)]
    assert len(tested) == 10 and not questions[0] & questions[1] and len(questions[0] | questions[1]) == 40
    assert split()[1:] == (trained, tested)
    other, _, other_tested = split("data.test_seed=1")
    assert {problem.id for problem in other_tested} != {problem.id for problem in tested} and run_id(other) != run_id(cfg)
    assert len(split("data.test_size=11")[2]) == 11
    held_out = split("data.holdout=5", "+benchmark/extra@benchmark=heldout")[0]["benchmark"]["heldout"]
    assert not {problem.id for problem in load_problems(held_out)} & {problem.id for problem in tested}
    for overrides, message in (
        (["data.test_size=50"], r"data\.test_size=50 leaves nothing to train on: the set has 50"),
        (["data.test_size=0"], r"data\.test_size=0 is not possible"),
        (["data.test_size=null"], r"needs the number of test problems: data\.test_size=100"),
        (["benchmark.split.test_seed=3"], "test set of another split"),
    ):
        with pytest.raises(Refused, match=message):
            split(*overrides)
    with pytest.raises(Refused, match="use benchmark=reasoning_gym"):
        composer.point(["data=gcd", "benchmark=split"])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Start a server that answers as the hub does for one file at one commit; yield the requested paths."""
    content, commit, requested = written(tmp_path, "csv").read_bytes(), "a" * 40, []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer()
            if self.command == "GET":
                self.wfile.write(content)

        def answer(self):
            requested.append(self.path)
            is_there = self.path == f"/datasets/me/sums/resolve/{commit}/data/rows.csv"
            self.send_response(200 if is_there else 404)
            headers = {"ETag": '"1"', "X-Repo-Commit": commit} if is_there else {"X-Error-Code": "EntryNotFound"}
            for name, value in (headers | {"Content-Length": str(len(content) if is_there else 0)}).items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from huggingface_hub import constants

    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    yield requested
    server.shutdown()


def test_a_file_on_the_hub_is_downloaded_once_at_its_commit(composer, tmp_path, hub, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = "hf://me/sums/data/rows.csv"
    pinned = source(composer, path, *FIELDS, f"data.revision={'a' * 40}")
    assert not is_on_this_machine(pinned)
    assert len(load_problems(pinned)) == 40 and len(load_problems(pinned)) == 40
    assert len([path for path in hub if path.startswith("/datasets")]) == 2  # a HEAD and a GET
    with pytest.raises(Refused, match=r"hf://me/sums/data/rows\.csv at revision main could not be loaded .*rlvr data export"):
        load_problems(source(composer, path, *FIELDS))
    with pytest.raises(Refused, match=r"names no file\. Write hf://OWNER/NAME/FILE"):
        load_problems(source(composer, "hf://me/sums", *FIELDS))
    export_sets(tmp_path / "exported", {"sums": pinned})
    import_sets(tmp_path / "exported", {"sums": pinned})
    assert is_on_this_machine(pinned) and len(load_problems(pinned)) == 40
