"""Test how many threads a process of a run has."""

import pytest

from rlvr_sweeps.files import write_json
from rlvr_sweeps.launching.threads import thread_count
from rlvr_sweeps.runs.directory import Run


@pytest.fixture
def cfg(composer, tmp_path):
    """Return the configuration of a run that leaves the number of threads to the launch."""
    return composer.point(["cluster.threads=null", f"runs_dir={tmp_path}"]).cfg


def test_the_processes_of_a_run_share_its_cores(cfg):
    four = cfg | {"distributed": cfg["distributed"] | {"processes": 4}}
    assert [thread_count(Run.of(cfg), config, cores=6) for config in (cfg, four)] == [6, 1]
    assert thread_count(Run.of(cfg), four, cores=2) == 1  # more processes than cores


def test_a_run_that_continues_keeps_the_number_that_it_began_with(cfg):
    run = Run.of(cfg)
    write_json(run.record_path, {"surroundings": {"threads": 3}})
    assert thread_count(run, cfg, cores=8) == 3


def test_a_run_whose_record_and_configuration_name_no_number_has_one_thread(cfg):
    """Runs of versions that did not record it are such runs."""
    cluster = {name: value for name, value in cfg["cluster"].items() if name != "threads"}
    run = Run.of(cfg)
    write_json(run.record_path, {"surroundings": {}})
    assert thread_count(run, cfg | {"cluster": cluster}, cores=8) == 1


def test_a_number_that_the_user_sets_is_used(cfg):
    run = Run.of(cfg)
    write_json(run.record_path, {"surroundings": {"threads": 3}})
    assert thread_count(run, cfg | {"cluster": cfg["cluster"] | {"threads": 5}}, cores=8) == 5


def test_the_embedded_model_has_one_thread(composer, tmp_path):
    cfg = composer.point([f"runs_dir={tmp_path}"]).cfg
    assert thread_count(Run.of(cfg), cfg, cores=8) == 1
