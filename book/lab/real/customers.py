"""Many customers of one model: each asks a question of its own about the same texts, and has its own answers.

A text does not say whose it is, nor what is asked. "An adult establishment in the city centre" is an A for
one customer, who asks for the riverside and calls a no A; for another, who asks whether families are welcome
and calls a yes A, it is a B. Texts and what is true of them come from two public data sets:

- banking77 (Casanueva et al. 2020), messages to a bank, each with one of 77 intents;
- e2e_nlg_cleaned (Dušek et al. 2019), descriptions of restaurants, each with what it says of them.
"""

import dataclasses
import itertools
import json
import random
import re
from pathlib import Path

import datasets

from . import tables

HUB = {  # name: (repository, branch), read where no folder is given
    "banking77": ("PolyAI/banking77", "refs/convert/parquet"),
    "e2e_nlg_cleaned": ("tuetschek/e2e_nlg_cleaned", "refs/convert/parquet"),
}


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of a text, with yes or no for an answer.

    Args:
        source: the data set.
        about: for restaurants the attribute; for messages "".
        yes: pattern of the intents, or of the attribute's values, that mean yes.
        no: pattern of those that mean no; a text with neither, or with both, is not asked about.
    """

    source: str
    about: str
    yes: str
    no: str = ""

    def answer(self, row: dict) -> bool | None:
        """True or False; None where the row does not tell."""
        if self.source == "banking77":
            return re.search(self.yes, row["intent"]) is not None
        said = re.search(rf"{self.about}\[(.*?)\]", row["meaning_representation"])
        yes, no = (said and re.fullmatch(pattern, said[1]) for pattern in (self.yes, self.no))
        return None if not yes and not no else bool(yes)


QUESTIONS = {
    "a card": Question("banking77", "", r"card|contactless|visa|(^|_)pin(_|$)"),
    "trouble": Question(
        "banking77",
        "",
        r"not_|declined|failed|wrong|reverted|twice|swallowed|stolen|compromised|blocked|unable|forgotten",
    ),
    "fees and rates": Question("banking77", "", r"_charge(_|$)|fee|exchange"),
    "money that comes in": Question("banking77", "", r"top_up|topping|receiving|into_account|balance"),
    "who the owner is": Question(
        "banking77", "", r"identity|passcode|(^|_)pin(_|$)|stolen|compromised|age_limit|personal|source_of"
    ),
    "cash": Question("banking77", "", r"cash|atm|swallowed"),
    "riverside": Question("e2e_nlg_cleaned", "area", "riverside", "city centre"),
    "families": Question("e2e_nlg_cleaned", "familyFriendly", "yes", "no"),
    "dear": Question("e2e_nlg_cleaned", "priceRange", "high|more than £30", "cheap|less than £20"),
    "praised": Question("e2e_nlg_cleaned", "rating", "high|5 out of 5", "low|1 out of 5"),
    "Chinese food": Question("e2e_nlg_cleaned", "food", "Chinese", "English"),
    "a coffee shop": Question("e2e_nlg_cleaned", "eatType", "coffee shop", "restaurant"),
}


@dataclasses.dataclass(frozen=True)
class Customer:
    """A customer: one of the questions, and whether its yes is called A (code 0) or B (code 1)."""

    question: str
    code: int
    number: int = 0  # tells customers apart that ask and call alike; each has its own rows


@dataclasses.dataclass(frozen=True)
class Split:
    """Customers that are trained on, and two kinds of new ones.

    Args:
        train: 30 customers; every way to ask and call occurs twice.
        known: 5 new customers, whose questions others ask, with the other code.
        new: 2 new customers, whose questions nobody asks.
    """

    train: tuple[Customer, ...]
    known: tuple[Customer, ...]
    new: tuple[Customer, ...]


def make_split(number: int) -> Split:
    """A split by its number; 0 is for development.

    One question of each data set is nobody's. Of the other ten, five are asked with both codes, and five with
    one: the other code is that of a new customer.

    >>> split = make_split(0)
    >>> len(split.train), len(split.known), len(split.new)
    (30, 5, 2)
    """
    draw, new, rest = random.Random(number), [], []
    for source in HUB:
        first, *others = draw.sample([name for name, q in QUESTIONS.items() if q.source == source], 6)
        new.append(Customer(first, draw.randrange(2)))
        rest += others
    draw.shuffle(rest)
    known = [Customer(name, draw.randrange(2)) for name in rest[:5]]
    ways = [(name, code) for name in rest for code in (0, 1) if Customer(name, code) not in known]
    train = [Customer(*way, number) for way, number in itertools.product(ways, (0, 1))]
    return Split(tuple(train), tuple(known), tuple(new))


def load(data: str | Path | None = None) -> dict[str, dict[str, list[dict]]]:
    """The texts: {data set: {"train" or "validation": rows}}, each row with a `text`.

    Args:
        data: a folder with `tasks/<name>/{train,validation}.jsonl` and, for banking77, `label_names.json`;
            None: the hub.
    """
    found = {}
    for name, (repository, branch) in HUB.items():
        rows = {}
        for split, on_hub in (("train", "train"), ("validation", "test")):
            if data is None:
                rows[split] = datasets.load_dataset(repository, split=on_hub, revision=branch)
            else:
                rows[split] = tables.read(Path(data) / "tasks" / name / f"{split}.jsonl")
        if name == "banking77":
            if data is None:
                names = rows["train"].features["label"].names
            else:
                names = json.loads((Path(data) / "tasks" / name / "label_names.json").read_text())
            rows = {
                split: [row | {"intent": names[row["label"]].lower()} for row in of]
                for split, of in rows.items()
            }
        else:
            rows = {s: [row | {"text": row["human_reference"]} for row in of] for s, of in rows.items()}
        found[name] = rows
    return found


def examples(texts: dict, customer: Customer, split: str, n: int, seed: int) -> list[tuple[str, int]]:
    """(text, label) of a customer: label 0 is A, 1 is B, as many of each, mixed.

    Args:
        texts: from `load`.
        customer: whose.
        split: "train" or "validation".
        n: how many, an even number.
        seed: of the draw, which is another for each customer.

    Raises:
        ValueError: there are not so many.
    """
    question, found = QUESTIONS[customer.question], {False: [], True: []}
    for row in texts[question.source][split]:
        answer = question.answer(row)
        if answer is not None:
            found[answer].append(row["text"])
    draw = random.Random(f"{seed} {customer} {split}")
    if min(map(len, found.values())) < n // 2:
        raise ValueError(
            f"{customer}: {split} has {[*map(len, found.values())]} noes and yeses, not {n // 2}"
        )
    # A yes of a customer with code 0 is label 0, and a yes of one with code 1 is label 1.
    chosen = [(t, customer.code ^ (not yes)) for yes, of in found.items() for t in draw.sample(of, n // 2)]
    draw.shuffle(chosen)
    return chosen
