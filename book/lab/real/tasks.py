"""Real tasks as examples: a prompt, answer choices, and the number of the right one.

Data sets come from the Hugging Face hub, or from a folder of JSON lines with the hub's columns:

    FOLDER/tasks/rte/train.jsonl
    FOLDER/tasks/rte/validation.jsonl
    FOLDER/few_shot/rte/32_shot/0_seed.jsonl        (T-Few's few-shot sets; its names of tasks)

`lab.real.prompts` says which tasks there are and how they are worded; `lab.real.task_file` describes others,
whose data are in files of their own. `fixtures/` is such a folder with a few rows of each task, written by
hand.
"""

import dataclasses
import difflib
import random
import re
import string
from pathlib import Path

import datasets

from . import tables
from .prompts import TASKS, Prompted

FIXTURES = Path(__file__).parent / "fixtures"
# The few-shot sets of T-Few (Liu et al. 2022): folder and examples of each held-out task; five seeds.
FEW_SHOT = {
    "rte": ("rte", 32),
    "cb": ("cb", 32),
    "copa": ("copa", 32),
    "wic": ("wic", 32),
    "wsc": ("wsc", 32),
    "winogrande": ("winogrande", 50),
    "hellaswag": ("h-swag", 20),
    "anli_r1": ("anli-r1", 50),
    "anli_r2": ("anli-r2", 50),
    "anli_r3": ("anli-r3", 50),
}
FEW_SHOT_SEEDS = (0, 1, 32, 42, 1024)
FEW_SHOT_ROWS = 32  # of a task that T-Few has no few-shot sets for
FEW_SHOT_ADDRESS = "https://raw.githubusercontent.com/r-three/t-few/master/data"


def load(task: str | Prompted, split: str, data: str | Path | None = None) -> datasets.Dataset:
    """A data set as it was published.

    Args:
        task: a key of `prompts.TASKS`, or a task.
        split: "train" or "validation". Of a task without validation rows, a fifth of its training rows is
            held out (`hold_out`).
        data: a folder as above, of tasks of the book; None: the hub.

    Returns:
        A data set with the columns that the task's prompts name, and others.

    Raises:
        KeyError: there is no such task.
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be read, or is empty.
    """
    task = placed(find(task), data)
    places = dict(zip(("train", "validation"), task.splits, strict=True))
    rows = _read(task, places[split] or places["train"])
    return rows if places["validation"] else hold_out(rows, task)[split]


def placed(task: Prompted, data: str | Path | None) -> Prompted:
    """A task whose data set is where it is read from: a task of the book is in a folder, if one is given."""
    if data is None or task.name not in TASKS or not task.hub:
        return task
    folder = Path(data).resolve() / "tasks" / task.name
    files = tuple(str(folder / f"{split}.jsonl") for split in ("train", "validation"))
    return dataclasses.replace(task, hub="", splits=files, revision=None)


def _read(task, place):
    """A file, or a split of the hub."""
    if not task.hub:
        return tables.read(place)
    repository, _, configuration = task.hub.partition(":")
    return datasets.load_dataset(repository, configuration or None, split=place, revision=task.revision)


def hold_out(rows: datasets.Dataset, task: Prompted) -> dict[str, datasets.Dataset]:
    """Training rows in two parts: a fifth is for validation; of the same choices, a fifth of every answer.

    An answer that occurs once stays in training. The same rows give the same parts.

    Returns:
        {"train": ..., "validation": ...}, with a column `_row`, where a row was.

    Raises:
        ValueError: a row has a fault, or nothing can be held out.
    """
    worded = _word_all(task, rows, task.prompts[:1])
    same = len({tuple(choices) for _, choices, _ in worded}) == 1
    places = {}  # {answer: rows}
    for i, (_, _, label) in enumerate(worded):
        places.setdefault(label if same else None, []).append(i)
    held = []
    for of in places.values():
        random.Random(0).shuffle(of)
        held += of[: max(1, len(of) // 5)] if len(of) > 1 else []
    if not held:
        problem = f"no answer occurs twice in {_source(rows)}, so that no row can be held out"
        raise ValueError(f"{task.name}: {problem}; give validation rows")
    rows = numbered(rows)
    kept = sorted({*range(len(rows))} - {*held})
    return {"train": rows.select(kept), "validation": rows.select(sorted(held))}


def numbered(rows: datasets.Dataset) -> datasets.Dataset:
    """The same rows with a column `_row` that says where each is, for messages, unless there is one."""
    return rows if "_row" in rows.column_names else rows.add_column("_row", list(range(len(rows))))


def load_few_shot(task: str | Prompted, seed: int, data: str | Path | None = None) -> datasets.Dataset:
    """A few training examples: those that T-Few drew with a seed, or for other tasks 32 drawn here.

    Args:
        task: a key of `prompts.TASKS`, or a task.
        seed: one of `FEW_SHOT_SEEDS`.
        data: a folder as above, of tasks of the book; None: T-Few's repository.

    Returns:
        A data set with the columns that the task's prompts name, and others.

    Raises:
        As `load`.
    """
    task = find(task)
    if task.name not in FEW_SHOT:
        rows = numbered(load(task, "train", data)).shuffle(seed=seed)
        return rows.select(range(min(FEW_SHOT_ROWS, len(rows))))
    folder, shots = FEW_SHOT[task.name]
    place = f"few_shot/{folder}/{shots}_shot/{seed}_seed.jsonl"
    if data is not None:
        return tables.read(Path(data) / place)
    return datasets.load_dataset("json", data_files=f"{FEW_SHOT_ADDRESS}/{place}", split="train")


def examples(
    task: str | Prompted,
    rows: datasets.Dataset,
    task_id: int,
    prompts: int | None = None,
    most_choices: int | None = None,
) -> datasets.Dataset:
    """Words the rows of a data set as prompts with answer choices.

    Args:
        task: a key of `prompts.TASKS`, or a task.
        rows: from `load` or `load_few_shot`.
        task_id: for the model.
        prompts: how many of the task's prompts are used, in turn, row after row; None: all.
        most_choices: keep the right choice and as many of the others, at random, as make this number;
            None: keep all.

    Returns:
        A data set with the columns `prompt` (text), `choices` (list of texts), `label` (number of the right
        choice), `task_ids` and `task`.

    Raises:
        ValueError: a column or a value is missing, a label belongs to no choice, or there is one choice
            alone; the message names task and row (by the column `_row`, if rows have been shuffled), and
            says how many more rows have a fault.
    """
    task = find(task)
    worded = []
    for i, (prompt, choices, label) in enumerate(_word_all(task, rows, task.prompts[:prompts])):
        if most_choices is not None and most_choices < len(choices):
            wrong = random.Random(i).sample([c for c in range(len(choices)) if c != label], most_choices - 1)
            kept = sorted([label, *wrong])
            choices, label = [choices[c] for c in kept], kept.index(label)
        worded.append(
            {"prompt": prompt, "choices": choices, "label": label, "task_ids": task_id, "task": task.name}
        )
    return datasets.Dataset.from_list(worded)


def _word_all(task, rows, templates):
    """`word` of every row, the templates in turn; the error of the first that has a fault."""
    worded, faults = [], {}
    for i, row in enumerate(rows):
        try:
            worded.append(word(task, row, templates[i % len(templates)]))
        except ValueError as error:
            faults[row.get("_row", i)] = error
    if faults:
        first, *others = sorted(faults)
        more = f" ({len(others)} more of its rows have a fault, row {others[0]} next)" if others else ""
        raise ValueError(f"{task.name}, row {first} of {_source(rows)}: {faults[first]}{more}")
    return worded


def word(task: Prompted, row: dict, template: str) -> tuple[str, list[str], int]:
    """One row as a prompt, its choices and the number of the right one.

    >>> row = {"premise": "It rained.", "choice1": "It was wet.", "choice2": "It was dry."}
    >>> row |= {"question": "effect", "label": 0}
    >>> word(TASKS["copa"], row, TASKS["copa"].prompts[0])
    ('It rained. What is the most likely effect?', ['It was wet.', 'It was dry.'], 0)
    """
    prompt, choices = ask(task, row, template)
    given, labels = _text(_column(task.label, row)), label_of_each(task, row, choices)
    if task.labels is None and _NUMBER(given) and not all(map(_NUMBER, choices)):
        labels = [str(i) for i in range(len(choices))]
    if labels == choices:  # the place of the right one must not tell
        choices = labels = sorted(choices)
    place = _place(given, labels)
    if place is None:
        near = difflib.get_close_matches(given, labels, 1)
        advice = f"; is {near[0]!r} meant?" if near else ""
        raise ValueError(f"{task.label}={given!r} is the label of no choice; the labels are {labels}{advice}")
    return prompt, choices, place


def ask(task: Prompted, row: dict, template: str) -> tuple[str, list[str]]:
    """One row as a prompt and its choices, whatever the label."""
    choices = _several(task.choices, row)
    if len(choices) < 2:
        raise ValueError(f"{choices} are no two choices")
    return _fill(template, row), choices


def columns(task: Prompted) -> set[str]:
    """The columns that the first prompt and the choices take."""
    choices = [] if isinstance(task.choices, str) else task.choices
    named = {task.choices} if isinstance(task.choices, str) else set()
    return named.union(*map(_fields, [task.prompts[0], *choices]))


def label_of_each(task: Prompted, row: dict, choices: list[str]) -> list[str]:
    """What the label column holds where a choice is right: its text, unless the task says otherwise."""
    if task.labels is None:
        return choices
    return _several(task.labels, row) if task.labels else [str(i) for i in range(len(choices))]


def find(task: str | Prompted, known: dict[str, Prompted] = TASKS) -> Prompted:
    """The task of a name among those that are known; a task is found already.

    Raises:
        KeyError: there is no such task; the message lists all.
    """
    if isinstance(task, Prompted):
        return task
    if task not in known:
        raise KeyError(f"no task is called {task!r}; there are {', '.join(known)}")
    return dataclasses.replace(known[task], name=task)


def _source(rows):
    return rows.info.description or rows.info.dataset_name or "the data set"


_NUMBER = re.compile(r"-?\d+(\.0+)?").fullmatch


def _text(value):
    """A value as text, a whole number without decimals."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _place(given, labels):
    """Where a label stands, exactly or, if that is clear, but for spaces, capitals and `.0`."""
    if given in labels:
        return labels.index(given)
    plain = [re.sub(r"(-?\d+)\.0+", r"\1", label.strip().casefold()) for label in [given, *labels]]
    return plain.index(plain[0], 1) - 1 if plain.count(plain[0]) == 2 else None


def _several(of, row):
    """Templates filled, or the texts of a list column."""
    if not isinstance(of, str):
        return [_fill(x, row) for x in of]
    values = _column(of, row)
    if not isinstance(values, list):
        raise ValueError(
            f"column {of!r} holds {values!r}, no list; for a column each, write ['{{a}}', '{{b}}']"
        )
    return [_text(x) for x in values]


def _column(path, row):
    """A column, or with a dot a field of it."""
    value = row
    for name in [path] if path in row else path.split("."):
        if not isinstance(value, dict) or name not in value:
            columns = sorted(column for column in row if column != "_row")
            raise ValueError(f"there is no column {path!r}; the columns are {columns}")
        value = value[name]
    if value is None:
        raise ValueError(f"column {path!r} has no value")
    return value


def _fields(template):
    return [field for _, field, _, _ in string.Formatter().parse(template) if field]


def _fill(template, row):
    parts = string.Formatter().parse(template)
    return "".join(before + _shown(field and _column(field, row)) for before, field, _, _ in parts)


def _shown(value):
    """A column's value in a prompt; a list has a line for each of its texts."""
    return "" if value is None else "\n".join(map(str, value)) if isinstance(value, list) else str(value)
