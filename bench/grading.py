"""Measure completions graded per second by rlvr_sweeps, by math-verify called directly, and by TRL's accuracy reward.

All three grade the same completions, in alternating rounds.

python bench/grading.py        takes about three minutes
"""

import random
import statistics
import time
from collections import Counter

from math_verify import parse, verify
from trl.rewards import accuracy_reward

from rlvr_sweeps.grading import budget, grader, sandbox

BATCH, ROUNDS = 128, 3
LENGTHS = (500, 5_000, 60_000)  # characters of a completion
FILLER = "so we have that the value of x is 3 and then $y = x^2 + 1$ hence by symmetry we get 12, wait, let me check again."
# Expressions that would take minutes or gigabytes to evaluate; the size check refuses them.
HOSTILE = [r"9^{9^{9^{9}}}", r"10^{10^{10}}", "1000000!", "(" * 200 + "x" + ")" * 200]
# Parts of random formulas that pass the size check, and whose comparison takes seconds or does not end; N is a random number.
LEAVES = ["N!", "7^{N}", r"\binom{N}{4999}", r"\sqrt{N!}", r"\frac{N!}{3^{N}}"]
OPERATIONS = [
    r"\sqrt{A+B}", r"\frac{A+1}{B-1}", r"\sin(A+B)", r"\ln(A\cdot B)", r"(A+B)^{\frac{1}{3}}", r"\lfloor A\cdot\sqrt{B}\rfloor",
    "|A-B|", r"\arctan(A/B)", r"e^{\sin A}\cdot B",
]  # fmt: skip


def integers(rng):
    """Return a random gold integer and an independent answer."""
    return str(rng.randint(0, 999)), str(rng.randint(0, 999))


def latex(rng):
    """Return a random gold answer in LaTeX and an answer in another spelling, half of them wrong; pairs rarely repeat."""
    a, b, c = rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 9)
    correct = rng.random() < 0.5
    return rng.choice(
        [
            (rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{a * c}}}{{{b * c if correct else b * c + 1}}}"),
            (rf"{a}\sqrt{{{c}}}", rf"\sqrt{{{a * a * c if correct else a * a * c + 1}}}"),
            (f"({a},{b}]", f"({a}, {b}]" if correct else f"[{a}, {b}]"),
            (f"(x+{a})^2", f"x^2+{2 * a}x+{a * a if correct else b}"),
            (rf"{a}\pi", rf"\pi \cdot {a if correct else a + 1}"),
            (f"{a},{b},{c}", f"{c},{b},{a}" if correct else f"{a},{b}"),
        ]
    )


def hostile(rng, depth=3):
    """Return a random formula that takes long to compare."""
    if depth == 0 or rng.random() < 0.15:
        return rng.choice(LEAVES).replace("N", str(rng.randint(9000, 9999)))
    parts = {"A": hostile(rng, depth - 1), "B": hostile(rng, depth - 1)}
    return "".join(parts.get(character, character) for character in rng.choice(OPERATIONS))


def completions(make_pair, length, seed):
    """Return BATCH completions of about `length` characters and their gold answers."""
    rng = random.Random(seed)
    pairs = [make_pair(rng) for _ in range(BATCH)]
    filler = " ".join(rng.choices(FILLER.split(), k=length // 4))[:length]
    return [f"{filler}</think>The answer is \\boxed{{{answer}}}." for _, answer in pairs], [gold for gold, _ in pairs]


def grade(texts, golds):
    """Return the verdicts of rlvr_sweeps, computed without its cache."""
    grader._caches.clear()
    return [verdict.correct for verdict in grader.grade_all(texts, golds)]


def grade_by_math_verify(texts, golds):
    """Return the verdicts of math-verify."""
    return [bool(verify(parse(f"\\boxed{{{gold}}}"), parse(text))) for text, gold in zip(texts, golds, strict=True)]


def grade_by_trl(texts, golds):
    """Return the verdicts of TRL's accuracy reward."""
    rewards = accuracy_reward([[{"content": text}] for text in texts], [f"\\boxed{{{gold}}}" for gold in golds])
    return [bool(reward) for reward in rewards]


def timed(grade_batch, texts, golds):
    """Return the seconds of grading a batch, and the verdicts."""
    start = time.perf_counter()
    verdicts = grade_batch(texts, golds)
    return time.perf_counter() - start, verdicts


def main():
    """Print the rates by kind of answer and length, and the seconds of batches with hostile answers."""
    sandbox.verdicts([("x", "y")])  # the first start also imports modules
    sandbox.close()
    start = time.perf_counter()
    sandbox.verdicts([("x", "y")])
    print(f"start of the judge process, once per training process: {time.perf_counter() - start:.1f} s\n")
    print("completions graded per second, and the ratio of rlvr_sweeps to math-verify and to TRL")
    print("answers   characters  rlvr_sweeps  math-verify       TRL   / math-verify   / TRL   different verdicts")
    for make_pair in (integers, latex):
        for length in LENGTHS:
            times = {grade_batch: [] for grade_batch in (grade, grade_by_math_verify, grade_by_trl)}
            differences = 0
            for seed in range(ROUNDS):
                texts, golds = completions(make_pair, length, seed)
                verdicts = {}
                for grade_batch, values in times.items():
                    seconds, verdicts[grade_batch] = timed(grade_batch, texts, golds)
                    values.append(seconds)
                differences += sum(a != b for a, b in zip(verdicts[grade], verdicts[grade_by_math_verify], strict=True))
            own_s, verify_s, trl_s = (statistics.median(values) for values in times.values())
            print(
                f"{make_pair.__name__:9} {length:10,} {BATCH / own_s:12,.0f} {BATCH / verify_s:12,.0f} {BATCH / trl_s:9,.0f}"
                f" {verify_s / own_s:14.1f}x {trl_s / own_s:6.1f}x   {differences} of {BATCH * ROUNDS}"
            )
    texts, golds = completions(latex, 5_000, 99)
    ordinary_s, _ = timed(grade, texts, golds)
    for label, answers in {
        "16 answers that the size check refuses": HOSTILE * 4,
        "16 answers of one shape that pass the size check and do not end": [rf"\sqrt{{{9980 + n}!+1}}" for n in range(16)],
    }.items():
        hostile_texts = [f"</think>\\boxed{{{answer}}}" for answer in answers] + texts[16:]
        hostile_s, _ = timed(grade, hostile_texts, [r"\sqrt{2}"] * 16 + golds[16:])
        print(f"a batch of {BATCH}: {ordinary_s:.2f} s; with {label}: {hostile_s:.2f} s")
    rng = random.Random(0)
    answers = list(dict.fromkeys(hostile(rng) for _ in range(3000)))[:1024]
    start = time.perf_counter()
    reasons = Counter(sandbox.verdicts([(answer, r"\sqrt{2}") for answer in answers]))
    seconds = time.perf_counter() - start
    shapes = len({budget.shape(answer) for answer in answers})
    print(f"a batch of {len(answers)} different hostile answers, of {shapes} shapes: {seconds:.0f} s, {dict(reasons)}")


if __name__ == "__main__":
    main()
