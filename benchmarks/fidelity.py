"""How often the rule of benchbench.fidelity.judge says `differs` of a build that answers as its baseline does.

Markdown on stdout, in minutes. Starts are simulated: a model gives each place of eight answers of 32 tokens five
likeliest tokens; a start moves each of their logarithms by a normal amount, and takes the likeliest. After another
token there are other tokens. All starts, of both sides, are drawn the same way.
"""

from __future__ import annotations

import argparse
import math
from itertools import combinations

import numpy as np

from benchbench.fidelity import judge as fidelity
from benchbench.fidelity.answers import GreedyAnswer, StartAnswers

QUESTIONS, PLACES, TOP = 8, 32, 5
NOISES = (0.005, 0.02, 0.1)
BLOCKS = (2, 3, 6)
SLACKS = (1.0, 1.5, 2.0, 3.0)


def model(seed: int) -> np.ndarray:
    """Log-probabilities of the likeliest tokens: (questions, places, tokens). One place in twelve is a near tie."""
    generator = np.random.default_rng(seed)
    gaps = generator.exponential(1.5, (QUESTIONS, PLACES, TOP))
    gaps[..., 1] *= np.where(generator.random((QUESTIONS, PLACES)) < 1 / 12, 0.03, 1.0)
    gaps[..., 0] = 0.1
    return -np.cumsum(gaps, axis=-1)


def start(truth: np.ndarray, noise: float, generator: np.random.Generator) -> StartAnswers:
    """What one start answers."""
    answers = []
    for question, moved in enumerate(truth + generator.normal(0.0, noise, truth.shape)):
        tokens, top, parted = [], [], 0
        for place, logs in enumerate(moved):
            best = int(np.argmax(logs))
            names = [parted * 10_000 + (question * PLACES + place) * TOP + k for k in range(TOP)]
            tokens.append(names[best])
            top.append(dict(zip(names, logs.tolist(), strict=True)))
            parted = parted * 7 + best if best else parted
        answers.append(GreedyAnswer(tuple(tokens), tuple(map(max, (place.values() for place in top))), tuple(top)))
    return StartAnswers("id", "q", tuple(answers))


def alarms(blocks: int, noise: float, runs: int) -> list[float]:
    """The share of runs in which the rule says `differs`, for each of SLACKS."""
    counts = [0] * len(SLACKS)
    for run in range(runs):
        truth, generator = model(run), np.random.default_rng((run, blocks))
        base, candidate = ([start(truth, noise, generator).answers for _ in range(blocks)] for _ in range(2))
        band = fidelity.worst(fidelity.difference(a, b) for a, b in combinations(base, 2))
        found = fidelity.worst(fidelity.difference(a, b) for a in base for b in candidate)
        for k, slack in enumerate(SLACKS):
            fidelity.SLACK = slack
            counts[k] += not fidelity.inside(found, band)
    return [count / runs for count in counts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    print("| noise of a logarithm | blocks |", " | ".join(f"slack {slack:g}" for slack in SLACKS), "|")
    print("|---|---|" + "---|" * len(SLACKS))
    for noise in NOISES:
        for blocks in BLOCKS:
            found = " | ".join(f"{100 * share:.1f} %" for share in alarms(blocks, noise, runs))
            print(f"| {noise:g} | {blocks} | {found} |")
    worst = 100 * math.sqrt(0.25 / runs)
    print(f"\n{runs} runs a row; the standard error is {worst:.1f} points at most.")


if __name__ == "__main__":
    main()
