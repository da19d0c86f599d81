"""What the runs of the comparison say: tables, intervals, tests, and the verdicts that were agreed before."""

from collections.abc import Mapping, Sequence

import numpy
import pandas
import torch
from scipy import stats

from .contenders import CONTENDERS
from .run import N_CURVE, N_OLD, N_TEST
from .tasks import make_split
from .training import OWN_RATE

CELL = ["width", "budget", "setting", "steps", "contender"]
FIXED = f"all, own at {OWN_RATE}"  # the part in which everything is trained, and one rate was not searched


def tidy(records: list[dict]) -> pandas.DataFrame:
    """Every accuracy of every run, one a row.

    Where everything is trained, a run with `OWN_RATE` for what a task has of its own gives the part `FIXED`,
    and a second run, with searched rates for both, the part "all". The two have the same multi-task training,
    which counts once.

    Returns:
        Columns: those of `CELL`, split, seed; `measure`: "train", and with 24 tasks its halves "own tag" and
        "shared tag"; "transfer", or "old" (what old tasks have lost after a new one was learned, in points),
        both with `part` and `shots`; `value`, in percent, a mean over tasks.
    """
    rows, seen = [], set()
    for record in records:
        cell = {name: record[name] for name in [*CELL, "split", "seed"]}
        n_tasks = len(record["train"])
        right = {"train": record["train"]}
        if record["setting"] == "24 tasks":
            shared = numpy.array(make_split(record["split"]).shared)
            of = numpy.array(record["train"])
            right |= {"own tag": of[~shared], "shared tag": of[shared]}
        for name, of in right.items():
            if (*cell.values(), name) not in seen:
                rows.append(cell | {"measure": name, "value": 100 * numpy.mean(of) / N_TEST})
                seen.add((*cell.values(), name))

        for trial in record["few_shot"]:
            value = 100 * numpy.mean(trial["right"]) / record["n_test"]
            rows.append(cell | _what("transfer", trial, record["contender"]) | {"value": value})
        for trial in record["old"]:
            lost = trial["before"] - numpy.mean(trial["right"])
            value = 100 * lost / (n_tasks * N_OLD)
            rows.append(cell | _what("old", trial, record["contender"]) | {"value": value})
    return pandas.DataFrame(rows)


def _what(measure, trial, contender):
    fixed = CONTENDERS[contender].has_own and trial["part"] == "all" and "own_rate" not in trial
    return {"measure": measure, "part": FIXED if fixed else trial["part"], "shots": trial["shots"]}


def curves(records: list[dict]) -> pandas.DataFrame:
    """Exact match on the training tasks while they are learned: columns of `CELL`, split, step, value (%)."""
    rows = []
    for record in records:
        cell = {name: record[name] for name in [*CELL, "split"]}
        sentences = len(record["train"]) * N_CURVE
        for step, right in record["curve"]:
            rows.append(cell | {"step": step, "value": 100 * right / sentences})
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


def accuracies(table: pandas.DataFrame, by: str | list[str] = "contender") -> pandas.DataFrame:
    """Means over splits and what is in them, with 95 % intervals by the hierarchical bootstrap.

    Args:
        table: with the columns split, value and those of `by`.
        by: what has a mean of its own.

    Returns:
        A row for each: mean, low, high, and `splits`, the mean of each split.
    """
    found = {}
    for key, own in table.groupby(by, sort=False):
        by_split = {split: rows["value"].tolist() for split, rows in own.groupby("split")}
        mean, low, high = interval(by_split)
        splits = [sum(values) / len(values) for values in by_split.values()]
        found[key] = {"mean": mean, "low": low, "high": high, "splits": splits}
    return pandas.DataFrame.from_dict(found, orient="index")


def texts(found: pandas.DataFrame, digits: int = 1) -> pandas.Series:
    """Means with their intervals as text, such as '97.2 (95.9 to 98.1)', of `accuracies`."""
    rows = zip(found["mean"], found["low"], found["high"], strict=True)
    written = [f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})" for mean, low, high in rows]
    return pandas.Series(written, index=found.index, dtype=object)


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


def beside(values: pandas.DataFrame, contenders: Sequence[str], opponents: Sequence[str]) -> pandas.DataFrame:
    """Each contender minus each opponent, over runs of the same split and seed.

    Args:
        values: as `paired` takes them.

    Returns:
        A row for each pair (contender, minus): mean, low, high of the difference, in points.
    """
    pairs = pandas.MultiIndex.from_product([contenders, opponents], names=["contender", "minus"])
    found = [interval(paired(values, *pair)) for pair in pairs]
    return pandas.DataFrame(found, index=pairs, columns=["mean", "low", "high"])


def without_worst(
    table: pandas.DataFrame, contender: str, n: int = 1
) -> tuple[list[float], pandas.DataFrame]:
    """Leaves out the splits on which one contender is worst, to see how much of a result they make.

    Args:
        table: with the columns contender, split and value.
        contender: whose worst splits these are.
        n: how many splits are left out.

    Returns:
        Its means on these splits, ascending; and the rows of all contenders on the other splits.
    """
    means = table[table["contender"] == contender].groupby("split")["value"].mean().nsmallest(n)
    return means.tolist(), table[~table["split"].isin(means.index)]


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Pearson's correlation of two (tasks, tasks) matrices over the pairs of different tasks."""
    pairs = torch.ones_like(a).triu(1).bool()
    return torch.corrcoef(torch.stack([a[pairs], b[pairs]]))[0, 1].item()
