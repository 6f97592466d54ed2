"""Test `rlvr data`: export from the hub's format, import on a machine without the hub, and overlap with training prompts."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from rlvr_sweeps import cli
from rlvr_sweeps.assets import problems, transfer
from rlvr_sweeps.assets.locations import cache_dir
from rlvr_sweeps.assets.problems import imported_path, load_problems
from rlvr_sweeps.cli import sources
from rlvr_sweeps.errors import Refused
from tests.conftest import choices

COUNTS = {"aime24": 30, "aime25": 30, "amc": 40, "hmmt": 30, "math500": 500, "minerva": 272}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Write a data set in the format of a hub download; return its source. The cache is a temporary folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "hub" / "exam"
    folder.mkdir(parents=True)
    rows = [{"problem": f"Wie groß ist {n}+{n}?", "solution": str(2 * n), "id": n} for n in range(30)]
    Dataset.from_list(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    return {"path": str(folder), "revision": None, "subset": None, "split": "train", "question": "problem",
            "answer": "solution", "problems": 30, "k": 32}  # fmt: skip


def test_an_imported_set_equals_the_exported_one(source, tmp_path):
    exported = load_problems(source)
    transfer.export_sets(tmp_path / "export", {"exam": source})
    transfer.import_sets(tmp_path / "export", {"exam": source})
    assert imported_path(source).is_relative_to(cache_dir())
    Path(source["path"], "train-00000-of-00001.parquet").unlink()  # the source cannot be reached
    assert load_problems(source) == exported and len(exported) == 30 and exported[3].answer == "6"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "exam.jsonl").write_text("{}\n"), "differs from the exported file"),
        (lambda folder: (folder / "exam.jsonl").unlink(), "is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest"),
        (lambda folder: edit(folder, rows=29), "the manifest says 29"),
        (lambda folder: edit(folder, source={"path": "elsewhere"}), "is not the source of any configuration here"),
    ],
)
def test_a_damaged_export_is_refused_and_nothing_is_stored(source, tmp_path, damage, message):
    folder = tmp_path / "export"
    transfer.export_sets(folder, {"exam": source})
    damage(folder)
    with pytest.raises(Refused, match=message):
        transfer.import_sets(folder, {"exam": source})
    assert not imported_path(source).exists()


def edit(folder, **values):
    """Change values of the exported set in the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["exam"] |= values
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_set_of_another_size_is_refused(source, tmp_path):
    with pytest.raises(Refused, match="configuration says 31"):
        transfer.export_sets(tmp_path / "export", {"exam": source | {"problems": 31}})
    with pytest.raises(Refused, match="without the field 'reponse'"):
        transfer.export_sets(tmp_path / "export", {"exam": source | {"answer": "reponse"}})


def test_the_papers_sets_have_the_revisions_counts_and_k_of_table_2(composer):
    known = sources("r1_qwen_1_5b")
    assert {name: known[name]["problems"] for name in COUNTS} == COUNTS
    assert {name: known[name]["k"] for name in COUNTS} == {**dict.fromkeys(COUNTS, 32), "math500": 4, "minerva": 4}
    assert known["dapo_math_17k"]["subset"] == "all"
    assert set(known) == {*COUNTS, "dapo_math_17k"} <= {*choices("benchmark"), *choices("data")}
    assert all(len(source["revision"]) == 40 for source in known.values())


def test_without_the_hub_the_error_names_the_import_command(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match="rlvr data import FOLDER"):
        cli.main(["data", "export", str(tmp_path / "out"), "aime24"])
    with pytest.raises(SystemExit, match="There is no problem set aime26"):
        cli.main(["data", "import", str(tmp_path / "out"), "aime26"])


LONG = "Find the number of positive integers n at most 100 such that n squared plus one is divisible by five."


@pytest.mark.parametrize(
    ("question", "overlaps"),
    [
        (LONG, True),
        ("Let us see. " + LONG.upper().replace("  ", " ") + " Explain.", True),
        (" ".join(LONG.split()[:12]), False),  # only twelve of its words
        (" ".join(LONG.split()[:13]), True),
        ("What is 1+1?", True),
        ("What is 1+2?", False),
        ("What is 1*1?", False),
        ("求满足条件的正整数的个数并写出它们的和", True),
    ],
)
def test_thirteen_consecutive_common_words_are_an_overlap(question, overlaps):
    training = [LONG, "what is 1 + 1", "题目:求满足条件的正整数的个数并写出它们的和。"]
    assert problems.overlapping_ids(training, [("id", question)]) == (["id"] if overlaps else [])


def test_a_run_records_overlap_and_warns(prepared, twelve, capsys):
    from rlvr_sweeps.training.train import build

    run, cfg = prepared(f"benchmark.tier1.path={twelve}", "benchmark.tier1.problems=12")
    _, facts = build(run, cfg)
    assert len(facts["data"]["overlap"]["tier1"]) == 12 and "tier2" not in facts["data"]["overlap"]
    assert "12 of 12 problems of tier1 share" in capsys.readouterr().out


def test_the_embedded_world_has_no_overlap(world):
    training = [problem.question for problem in load_problems(world["data"])]
    assert problems.overlap_by_benchmark(world["benchmark"], training) == {}
