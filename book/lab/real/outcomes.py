"""What the final runs of the experiment on real texts say: accuracies, differences, and what was expected."""

from collections.abc import Callable
from pathlib import Path

import pandas

from ..english.statistics import accuracies, interval
from ..runs import Records
from . import customers
from .experiment import N_OLD, N_TEST, ROWS, SHAPES, final_runs, run_of, search_file

MIXTURES = ("Poly", "MHR", "TensorPoly-I", "TensorPoly-II")


def final_records(folder: Path, base: str) -> list[dict]:
    """The recorded final runs, with the shapes and rates that the recorded search has chosen.

    Raises:
        runs.NotRecorded: a run is missing.
    """
    final = Records(folder / "final.jsonl", run_of)
    wanted = [final_runs(base, name, Records(search_file(folder, name), run_of)) for name in SHAPES]
    return [final(run) for runs in wanted for run in runs]


def chosen(records: list[dict]) -> pandas.DataFrame:
    """What the search has chosen for each contender, and how many numbers it trains.

    Returns:
        A row for each contender: the shape; factors, and how many numbers each customer has of its own; the
        rates of the factors with few rows and with many, and of what is one's own; the rates of few-shot
        transfer of each part, for few shots and for many.
    """
    found = {}
    for record in records:
        row = found.setdefault(record["contender"], {"shape": record["shape"] or "–"})
        row["factors"] = record["parameters"]["factors"]
        row["own"] = record["parameters"]["own"] // len(record["train"])
        row["rate of own"] = record["own_lr"] or "–"
        row[f"rate, {record['rows']} rows"] = record["lr"]
        for part in dict.fromkeys(part for part, *_ in record["few_shot"]):
            rates = [f"{rate:g}" for of, _, rate in record["few_shot"] if of == part]
            row[f"few-shot {part}"] = ", ".join(rates)
    table = pandas.DataFrame(found).T.fillna("–")
    return table[sorted(table, key=lambda name: name.startswith("few-shot"))]  # at the end


def tidy(records: list[dict]) -> pandas.DataFrame:
    """A row for each accuracy of each customer.

    Returns:
        Columns: contender, rows, split, customer; `measure`: "train", "known" or "new" (a new customer's
        question), or "lost" (what the training customers have lost after one was learned, in points); for all
        but the first `part` and `shots`; `value` in percent.
    """
    found = []
    for record in records:
        cell = {name: record[name] for name in ("contender", "rows", "split")}
        for customer, right in enumerate(record["train"]):
            value = 100 * right / N_TEST
            found.append(cell | {"customer": customer, "measure": "train", "value": value})
        n_known, n_old = len(customers.make_split(record["split"]).known), N_OLD * len(record["train"])
        for trial in record["transfers"]:
            what = cell | {"part": trial["part"], "shots": trial["shots"]}
            for customer, right in enumerate(trial["right"]):
                measure = "known" if customer < n_known else "new"
                value = 100 * right / N_TEST
                found.append(what | {"customer": customer, "measure": measure, "value": value})
            for customer, right in enumerate(trial["old"]):
                lost = 100 * (trial["before"] - right) / n_old
                found.append(what | {"customer": customer, "measure": "lost", "value": lost})
    return pandas.DataFrame(found)


def transfers(table: pandas.DataFrame, measure: str, part: str, shots: int) -> pandas.Series:
    """The mean of each contender over new customers of `tidy`, in whole percent (or points, if "lost")."""
    own = table[(table["measure"] == measure) & (table["part"] == part) & (table["shots"] == shots)]
    return accuracies(own)["mean"].astype(float).round()


def span(means: pandas.Series) -> tuple[float, float]:
    """The lowest and the highest mean of a mixture."""
    return means[[*MIXTURES]].min(), means[[*MIXTURES]].max()


def difference(a: pandas.DataFrame, b: pandas.DataFrame) -> tuple[float, float, float]:
    """Rows a minus rows b of `tidy`, customer by customer: mean, and the ends of its 95 % interval."""
    key = ["split", "customer"]
    both = (a.set_index(key)["value"] - b.set_index(key)["value"]).dropna()
    return interval({split: of.tolist() for split, of in both.groupby(level="split")})


def verdict(low: float, high: float, margin: float = 0.0) -> str:
    """Of a difference with that interval, beside a margin below zero: "higher", "lower" or "undecided"."""
    return "higher" if low > -margin else "lower" if high < -margin else "undecided"


def expectations(table: pandas.DataFrame) -> pandas.DataFrame:
    """The comparisons of the five expectations in `results/customers_plan.md`.

    Returns:
        A row for each: number of the expectation, the two compared, mean, low, high, and the verdict.
        In the second, "higher" means: not three points lower.
    """
    found = []

    def cell(contender, measure, part=None, shots=None, rows=ROWS[0]):
        own = table[
            (table["contender"] == contender) & (table["rows"] == rows) & (table["measure"] == measure)
        ]
        return own if part is None else own[(own["part"] == part) & (own["shots"] == shots)]

    def compare(number, name, a, b, margin=0.0):
        mean, low, high = difference(a, b)
        row = {"expectation": number, "compared": name, "difference": mean, "low": low, "high": high}
        found.append(row | {"verdict": verdict(low, high, margin)})

    def each(number, name, contenders, a: Callable, b: Callable, margin=0.0):
        for contender in contenders:
            compare(number, name.format(contender), a(contender), b(contender), margin)

    vector, private = "LoRA, vector", "private LoRA"

    def train(contender):
        return cell(contender, "train")

    def known(contender, part="own"):
        return cell(contender, "known", part, 8)

    each(1, "LoRA − {}", (vector, private, *MIXTURES), lambda _: train("LoRA"), train)
    each(2, "LoRA with a vector − {}", MIXTURES, lambda _: train(vector), train, margin=3)
    each(3, "{} − private LoRA", MIXTURES, train, lambda _: train(private))
    each(4, "routing of {} − vector, 8 rows", MIXTURES, known, lambda _: known(vector))
    each(4, "routing of {} − private LoRA, 8 rows", MIXTURES, known, lambda _: known(private, "all"))
    for shots in (8, 32):
        each(
            5,
            f"{{}}: everything − routing, {shots} rows",
            MIXTURES,
            lambda name, shots=shots: cell(name, "new", "all", shots),
            lambda name, shots=shots: cell(name, "new", "own", shots),
        )
    return pandas.DataFrame(found)
