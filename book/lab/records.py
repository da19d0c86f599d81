"""Records of runs: where they come from, reading them, intervals and verdicts."""

import datetime
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pandas
import torch
from scipy import stats

BOOK = Path(__file__).parents[1]
RESULTS = BOOK / "results"
KEYS = ["width", "adapter"]


def provenance(module: str, device: str = "cpu") -> dict:
    """Where, when, by which module's command and with what a result was measured."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=BOOK
    )
    cpu = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    where = f"CPU, {cpu}, {os.cpu_count()} cores"
    if device.startswith("cuda"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split()
        where = (
            f"{torch.cuda.get_device_name(device)}, driver {driver[0]}, CUDA {torch.version.cuda}, {where}"
        )
    return {
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
        "device": where,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "datasets")},
    }


def read(path: str | Path, module: str = "lab.english.experiment") -> dict:
    """A file that a module's command wrote.

    Raises:
        FileNotFoundError: nothing has been recorded there; the message says how to.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: not measured yet; run `python -m {module}`")
    return json.loads(path.read_text())


def read_if_measured(path: str | Path) -> dict | None:
    """A file that a module's command wrote; None, and a line that says so, where there is none."""
    path = Path(path)
    if path.exists():
        return json.loads(path.read_text())
    print(f"{path.name}: not measured yet")
    return None


def mean(values) -> float:
    """Mean of the values of a dict or a list."""
    values = list(values.values() if isinstance(values, dict) else values)
    return sum(values) / len(values)


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
