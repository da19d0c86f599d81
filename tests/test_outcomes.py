"""What is made of the records of the experiment on real texts."""

import dataclasses

import numpy
import pytest

from lab.english.statistics import accuracies
from lab.pictures import results
from lab.real import experiment, outcomes


def record(contender, split, train, own=30, everything=30, lost=0, rows=16):
    """A final run whose accuracies, in right answers of fifty, are given; customers differ by one."""
    run = experiment.Run("minilm", contender, "", rows, split, split, 0.001, 0.1)
    parts = {"own": own, "all": everything}
    transfers = [
        {
            "part": part,
            "shots": shots,
            "rate": 0.1,
            "right": [parts[part]] * 5 + [parts[part] - 5] * 2,
            "before": 100 if lost else 0,
            "old": [100 - lost] * 7 if part == "all" and lost else [],
        }
        for part in experiment.parts_of(contender)
        for shots in experiment.SHOTS
    ]
    of_each = [train + i % 2 for i in range(30)]
    return dataclasses.asdict(run) | {"train": of_each, "transfers": transfers if rows == 16 else []}


@pytest.fixture
def table():
    runs = []
    for split in (1, 2, 3):
        runs += [
            record("LoRA", split, 25, everything=25, lost=12),
            record("LoRA, vector", split, 40, own=28, lost=6),
            record("private LoRA", split, 35, everything=33),
            record("Poly", split, 41, own=34, everything=36, lost=6),
            record("MHR", split, 36, own=30 - 3 * (split - 2), everything=28, lost=6),
            record("TensorPoly-I", split, 44, own=40, everything=41, lost=3),
            record("TensorPoly-II", split, 35, own=20, everything=38, lost=3),
            record("Poly", split, 45, rows=64),
        ]
    return outcomes.tidy(runs)


def test_accuracies_are_percent_of_the_rows(table):
    train = table[(table["measure"] == "train") & (table["rows"] == 16)]
    found = accuracies(train)
    assert list(found.index) == list(experiment.SHAPES)
    assert found.loc["LoRA", "mean"] == pytest.approx(100 * 25.5 / 50)
    assert found.loc["LoRA", "splits"] == pytest.approx([51.0] * 3)
    assert found.loc["LoRA", "low"] < 51 < found.loc["LoRA", "high"]
    many = table[table["rows"] == 64]
    assert set(many["contender"]) == {"Poly"} and many["value"].mean() == 91


def test_what_was_chosen_is_read_from_the_runs():
    runs = [record("LoRA", 1, 25), record("Poly", 1, 25), record("Poly", 1, 25, rows=64)]
    for one in runs:
        one["parameters"] = {"factors": 100, "own": 0 if one["contender"] == "LoRA" else 7 * 30, "head": 1}
    runs[1] |= {"shape": "n_skills=4", "few_shot": [("own", 8, 0.3), ("own", 32, 1.0)]}
    runs[2] |= {"shape": "n_skills=4", "lr": 0.002}
    table = outcomes.chosen(runs)
    assert list(table.index) == ["LoRA", "Poly"]
    assert table.loc["Poly", "shape"] == "n_skills=4" and table.loc["LoRA", "shape"] == "–"
    rates = table.loc["Poly", ["rate, 16 rows", "rate, 64 rows", "few-shot own"]]
    assert rates.tolist() == [0.001, 0.002, "0.3, 1"]
    assert table["own"].tolist() == [0, 7]


def test_what_is_lost_counts_the_old_rows(table):
    lost = table[(table["measure"] == "lost") & (table["contender"] == "LoRA")]
    assert lost["value"].tolist() == pytest.approx([100 * 12 / (4 * 30)] * 42)
    assert set(table[table["measure"] == "lost"]["contender"]) == {*experiment.SHAPES} - {"private LoRA"}


def test_a_difference_is_that_of_the_same_customers(table):
    train = table[(table["measure"] == "train") & (table["rows"] == 16)]
    a, b = (train[train["contender"] == name] for name in ("Poly", "LoRA"))
    assert outcomes.difference(a, b) == pytest.approx((32, 32, 32))  # without the spread of customers
    mhr = table[(table["contender"] == "MHR") & (table["measure"] == "known") & (table["part"] == "own")]
    vector = table[
        (table["contender"] == "LoRA, vector") & (table["measure"] == "known") & (table["part"] == "own")
    ]
    mean, low, high = outcomes.difference(mhr[mhr["shots"] == 8], vector[vector["shots"] == 8])
    assert (
        mean == pytest.approx(numpy.mean([10, 4, -2]))
        and low == pytest.approx(-2)
        and high == pytest.approx(10)
    )


@pytest.mark.parametrize(
    "low, high, margin, expected",
    [(1, 2, 0, "higher"), (-2, -1, 0, "lower"), (-1, 1, 0, "undecided"), (-2, 5, 3, "higher"),
     (-5, -4, 3, "lower"), (-4, 1, 3, "undecided")],
)  # fmt: skip
def test_verdicts(low, high, margin, expected):
    assert outcomes.verdict(low, high, margin) == expected


def test_expectations_compare_what_the_plan_names(table):
    found = outcomes.expectations(table).set_index(["expectation", "compared"])["verdict"]
    assert found.groupby(level=0).size().to_dict() == {1: 6, 2: 4, 3: 4, 4: 8, 5: 8}
    assert set(found[1]) == {"lower"}
    # 40 of 50 against 41, 36, 44 and 35: two, eight, minus eight and ten points
    assert found[2].tolist() == ["higher", "higher", "lower", "higher"]
    assert found[3].tolist() == ["higher", "higher", "higher", "undecided"]
    four = found[4].to_dict()
    assert four["routing of Poly − vector, 8 rows"] == "higher"
    assert four["routing of MHR − vector, 8 rows"] == "undecided"
    assert four["routing of TensorPoly-II − vector, 8 rows"] == "lower"
    assert four["routing of MHR − private LoRA, 8 rows"] == "undecided"
    assert four["routing of Poly − private LoRA, 8 rows"] == "higher"
    assert found[5]["MHR: everything − routing, 8 rows"] == "undecided"
    assert found[5]["TensorPoly-II: everything − routing, 32 rows"] == "higher"


def test_the_picture_has_a_line_for_each_contender(table):
    panels = {name: accuracies(table[table["rows"] == rows]) for name, rows in (("a", 16), ("b", 64))}
    figure = results.dots(panels, "percent", "A title", line=50)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == [*experiment.SHAPES][::-1] and len(figure.axes) == 2
