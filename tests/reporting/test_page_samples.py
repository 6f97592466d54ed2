"""Test the report in a real browser: the content, selection, filters, and that the page loads and runs nothing foreign."""

import json

import pytest

from rlvr_sweeps.evaluation.regrade import write_samples
from rlvr_sweeps.files import read_json, read_rows, write_json
from rlvr_sweeps.reporting.page.report import PAGE_BYTES, write_report
from rlvr_sweeps.reporting.page.samples import SHAPES, TEXT, Column, choose_samples, matrices_of, pack, summary_sentence
from tests.conftest import requested

HOSTILE = "</script><img src=x onerror=\"document.title='caught'\"><script>document.title='caught'</script>\u2028\ud800"


@pytest.fixture
def opened(driver, tmp_path):
    """Write the report of the test's runs and open it; it must load no other file and print nothing on the console."""

    def open_it():
        from selenium.webdriver.support.ui import WebDriverWait

        page, _, rows, _ = write_report(tmp_path / "runs", tmp_path / "report.html")
        assert page.stat().st_size < PAGE_BYTES
        driver.get("about:blank")
        requested(driver)
        driver.get(page.as_uri())
        if rows:
            WebDriverWait(driver, 20).until(lambda page_driver: page_driver.find_element("id", "browse").is_displayed())
        assert set(requested(driver)) == {page.as_uri()}
        assert driver.get_log("browser") == []
        return driver

    return open_it


def text(driver, selector):
    return driver.find_element("css selector", selector).text


def cell(driver, problem, run):
    return driver.find_element("css selector", f"td[data-problem='{problem}'][data-run='{run}']")


def choose(driver, element_id, value):
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element("id", element_id)).select_by_value(value)


def shown_rows(driver):
    return len(driver.find_elements("css selector", "#grid tbody tr"))


def store_questions(run, **questions):
    """Store questions as the evaluate stage does."""
    right = read_json(run.right_path)
    stored = {
        name: {
            problem: [f"{number}? " + questions.get(name, ""), str(number)] for number, problem in enumerate(entry["right"], 1)
        }
        for name, entry in right.items()
    }
    write_json(run.questions_path, stored)


def test_numbers_are_the_summaries_and_cells_open_their_completions(evaluated, opened):
    runs = [evaluated("peft=lora", right=1), evaluated("peft=dora", right=3), evaluated("peft=none", right=2)]
    for run in runs:
        store_questions(run)
    driver = opened()
    table = text(driver, "#accuracy table")
    for run in runs:
        summary = json.loads(run.summary_path.read_text())
        assert f"{100 * summary['avg']:.1f} ± {100 * summary['avg_se']:.1f}" in table
        assert f"{100 * summary['tier2/avg']:.1f} ± {100 * summary['tier2/avg_se']:.1f}" in table
    choose(driver, "benchmark", "1")
    labels = [header.text for header in driver.find_elements("css selector", "#grid thead th")]
    dora = next(index for index, label in enumerate(labels) if label.startswith("DoRA")) - 1
    assert cell(driver, 0, dora).text == "3"
    cell(driver, 0, dora).click()
    reading = text(driver, "#reading")
    assert "3 of 4" in reading and "1?" in reading and reading.count("</think>\\boxed{1}") == 3
    assert "wrong (wrong form) · answer none · 5 tokens · sample 3" in reading


def test_hostile_completions_are_text(evaluated, opened):
    run = evaluated()
    rows = read_rows(run.samples_path("tier1"))
    for row in rows:
        row |= {"text": HOSTILE + row["text"], "answer": HOSTILE}
    write_samples(run, "tier1", rows)
    store_questions(run, tier1=HOSTILE)
    write_json(run.failure_path, {"error": HOSTILE})
    driver = opened()
    cell(driver, 0, 0).click()
    shown = driver.execute_script("return document.getElementById('reading').textContent.split('onerror').length - 1")
    assert shown == 1 + 4 * 2  # the question; of each sample its answer and its text
    assert driver.title == "RLVR sweep: runs" and not driver.find_elements("tag name", "img")
    assert driver.get_log("browser") == []


def test_the_keyboard_and_the_filters(evaluated, opened):
    from selenium.webdriver.common.keys import Keys

    for run in (evaluated("peft=lora", right=0), evaluated("peft=dora", right=4)):
        store_questions(run, tier2="about triangles")
    driver = opened()
    assert shown_rows(driver) == 3
    choose(driver, "filter", "differ")
    assert shown_rows(driver) == 0 and "0 of 3 problems of tier1" in text(driver, "#count")
    choose(driver, "filter", "every")
    assert shown_rows(driver) == 3
    choose(driver, "benchmark", "1")
    assert shown_rows(driver) == 0
    choose(driver, "filter", "differ")
    assert shown_rows(driver) == 3
    driver.find_element("id", "search").send_keys("2? about TRI")
    assert shown_rows(driver) == 1
    driver.find_element("id", "search").clear()
    driver.find_element("id", "search").send_keys(" ")
    assert shown_rows(driver) == 3
    driver.execute_script("document.querySelector('#grid td[tabindex=\"0\"]').focus()")
    for key in (Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ENTER):
        driver.switch_to.active_element.send_keys(key)
    assert "problem 2" in text(driver, "#reading h3") and driver.switch_to.active_element.get_attribute("id") == "reading"
    driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert driver.switch_to.active_element.get_attribute("aria-selected") == "true"


def test_runs_evaluated_differently_are_shown_without_differences(evaluated, opened):
    for method, temperature in (("peft=lora", 0.6), ("peft=dora", 0.7)):
        evaluated(method, f"evaluation.temperature={temperature}")
    driver = opened()
    assert "were not all evaluated in the same way" in text(driver, "#accuracy")
    assert not driver.find_elements("id", "differences")
    assert len(driver.find_elements("css selector", "#grid thead th")) == 3


def test_a_folder_without_a_finished_run(prepared, opened):
    prepared()
    driver = opened()
    assert "No run has finished yet." in text(driver, "#accuracy") and "new" in text(driver, "#unfinished")


def columns_of(runs):
    return [Column(run, run.name, read_json(run.right_path)) for run in runs]


def lengthen(run, benchmark, characters):
    rows = read_rows(run.samples_path(benchmark))
    for number, row in enumerate(rows):
        row["text"] = f"begin {number} " + "x" * characters + " end"
    write_samples(run, benchmark, rows)


def test_completions_fit_the_budget(evaluated):
    """Test that a smaller budget gives fewer and shorter completions, then only the problems on which runs differ most."""
    runs = [evaluated("peft=lora", right=1), evaluated("peft=dora", right=4)]
    for run in runs:
        for tier in ("tier1", "tier2"):
            lengthen(run, tier, 20_000)
    columns = columns_of(runs)
    matrices = matrices_of(columns)
    large = choose_samples(columns, matrices, 10**6)
    assert len(large) == 12 and all(len(cell) == 4 for cell in large.values())
    assert "48 of 48 samples can be read here; 48 of them are cut" in summary_sentence(columns, matrices, large)
    head, missing, tail = large["0.0.0"][0][TEXT]
    assert head.startswith("begin 0") and tail.endswith(" end") and len(head) + len(tail) == SHAPES[0][1]
    assert missing == len(read_rows(runs[0].samples_path("tier1"))[0]["text"]) - SHAPES[0][1]
    short = choose_samples(columns, matrices, 24 * 1000)
    assert len(short) == 12 and {len(cell) for cell in short.values()} == {2}
    assert sorted(sample[1] for sample in short["1.0.0"]) == [0, 1]  # one right and three wrong: one of each
    few = choose_samples(columns, matrices, 8 * 1000)
    assert 0 < len(few) < 12 and {key.rpartition(".")[0] for key in few} >= {"1.0"}
    assert choose_samples(columns, matrices, 0) == {}


def test_the_size_limit_holds_and_equal_runs_give_equal_bytes(evaluated):
    run = evaluated()
    lengthen(run, "tier2", 5_000)
    first, second = (pack([(run, "LoRA")], 6_000) for _ in range(2))
    assert first == second and len(first.text) <= 6_000
    run.samples_path("tier1").unlink()  # samples may be deleted while the summaries remain
    assert "in 3 of 6 cells" in pack([(run, "LoRA")], 10**6).summary
