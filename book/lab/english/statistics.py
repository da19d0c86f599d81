"""What the runs of the comparison say: tables, intervals, tests, and the verdicts that were agreed before."""

from collections.abc import Mapping, Sequence

import numpy
import pandas
from scipy import stats

from .run import N_OLD, N_TEST

CELL = ["width", "budget", "setting", "steps", "contender"]


def tidy(records: list[dict]) -> pandas.DataFrame:
    """Every accuracy of every run, one a row.

    Returns:
        Columns: those of `CELL`, split, seed; `measure`, "train", "transfer" or "old" (what old tasks have
        lost after a new one was learned, in points); for the last two `part` and `shots`; `value`, in
        percent, a mean over tasks.
    """
    rows = []
    for record in records:
        cell = {name: record[name] for name in [*CELL, "split", "seed"]}
        n_tasks = len(record["train"])
        rows.append(cell | {"measure": "train", "value": 100 * numpy.mean(record["train"]) / N_TEST})
        for trial in record["few_shot"]:
            what = {"measure": "transfer", "part": trial["part"], "shots": trial["shots"]}
            rows.append(cell | what | {"value": 100 * numpy.mean(trial["right"]) / record["n_test"]})
        for trial in record["old"]:
            what = {"measure": "old", "part": trial["part"], "shots": trial["shots"]}
            lost = trial["before"] - numpy.mean(trial["right"])
            rows.append(cell | what | {"value": 100 * lost / (n_tasks * N_OLD)})
    return pandas.DataFrame(rows)


def interval(
    by_split: Mapping[int, Sequence[float]], n: int = 10_000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean, and its hierarchical bootstrap interval: splits are drawn anew, and in each its seeds.

    A mean of accuracies stays between 0 and 100 %, and so does its interval.

    Args:
        by_split: {split: a value for each seed}; differences of paired runs, or accuracies.
        n: how often they are drawn.
        seed: of the draws.
        level: of the interval.

    Returns:
        mean of the splits' means, lower end, upper end.
    """
    generator = numpy.random.default_rng(seed)
    values = [numpy.asarray(of_split, dtype=float) for of_split in by_split.values()]
    # The mean of a split, in each draw; then the mean over splits that are drawn among these.
    drawn = numpy.stack(
        [v[generator.integers(len(v), size=(n, len(values), len(v)))].mean(2) for v in values]
    )  # (splits, n, draws of a split)
    which = generator.integers(len(values), size=(n, len(values)))
    means = drawn[which, numpy.arange(n)[:, None], numpy.arange(len(values))].mean(1)
    low, high = numpy.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return numpy.mean([v.mean() for v in values]), low, high


def sign_flip(by_split: Mapping[int, Sequence[float]]) -> float:
    """Probability of a mean difference as large as this if its sign were a coin's toss in each split.

    Exact up to 14 splits: all sign patterns are counted. Splits are independent, seeds in a split are not.
    """
    means = [numpy.mean(of_split) for of_split in by_split.values()]
    test = stats.permutation_test(
        (means,), numpy.mean, permutation_type="samples", n_resamples=2**14, vectorized=False, rng=0
    )
    return float(test.pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted probabilities: below 0.05, a family of comparisons errs in one case of 20 at most."""
    order, adjusted, highest = numpy.argsort(p), numpy.empty(len(p)), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted.tolist()


def paired(values: pandas.DataFrame, a: str, b: str) -> dict[int, list[float]]:
    """Contender a minus contender b of the runs with the same split and seed: {split: differences}.

    Args:
        values: rows of `tidy` with one value for each contender, split and seed.
    """
    both = values.pivot(index=["split", "seed"], columns="contender", values="value")
    both = both.reindex(columns=[a, b])
    difference = (both[a] - both[b]).dropna()
    return {split: of_split.tolist() for split, of_split in difference.groupby(level="split")}
