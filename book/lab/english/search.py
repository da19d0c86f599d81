"""The search: shapes and learning rates of a contender, on the development split, by one rule for all."""

import dataclasses
import functools
import itertools
from collections.abc import Callable

from ..runs import climb, line, rates_inside
from .contenders import CONTENDERS, SHAPES
from .run import FEW_SHOTS, N_TEST, SHOTS, Run
from .tasks import DEVELOPMENT
from .training import OWN_RATE

# Of the factors, 0.0001 to 7: each is 1.3 to 1.7 times the one before.
RATES = tuple(float(f"{digits}e{e}") for e in range(-4, 1) for digits in (1, 1.5, 2, 3, 5, 7))
OWN_RATES = (0.01, 0.03, 0.1, 0.3, 1.0)  # of routing or vectors, while many tasks are learned
FEW_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)  # few-shot
SGD_RATES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of the factors, with SGD in place of Adam
SGD_OWN_RATES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
SEEDS = (1, 2)
STEPS = 300  # of the search over shapes
# Of shapes and rates, {width: (so many for every contender, and more only at an open edge)}
TRIALS = {64: (14, 20), 256: (10, 16)}

# What a trial of a shape is judged by, beside the training tasks: transfer from 16 examples.
TRIAL_SHOTS, TRIAL_STEPS, TRIAL_TEST = 16, 40, 50
TRIAL_RATES = {"own": (0.03, 0.1, 0.3, 1.0), "all": (1e-3, 3e-3, 1e-2, 3e-2)}
FEW_START = {"own": (0.1, 0.3, 1.0), "all": (1e-3, 3e-3, 1e-2), "factors": (1e-3, 3e-3, 1e-2)}
BOTH_START = (0.03, 0.3, 1.0)  # of the own part while everything is trained, beside OWN_RATE


@dataclasses.dataclass(frozen=True)
class Search:
    """The search of one contender on one budget.

    Args:
        width, budget, contender: as in `Run`.
        record: Run -> its record; see `lab.runs.Records`.
    """

    width: int
    budget: str
    contender: str
    record: Callable

    def _records(self, **changes):
        """The record of each seed, on the development split."""
        cell = {"width": self.width, "budget": self.budget, "contender": self.contender}
        return [self.record(Run(**cell, split=DEVELOPMENT, seed=seed, **changes)) for seed in SEEDS]

    def _mean(self, of, **changes):
        """Mean of a number of each record, over the seeds."""
        return sum(map(of, self._records(**changes))) / len(SEEDS)

    @functools.cache  # noqa: B019 - a few searches, which all else asks many times
    def shape_and_rates(self) -> dict:
        """Shape, rate of the factors and of what tasks have of their own, for 24 tasks and `STEPS` steps.

        The score of a trial is the mean of two numbers: exact match on the training tasks, and transfer
        to the development tasks from 16 examples. Transfer is the mean over the parts that may be trained,
        each at the better of a few rates.

        Returns:
            {"shape": ..., "lr": ..., "own_lr": ..., "closed": whether all neighbours were tried}
        """
        shapes, has_own = SHAPES[self.width, self.budget][self.contender], CONTENDERS[self.contender].has_own
        parts = [part for part in self._parts if part in TRIAL_RATES]
        few_shot = tuple((part, TRIAL_SHOTS, rate) for part in parts for rate in TRIAL_RATES[part])
        extent = (len(RATES), len(OWN_RATES) if has_own else 1)
        everything = [
            (row, column, *rates)
            for row, of_row in enumerate(shapes)
            for column in range(len(of_row))
            for rates in itertools.product(*map(range, extent))
        ]

        def settings(point):
            row, column, lr, own_lr = point
            own_lr = OWN_RATES[own_lr] if has_own else 0.0
            return {"shape": shapes[row][column], "lr": RATES[lr], "own_lr": own_lr}

        def evaluate(point):
            return self._mean(
                lambda record: score(record, parts),
                setting="24 tasks",
                steps=STEPS,
                few_shot=few_shot,
                few_steps=TRIAL_STEPS,
                n_test=TRIAL_TEST,
                **settings(point),
            )

        middle = len(shapes[0]) // 2
        start = [
            (0, middle, RATES.index(lr), OWN_RATES.index(0.1) if has_own else 0) for lr in (0.005, 0.02, 0.1)
        ]
        best, closed = climb(start, _neighbours(everything), everything, evaluate, *TRIALS[self.width])
        return settings(best) | {"closed": closed}

    @property
    def _parts(self):
        parts = CONTENDERS[self.contender].parts
        return parts if self.width == 64 else tuple(part for part in parts if part != "factors")

    @property
    def shots(self) -> tuple[int, ...]:
        """The numbers of examples that few-shot rates are searched for."""
        return SHOTS if self.width == 64 else FEW_SHOTS

    def rate(self, steps: int, setting: str = "24 tasks") -> float:
        """The rate of the factors for another number of steps, or in another setting.

        Shape and the other rate stay. It is judged by the training tasks, and begins with three rates.
        """
        found = self.shape_and_rates()
        if (steps, setting) == (STEPS, "24 tasks"):
            return found["lr"]
        start = RATES.index(found["lr"])

        def evaluate(point):
            return self._mean(
                lambda record: sum(record["train"]),
                setting=setting,
                steps=steps,
                shape=found["shape"],
                own_lr=found["own_lr"],
                lr=RATES[point[0]],
            )

        return RATES[line(len(RATES), (start - 1, start, start + 1), evaluate)]

    @functools.cache  # noqa: B019
    def few_shot(self, steps: int) -> dict[tuple[str, int], tuple[float, float]]:
        """Few-shot rates of a model that was trained for so many steps.

        Each is judged by the development tasks. The rates of a part are tried for all numbers of shots,
        until for none of them the best one is at an end.

        Returns:
            {(part, shots): (the best rate, exact match at that rate in percent)}
        """
        best = {}

        def evaluate(part, rates):
            """{(shots, rate): exact match}"""
            trials = tuple((part, shots, rate) for rate in rates for shots in self.shots)
            return {trial[1:]: exact for trial, exact in self._transfer(steps, trials).items()}

        for part in self._parts:
            of_part = functools.partial(evaluate, part)
            found_rates = rates_inside(FEW_RATES, FEW_START[part], self.shots, of_part)
            best |= {(part, shots): found for shots, found in found_rates.items()}
        return best

    def both_rates(self, steps: int) -> dict[int, tuple[float, float, float]]:
        """Rates for training everything: of the factors, and of what the new task has of its own.

        It begins at the rate of the factors that `few_shot` has found beside `OWN_RATE`, with three other
        rates of the own part. Then it tries the neighbours of the best point, for each number of
        shots, until none is left.

        Returns:
            {shots: (rate of the factors, own rate, exact match at these rates in percent)}
        """
        alone = self.few_shot(steps)
        scores = {(n, alone["all", n][0], OWN_RATE): alone["all", n][1] for n in self.shots}
        new = [(n, alone["all", n][0], own) for n in self.shots for own in BOTH_START]
        while new:
            tried = self._transfer(steps, tuple(("all", *trial) for trial in new))
            scores |= {trial[1:]: exact for trial, exact in tried.items()}
            best = [max((t for t in scores if t[0] == n), key=scores.get) for n in self.shots]
            new = [near for trial in best for near in _around(trial) if near not in scores]
        return {n: (rate, own, scores[n, rate, own]) for n, rate, own in best}

    def _transfer(self, steps: int, trials: tuple) -> dict[tuple, float]:
        """{trial: exact match in percent} of the development tasks, for a model trained for so many steps."""
        found, lr = self.shape_and_rates(), self.rate(steps)
        settings = {"setting": "24 tasks", "steps": steps, "few_shot": trials, "n_test": TRIAL_TEST}
        settings |= {"lr": lr, "shape": found["shape"], "own_lr": found["own_lr"]}
        of_seeds = [
            [100 * _accuracy(of_trial["right"], TRIAL_TEST) for of_trial in record["few_shot"]]
            for record in self._records(**settings)
        ]
        return {
            trial: sum(scores) / len(SEEDS)
            for trial, scores in zip(trials, zip(*of_seeds, strict=True), strict=True)
        }

    def sgd(self) -> tuple[float, float, float]:
        """Rates of the factors and of the own part for SGD in place of Adam, at the shape that was found.

        It is judged by the training tasks after `STEPS` steps, and goes on until no neighbour is better.

        Returns:
            (rate of the factors, own rate, exact match at these rates in percent)
        """
        shape = self.shape_and_rates()["shape"]
        own_rates = SGD_OWN_RATES if CONTENDERS[self.contender].has_own else (0.0,)
        points = list(itertools.product(range(len(SGD_RATES)), range(len(own_rates))))

        def evaluate(point):
            rates = {"lr": SGD_RATES[point[0]], "own_lr": own_rates[point[1]], "optimizer": "SGD"}
            return self._mean(
                lambda record: 100 * _accuracy(record["train"], N_TEST),
                **{"setting": "24 tasks", "steps": STEPS, "shape": shape} | rates,
            )

        start = [(SGD_RATES.index(rate), len(own_rates) // 2) for rate in (0.3, 3.0)]
        best, _ = climb(start, _neighbours(points), points, evaluate, 0, len(points))
        return SGD_RATES[best[0]], own_rates[best[1]], evaluate(best)


def _neighbours(points):
    """What `climb` asks: from a point to the points of a grid that are one step away along one axis."""

    def of(point):
        steps = [(axis, step) for axis in range(len(point)) for step in (-1, 1)]
        moved = [(*point[:a], point[a] + s, *point[a + 1 :]) for a, s in steps]
        return [other for other in moved if other in points]

    return of


def _around(trial):
    """The neighbours of a trial (shots, rate, own rate) among `FEW_RATES`."""
    shots, *rates = trial
    grid = list(itertools.product(range(len(FEW_RATES)), repeat=2))
    near = _neighbours(grid)(tuple(FEW_RATES.index(rate) for rate in rates))
    return [(shots, FEW_RATES[i], FEW_RATES[j]) for i, j in near]


def _accuracy(counts, n):
    return sum(counts) / (n * len(counts))


def score(record: dict, parts: list[str]) -> float:
    """What a trial of a shape is judged by, 0 to 1; see `Search.shape_and_rates`."""
    best = [
        max(_accuracy(t["right"], TRIAL_TEST) for t in record["few_shot"] if t["part"] == part)
        for part in parts
    ]
    return (_accuracy(record["train"], N_TEST) + sum(best) / len(best)) / 2
