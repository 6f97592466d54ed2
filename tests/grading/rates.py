"""Print how often the grader and math-verify agree with the table of answers, and how many near misses each of them accepts.

    python -m tests.grading.rates        takes a few minutes

The table is answers.jsonl. A near miss is a gold answer of the table that was changed in one place (test_near_misses.py), or
the gold answer of another problem. math-verify is called directly, as most graders call it.
"""

import random
from collections import Counter, defaultdict

from math_verify import parse, verify

from rlvr_sweeps.grading.grader import compare_all
from tests.grading.test_near_misses import EQUAL, GOLDS, ROW_GAP, ROWS, changed, groups, has_unit, spelling

PAIRS_OF_GOLDS = 5_000


def by_math_verify(answer, gold):
    """Return whether math-verify accepts an answer."""
    try:
        return bool(verify(parse(rf"\boxed{{{gold}}}"), parse(rf"\boxed{{{answer}}}")))
    except Exception:  # the parser raises many types of exceptions
        return False


def print_agreement():
    """Print the agreement with the table, by the origin of its rows and by the table's verdict."""
    reasons = compare_all(dict.fromkeys((row["answer"], row["gold"]) for row in ROWS))
    counts = defaultdict(Counter)
    for row in ROWS:
        expected = row["verdict"] == "correct"
        origin = "written here" if row.get("source", "own") == "own" else "from outside"
        counts[origin, "right" if expected else "wrong"].update(
            rows=1,
            ours=(reasons[row["answer"], row["gold"]] == "correct") == expected,
            math_verify=by_math_verify(row["answer"], row["gold"]) == expected,
        )
    print("answers       expected   rows   this grader   math-verify")
    for (origin, expected), count in sorted(counts.items()):
        print(f"{origin:13} {expected:8} {count['rows']:6} {count['ours']:13} {count['math_verify']:13}")


def print_near_misses():
    """Print how many near misses each grader accepts."""
    rng = random.Random(0)
    same = groups([*EQUAL, *({row["answer"], row["gold"]} for row in ROWS if row["verdict"] == "correct")])
    golds = [gold for gold in GOLDS if not has_unit(gold)]
    others = {tuple(rng.sample(golds, 2)) for _ in range(PAIRS_OF_GOLDS)}
    kinds = {
        "changed in one place": {
            (text, gold) for gold in GOLDS for text in changed(gold) if text != gold and not ROW_GAP.search(gold)
        },
        "of another problem": {
            pair for pair in others if not any(set(pair) <= group for group in same) and len(set(map(spelling, pair))) == 2
        },
    }
    print("\nnear misses             pairs   accepted here   by math-verify")
    for kind, pairs in kinds.items():
        accepted = sum(reason == "correct" for reason in compare_all(pairs).values())
        print(f"{kind:22} {len(pairs):6} {accepted:15} {sum(by_math_verify(*pair) for pair in pairs):16}")


if __name__ == "__main__":
    print_agreement()
    print_near_misses()
