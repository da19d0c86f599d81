"""Reading the records of runs: tables, means with intervals, paired comparisons."""

import json
from pathlib import Path

import pandas
from scipy import stats

from . import tasks
from .experiment import mean

KEYS = ["width", "adapter"]


def read(path: str | Path, module: str = "lab.experiment") -> dict:
    """A file that a module's command wrote.

    Raises:
        FileNotFoundError: nothing has been recorded there; the message says how to.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: not measured yet; run `python -m {module}`")
    return json.loads(path.read_text())


def table(records: list[dict]) -> pandas.DataFrame:
    """One row a run. Accuracies are exact match in percent, means over tasks.

    Returns:
        Columns: width, adapter, split, seed, lr; `factors` and `routing`, trainable parameters; `train`
        and its two halves, `own tag` and `shared tag`; `correlation` of the routing's similarity with
        the overlap of skills; for few-shot transfer columns such as `routing, 32 shots`, and `transfer,
        32 shots`, by routing alone where routing is learned and by everything elsewhere.
    """
    rows = []
    for record in records:
        shared = tasks.make_split(record["split"]).shared
        row = {name: record[name] for name in ("width", "adapter", "split", "seed", "lr")} | record[
            "parameters"
        ]
        row["train"] = 100 * mean(record["train"])
        for half, is_shared in (("own tag", False), ("shared tag", True)):
            row[half] = 100 * mean(
                [a for task, a in record["train"].items() if shared[int(task)] == is_shared]
            )
        row["correlation"] = record.get("routing_correlation")
        for trial in record["few_shot"]:
            accuracy = 100 * mean(trial["accuracy"])
            row[f"{trial['part']}, {trial['shots']} shots"] = accuracy
            row.setdefault(f"transfer, {trial['shots']} shots", accuracy)  # routing alone comes first
        rows.append(row)
    return pandas.DataFrame(rows)


def read_if_measured(path: str | Path) -> dict | None:
    """A file that `lab.real_experiment` wrote; None, and a line that says so, where there is none."""
    path = Path(path)
    if path.exists():
        return json.loads(path.read_text())
    print(f"{path.name}: not measured yet")
    return None


def real_accuracies(recorded: dict) -> pandas.DataFrame:
    """Accuracies of `lab.real_experiment`, in percent, one row for each run, stage and task.

    Returns:
        Columns: adapter, seed, stage, task, accuracy. The stages are `training tasks`, and for the held-out
        tasks `before` any training on them, after training `routing alone` or `everything`, as means over
        the few-shot sets; `transfer` is `routing alone` where routing is learned and `everything` elsewhere.
    """
    rows, stages = [], {None: "before", "routing": "routing alone", "all": "everything"}
    for run in recorded["runs"]:
        where = {"adapter": run["adapter"], "seed": run["seed"]}
        for task, accuracy in run["train"].items():
            rows.append(where | {"stage": "training tasks", "task": task, "accuracy": accuracy})
        for trial in run["few_shot"]:
            stage = stages[trial["part"]]
            rows.append(where | {"stage": stage, "task": trial["task"], "accuracy": trial["accuracy"]})
            routed = run["parameters"]["routing"] > 0
            if trial["part"] == ("routing" if routed else "all"):
                rows.append(rows[-1] | {"stage": "transfer"})
    keys = ["adapter", "seed", "stage", "task"]
    return pandas.DataFrame(rows).groupby(keys, sort=False, as_index=False).mean()


def real_table(recorded: dict) -> pandas.DataFrame:
    """The runs of `lab.real_experiment`, as `table` has those of `lab.experiment`.

    Returns:
        Columns: width (here the model's name) and split (always 1), adapter, seed, lr; `factors`, `routing`
        and `head`, trainable parameters; `minutes` of training, `tokens/s`, `memory (GB)`, where they are
        known; the stages of `real_accuracies`, means over tasks.
    """
    means = real_accuracies(recorded).groupby(["adapter", "seed", "stage"])["accuracy"].mean()
    rows = []
    for run in recorded["runs"]:
        row = {"width": recorded["provenance"]["model"], "split": 1}
        row |= {name: run[name] for name in ("adapter", "seed", "lr")} | run["parameters"]
        if run.get("seconds"):  # not of a run that was interrupted, nor of one without a trained part
            row |= {"minutes": run["seconds"] / 60, "tokens/s": run["tokens"] / run["seconds"]}
        if run.get("memory"):
            row["memory (GB)"] = run["memory"] / 1e9
        rows.append(row | means[run["adapter"], run["seed"]].to_dict())
    return pandas.DataFrame(rows)


def task_difference(accuracies: pandas.DataFrame, a: str, b: str, stage: str) -> tuple[float, float]:
    """Adapter a minus adapter b over the tasks of a stage, each task's accuracy a mean over its seeds.

    Args:
        accuracies: from `real_accuracies`.

    Returns:
        The mean difference and the half-width of its 95 % interval: how it varies from task to task.
    """
    means = accuracies[accuracies["stage"] == stage].groupby(["adapter", "task"])["accuracy"].mean()
    difference = means[a] - means[b]
    return difference.mean(), half_width(difference)


def half_width(values: pandas.Series) -> float:
    """Half the width of the 95 % interval of a mean (Student's t); nan for fewer than two values."""
    values = values.dropna()
    return (
        stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
        if len(values) > 1
        else float("nan")
    )


def summary(runs: pandas.DataFrame, columns: list[str]) -> pandas.DataFrame:
    """Mean and half-width of the 95 % interval over runs, for each width and adapter.

    Returns:
        Index (width, adapter) in the order of the runs, columns (name, "mean" or "±").
    """
    groups = runs.groupby(KEYS, sort=False)[columns]
    return groups.agg([("mean", "mean"), ("±", half_width)])


def formatted(means: pandas.DataFrame, digits: int = 1) -> pandas.DataFrame:
    """A summary as text, such as '97.2 ± 1.2'; an absent value as '–'."""

    def text(column):
        pairs = zip(means[column, "mean"], means[column, "±"], strict=True)
        return [
            "–" if m != m else f"{m:.{digits}f}" + (f" ± {h:.{digits}f}" if h == h else "") for m, h in pairs
        ]

    names = list(dict.fromkeys(name for name, _ in means.columns))
    return pandas.DataFrame({name: text(name) for name in names}, index=means.index)


def paired_difference(runs: pandas.DataFrame, width: int, a: str, b: str, column: str) -> tuple[float, float]:
    """Adapter a minus adapter b over the runs with the same split and seed.

    Returns:
        The mean difference and the half-width of its 95 % interval.
    """
    one = runs[runs["width"] == width].set_index(["adapter", "split", "seed"])[column]
    difference = one[a] - one[b]
    return difference.mean(), half_width(difference)


def verdict(difference: float, half: float) -> str:
    """'higher' or 'lower' where the interval excludes 0, else 'undecided'."""
    return "undecided" if abs(difference) <= half else "higher" if difference > 0 else "lower"
