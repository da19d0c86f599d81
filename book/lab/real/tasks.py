"""Real tasks as examples: a prompt, answer choices, and the number of the right one.

Data sets come from the Hugging Face hub, or from a folder of JSON lines with the hub's columns:

    FOLDER/tasks/rte/train.jsonl
    FOLDER/tasks/rte/validation.jsonl
    FOLDER/few_shot/rte/32_shot/0_seed.jsonl        (T-Few's few-shot sets; its names of tasks)

`lab.real.prompts` says which tasks there are and how they are worded. `lab/real/fixtures` is such a folder
with a few rows of each task, written by hand.
"""

import json
import random
import string
from pathlib import Path

import datasets

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


def load(name: str, split: str, data: str | Path | None = None) -> datasets.Dataset:
    """A data set as it was published.

    Args:
        name: a key of `prompts.TASKS`.
        split: "train" or "validation".
        data: a folder as above; None: the hub.

    Returns:
        A data set with the columns that the task's prompts name, and others.

    Raises:
        KeyError: there is no such task.
        FileNotFoundError: the folder lacks the file.
        ValueError: a line of the file is no JSON object, or the file is empty.
    """
    task = find(name)
    if data is not None:
        return _read_lines(Path(data) / "tasks" / name / f"{split}.jsonl")
    repository, _, configuration = task.hub.partition(":")
    hub_split = dict(zip(("train", "validation"), task.splits, strict=True))[split]
    return datasets.load_dataset(repository, configuration or None, split=hub_split, revision=task.revision)


def load_few_shot(name: str, seed: int, data: str | Path | None = None) -> datasets.Dataset:
    """A few training examples: those that T-Few drew with a seed, or for other tasks 32 drawn here.

    Args:
        name: a key of `prompts.TASKS`.
        seed: one of `FEW_SHOT_SEEDS`.
        data: a folder as above; None: T-Few's repository.

    Returns:
        A data set with the columns that the task's prompts name, and others.

    Raises:
        As `load`.
    """
    find(name)
    if name not in FEW_SHOT:
        rows = load(name, "train", data).shuffle(seed=seed)
        return rows.select(range(min(FEW_SHOT_ROWS, len(rows))))
    folder, shots = FEW_SHOT[name]
    place = f"few_shot/{folder}/{shots}_shot/{seed}_seed.jsonl"
    if data is not None:
        return _read_lines(Path(data) / place)
    return datasets.load_dataset("json", data_files=f"{FEW_SHOT_ADDRESS}/{place}", split="train")


def examples(
    name: str,
    rows: datasets.Dataset,
    task_id: int,
    prompts: int | None = None,
    most_choices: int | None = None,
) -> datasets.Dataset:
    """Words the rows of a data set as prompts with answer choices.

    Args:
        name: a key of `prompts.TASKS`.
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
            alone; the message names task and row (by the column `row`, if rows have been shuffled).
    """
    task = find(name)
    templates = task.prompts[:prompts]
    worded = []
    for i, row in enumerate(rows):
        try:
            prompt, choices, label = word(task, row, templates[i % len(templates)])
        except ValueError as error:
            raise ValueError(f"{name}, row {row.get('row', i)} of {_source(rows)}: {error}") from None
        if most_choices is not None and most_choices < len(choices):
            wrong = random.Random(i).sample([c for c in range(len(choices)) if c != label], most_choices - 1)
            kept = sorted([label, *wrong])
            choices, label = [choices[c] for c in kept], kept.index(label)
        worded.append(
            {"prompt": prompt, "choices": choices, "label": label, "task_ids": task_id, "task": name}
        )
    return datasets.Dataset.from_list(worded)


def word(task: Prompted, row: dict, template: str) -> tuple[str, list[str], int]:
    """One row as a prompt, its choices and the number of the right one.

    >>> row = {"premise": "It rained.", "choice1": "It was wet.", "choice2": "It was dry."}
    >>> row |= {"question": "effect", "label": 0}
    >>> word(TASKS["copa"], row, TASKS["copa"].prompts[0])
    ('It rained. What is the most likely effect?', ['It was wet.', 'It was dry.'], 0)
    """
    choices = _several(task.choices, row)
    if task.labels == task.choices:  # the label is an answer's text, and its place must not tell
        choices = labels = sorted(choices)
    else:
        labels = _several(task.labels, row) or [str(i) for i in range(len(choices))]
    if len(choices) < 2:
        raise ValueError(f"{choices} are no two choices")
    given = str(_column(task.label, row))
    if given not in labels:
        raise ValueError(f"{task.label}={given!r} is the label of no choice; the labels are {labels}")
    return _fill(template, row), choices, labels.index(given)


def find(name: str) -> Prompted:
    """The task of a name.

    Raises:
        KeyError: there is no such task; the message lists all.
    """
    if name not in TASKS:
        raise KeyError(f"no task is called {name!r}; there are {', '.join(TASKS)}")
    return TASKS[name]


def _read_lines(file):
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing; a data folder has it for every task that is used")
    rows = []
    with file.open("rb") as lines:
        for i, line in enumerate(lines):
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:
                raise ValueError(f"{file}, row {i}: not JSON in UTF-8 ({error})") from None
            if not isinstance(row, dict):
                raise ValueError(f"{file}, row {i}: not a JSON object of columns")
            rows.append(row)
            if row.keys() != rows[0].keys():
                differ = sorted(row.keys() ^ rows[0].keys())
                raise ValueError(f"{file}, row {i}: columns {differ} are not those of row 0")
    if not rows:
        raise ValueError(f"{file} has no rows")
    try:
        return datasets.Dataset.from_list(rows, info=datasets.DatasetInfo(description=str(file)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: a column changes its type between rows ({error})") from None


def _source(rows):
    return rows.info.description or rows.info.dataset_name or "the data set"


def _several(of, row):
    """Templates filled, or the texts of a list column."""
    return [str(x) for x in _column(of, row)] if isinstance(of, str) else [_fill(x, row) for x in of]


def _column(path, row):
    """A column, or with a dot a field of it."""
    value = row
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            raise ValueError(f"there is no column {path!r}; the columns are {sorted(row)}")
        value = value[name]
    if value is None:
        raise ValueError(f"column {path!r} has no value")
    return value


def _fill(template, row):
    fields = {field for _, field, _, _ in string.Formatter().parse(template) if field}
    values = {field: _column(field, row) for field in fields}
    return template.format_map(
        {field: "\n".join(map(str, x)) if isinstance(x, list) else x for field, x in values.items()}
    )
