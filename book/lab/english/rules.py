"""The primary comparisons, their decision rule and the order of the runs, fixed before the final runs."""

import dataclasses
import functools

import pandas

from .statistics import CELL, holm, interval, paired, sign_flip

# (split, seed) of the final runs; a block has the first so many of them
PAIRS = tuple((number, number) for number in range(1, 11))
LEVEL = 0.05  # of an error anywhere in the family of primary comparisons


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Contender a against contender b in one cell.

    Args:
        claim: 1 or 2.
        a, b: contenders.
        budget, steps: where; the setting is that of 24 tasks, the width 64.
        shots: transfer from so many examples, by the part that was better on the development split;
            None: the training tasks.
    """

    claim: int
    a: str
    b: str
    budget: str
    steps: int
    shots: int | None

    def __str__(self):
        where = f"transfer from {self.shots}" if self.shots else "training tasks"
        return f"{self.a} – {self.b}; {self.budget} budget; {self.steps} steps; {where}"


# Claim 1: each mixture against the dense adapter of its kind that is told the task.
DENSE = {
    "Poly": "LoRA, vector",
    "MHR": "LoRA, vector",
    "TensorPoly-I": "TLoRA, vector",
    "TensorPoly-II": "TLoRA, vector",
}
PRIMARY = tuple(
    Comparison(1, a, b, "large", steps, shots)
    for steps, shots in ((300, None), (300, 8), (1200, 8))
    for a, b in DENSE.items()
) + tuple(
    Comparison(2, "TensorPoly-I", b, budget, 300, 8)
    for budget in ("large", "small")
    for b in ("Poly", "MHR", "TensorPoly-II")
)

# {width: {(budget, setting, steps): splits}}, in the order of the final runs: the primary comparisons first.
BLOCKS = {
    64: {
        ("large", "24 tasks", 300): 10,
        ("large", "24 tasks", 1200): 10,
        ("small", "24 tasks", 300): 10,
        ("large", "24 tasks", 100): 5,
        ("large", "shared tags", 300): 5,
        ("large", "16 examples", 300): 5,
        ("large", "60 tasks", 300): 5,
        ("large", "skills named", 300): 5,
    },
    256: {("large", "24 tasks", 300): 5},
}


def verdicts(values: pandas.DataFrame, better_part) -> pandas.DataFrame:
    """The primary comparisons, decided by the rule.

    Args:
        values: from `statistics.tidy`.
        better_part: (contender, budget, steps, shots) -> "own" or "all", the better one on the development
            split.

    Returns:
        A row for each: claim, comparison, splits, difference (points), low, high (95 % interval), p (exact
        sign-flip test), adjusted (Holm), verdict: "supported", "contradicted" or "undecided"; and
        "incomplete" where a run of the ten splits is missing.
    """
    rows = []
    for comparison in PRIMARY:
        differences = _differences(values, comparison, better_part)
        row = {"claim": comparison.claim, "comparison": str(comparison), "splits": len(differences)}
        if len(differences) == len(PAIRS):
            mean, low, high = interval(differences)
            row |= {"difference": mean, "low": low, "high": high, "p": sign_flip(differences)}
        rows.append(row)
    table = pandas.DataFrame(
        rows, columns=["claim", "comparison", "splits", "difference", "low", "high", "p"]
    )
    # A comparison that is incomplete counts in the correction as one that shows nothing.
    table["adjusted"] = holm(table["p"].fillna(1.0).tolist())
    table["verdict"] = [
        "incomplete"
        if row.splits < len(PAIRS)
        else "undecided"
        if row.adjusted >= LEVEL
        else "supported"
        if row.difference > 0
        else "contradicted"
        for row in table.itertuples()
    ]
    return table


def failed(values: pandas.DataFrame) -> pandas.DataFrame:
    """Runs that are right on less than half of what is the median of their contender in the same block.

    Args:
        values: from `statistics.tidy`.

    Returns:
        A row for each, with its `value` and the `median`.
    """
    train = values[values["measure"] == "train"]
    train = train.assign(median=train.groupby(CELL)["value"].transform("median"))
    return train[train["value"] < train["median"] / 2]


def _differences(values, comparison, better_part):
    at = values[
        (values["width"] == 64)
        & (values["setting"] == "24 tasks")
        & (values["budget"] == comparison.budget)
        & (values["steps"] == comparison.steps)
        & (values["contender"].isin([comparison.a, comparison.b]))
    ]
    if at.empty:
        return {}
    if comparison.shots is None:
        return paired(at[at["measure"] == "train"], comparison.a, comparison.b)
    part = functools.partial(better_part, budget=comparison.budget, steps=comparison.steps)
    return paired(by_better_part(at, comparison.shots, part), comparison.a, comparison.b)


def by_better_part(values: pandas.DataFrame, shots: int, better_part) -> pandas.DataFrame:
    """Transfer as each contender's user would have it: by the part that was better on the development split.

    Args:
        values: rows of `statistics.tidy`.
        shots: examples of each new task.
        better_part: (contender, shots=) -> "own" or "all".
    """
    at = values[(values["measure"] == "transfer") & (values["shots"] == shots)]
    parts = {name: better_part(name, shots=shots) for name in at["contender"].unique()}
    return at[at["part"] == at["contender"].map(parts)]
