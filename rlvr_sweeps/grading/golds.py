"""Find gold answers that can be compared only as text, so that a right answer in another spelling is judged wrong."""

from collections.abc import Iterable

from rlvr_sweeps.grading.latex import MAX_LENGTH, tidy
from rlvr_sweeps.grading.numbers import read_number
from rlvr_sweeps.grading.sandbox import readable
from rlvr_sweeps.grading.tasks import is_task_gold

MAX_GOLDS = 2_000  # checked gold answers of one set that are no plain numbers: about ten seconds on two workers


def unreadable(golds: Iterable[str]) -> list[str]:
    """Return the distinct gold answers that can be compared only as text, of the first MAX_GOLDS that are no plain numbers."""
    distinct = [gold for gold in dict.fromkeys(golds) if not is_task_gold(gold) and read_number(tidy(gold)) is None]
    checked = distinct[:MAX_GOLDS]
    short = [gold for gold in checked if len(gold) <= MAX_LENGTH]
    is_readable = dict(zip(short, readable(short), strict=True))
    return [gold for gold in checked if not is_readable.get(gold)]
