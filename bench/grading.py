"""Completions graded per second: ours, math-verify called directly, TRL's accuracy reward. Same completions, interleaved.

python bench/grading.py        about two minutes
"""

import random
import statistics
import time

from math_verify import parse, verify
from trl.rewards import accuracy_reward

from rlvr_sweeps.grading import grader, sandbox

BATCH, ROUNDS = 128, 3
LENGTHS = (500, 5_000, 60_000)
FILLER = "so we have that the value of x is 3 and then $y = x^2 + 1$ hence by symmetry we get 12, wait, let me check again."
HOSTILE = [r"9^{9^{9^{9}}}", r"10^{10^{10}}", "1000000!", "(" * 200 + "x" + ")" * 200]


def integers(rng):
    return str(rng.randint(0, 999)), str(rng.randint(0, 999))


def latex(rng):
    """Half right in another spelling, half wrong; every pair a new one, as in training."""
    a, b, c = rng.randint(2, 99), rng.randint(2, 99), rng.randint(2, 9)
    right = rng.random() < 0.5
    return rng.choice(
        [
            (rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{a * c}}}{{{b * c if right else b * c + 1}}}"),
            (rf"{a}\sqrt{{{c}}}", rf"\sqrt{{{a * a * c if right else a * a * c + 1}}}"),
            (f"({a},{b}]", f"({a}, {b}]" if right else f"[{a}, {b}]"),
            (f"(x+{a})^2", f"x^2+{2 * a}x+{a * a if right else b}"),
            (rf"{a}\pi", rf"\pi \cdot {a if right else a + 1}"),
            (f"{a},{b},{c}", f"{c},{b},{a}" if right else f"{a},{b}"),
        ]
    )


def completions(kind, length, seed):
    rng = random.Random(seed)
    pairs = [kind(rng) for _ in range(BATCH)]
    filler = " ".join(rng.choices(FILLER.split(), k=length // 4))[:length]
    return [f"{filler}</think>The answer is \\boxed{{{answer}}}." for _, answer in pairs], [gold for gold, _ in pairs]


def ours(texts, golds):
    grader._cache.clear()
    return [verdict.correct for verdict in grader.grade_all(texts, golds)]


def directly(texts, golds):
    return [bool(verify(parse(f"\\boxed{{{gold}}}"), parse(text))) for text, gold in zip(texts, golds, strict=True)]


def trl(texts, golds):
    rewards = accuracy_reward([[{"content": text}] for text in texts], [f"\\boxed{{{gold}}}" for gold in golds])
    return [bool(reward) for reward in rewards]


def seconds(grader, texts, golds):
    start = time.perf_counter()
    verdicts = grader(texts, golds)
    return time.perf_counter() - start, verdicts


def main():
    sandbox.verdicts([("x", "y")])  # our judge's start, once per training process: said below, not hidden in a round
    sandbox.close()
    start = time.perf_counter()
    sandbox.verdicts([("x", "y")])
    print(f"start of the judge, once per process: {time.perf_counter() - start:.1f} s\n")
    print("answers   characters     ours/s  math-verify/s     TRL/s   vs math-verify  vs TRL   verdicts that differ")
    for kind in (integers, latex):
        for length in LENGTHS:
            times = {grader: [] for grader in (ours, directly, trl)}
            differ = 0
            for seed in range(ROUNDS):
                texts, golds = completions(kind, length, seed)
                verdicts = {}
                for one, spent in times.items():
                    took, verdicts[one] = seconds(one, texts, golds)
                    spent.append(took)
                differ += sum(a != b for a, b in zip(verdicts[ours], verdicts[directly], strict=True))
            mine, verify_s, trl_s = (statistics.median(spent) for spent in times.values())
            print(
                f"{kind.__name__:9} {length:10,} {BATCH / mine:10,.0f} {BATCH / verify_s:14,.0f} {BATCH / trl_s:9,.0f}"
                f" {verify_s / mine:15.1f}x {trl_s / mine:6.1f}x   {differ} of {BATCH * ROUNDS}"
            )
    texts, golds = completions(latex, 5_000, 99)
    usual, _ = seconds(ours, texts, golds)
    for name, hostile in {
        "16 hostile answers, refused for their size": HOSTILE * 4,
        "16 hostile answers that look innocent, each different": [rf"\sqrt{{{9980 + n}!+1}}" for n in range(16)],
    }.items():
        spoiled = [f"</think>\\boxed{{{answer}}}" for answer in hostile] + texts[16:]
        took, _ = seconds(ours, spoiled, [r"\sqrt{2}"] * 16 + golds[16:])
        print(f"a batch of {BATCH}: {usual:.2f} s; with {name}: {took:.2f} s")


if __name__ == "__main__":
    main()
