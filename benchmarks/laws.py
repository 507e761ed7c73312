"""Fits of laws: seconds on one thread for a cold start, and for what the intervals and the comparison of forms cost.

Tables are simulated: 40 runs of a saturating law over two decades, and a Chinchilla-style table of 240 runs with the
parameters that Besiroglu et al. 2024 found and the ranges of N and D of Hoffmann et al. 2022. Beside our search stands
the usual one: scipy's L-BFGS-B from many starts, one after the other, on the same loss.

    python benchmarks/laws.py [--rounds 3] [--starts 200]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from rankscale import laws

BESIROGLU = {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658}


def chinchilla(noise: float = 0.003, runs: int = 240) -> laws.Points:
    """Loss over N and D: log-uniform between the ends of the published table, with errors of ln loss."""
    rng = np.random.default_rng(0)
    n, d = x = np.exp(rng.uniform(np.log([5.7e7, 8e8]), np.log([1.6e10, 3.2e11]), (runs, 2))).T
    e, a, alpha, b, beta = BESIROGLU.values()
    return laws.points(
        x.T, (e + a / n**alpha + b / d**beta) * np.exp(noise * rng.normal(size=runs)), ("N", "D", "loss")
    )


def rising(runs: int = 40) -> laws.Points:
    """Quality over rank: a saturating law with 3 % noise."""
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(np.log(3), np.log(600), runs))
    return laws.points(x, (0.8 - 1.2 * x**-0.5) * np.exp(0.03 * rng.normal(size=runs)), ("rankme", "quality"))


def seconds_of(call: Callable[[], object], rounds: int) -> float:
    """Median of the process's own seconds over rounds, after one that is not counted."""
    taken = []
    for _ in range(rounds + 1):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
    return median(taken[1:])


def one_by_one(found: laws.Fit, starts: int) -> float:
    """The smallest loss that L-BFGS-B finds from random starts in the same boxes."""
    problem = found.problem
    boxes = np.array([search.start for search in found.form.search(problem.frame)])
    weights = np.ones((1, len(found.points)))

    def loss(theta: np.ndarray) -> tuple[float, np.ndarray]:
        residual, gradient = problem.residuals(theta[None])
        return problem.objective(residual, weights)[0], gradient[0].T @ np.clip(residual[0] / problem.delta, -1, 1)

    bounds = list(zip(*problem.bounds(), strict=True))
    first = boxes[:, 0] + np.random.default_rng(0).random((starts, len(boxes))) * np.ptp(boxes, axis=1)
    ends = [
        minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500}) for start in first
    ]
    return min(end.fun for end in ends)


def report(name: str, data: laws.Points, options: argparse.Namespace) -> None:
    found = laws.fit(name, data)
    cold = seconds_of(lambda: laws.fit(name, data), options.rounds)
    drawn = seconds_of(lambda: laws.bootstrap(found), options.rounds)
    held = seconds_of(lambda: laws.extrapolate(name, data), options.rounds)
    profile = seconds_of(lambda: laws.profile(found), options.rounds) if found.form.limit else 0.0
    print(
        f"{name:14} {len(data):5} {cold:9.3f} {drawn:11.2f} {profile:9.2f} {held:13.2f} {len(found.optima):7}", end=""
    )
    if options.starts:
        started = time.process_time()
        other = one_by_one(found, options.starts)
        taken = time.process_time() - started
        own = found.objective / found.problem.delta
        print(f"   {taken:8.2f} s, loss larger by {other / own - 1:8.1e}", end="")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--starts", type=int, default=200, help="of L-BFGS-B, one by one; 0: leave it out")
    options = parser.parse_args()
    with threadpool_limits(1):
        print("seconds of one thread; fit: 4096 starts; bootstrap: 1000 resamples; extrapolation: four splits")
        print(
            f"{'form':14} {'runs':>5} {'fit':>9} {'bootstrap':>11} {'profile':>9} {'extrapolation':>13} {'optima':>7}",
            end="",
        )
        print(f"   L-BFGS-B from {options.starts} starts" if options.starts else "")
        for form in laws.ONE_VARIABLE:
            report(form.name, rising(), options)
        report("joint", chinchilla(), options)
        found = laws.fit("joint", chinchilla(noise=1e-6)).parameters
        worst = max(abs(found[name] / value - 1) for name, value in BESIROGLU.items())
        print(f"\nalmost no noise: the joint law's parameters come back within {worst:.1e}")


if __name__ == "__main__":
    main()
