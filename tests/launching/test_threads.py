"""Test how many threads a process of a run has, how they wait, and which settings of the environment are the user's."""

import os
import subprocess
import sys

import pytest

from rlvr_sweeps.files import write_json
from rlvr_sweeps.launching.stages import process_environment
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


def test_torchs_threads_look_for_work_briefly_before_they_sleep():
    """With libgomp's default, threads that wait take the cores from other programs, and from the threads that they wait for."""
    environment = process_environment(os.environ | {"OMP_DISPLAY_ENV": "verbose"})
    displayed = subprocess.run(
        [sys.executable, "-c", "import torch"], env=environment, capture_output=True, text=True, check=True
    )
    assert "GOMP_SPINCOUNT = '10000'" in displayed.stderr


def test_settings_of_the_allocator_and_of_waiting_are_the_users_where_they_are_set():
    assert process_environment({})["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    own = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512", "GOMP_SPINCOUNT": "5", "OMP_NUM_THREADS": "8"}
    assert process_environment(own).items() >= (own | {"OMP_NUM_THREADS": "1"}).items()
