"""Task files: your own tasks, described in JSON or YAML.

    {"tasks": {
      "sentiment": {
        "data": {"train": "reviews.csv", "validation": "more_reviews.csv"},
        "prompts": ["Did the guest like it? {text}", "{text}\\nThis review is:"],
        "choices": ["negative", "positive"],
        "label": "opinion"
      }
    }}

- **data**: a file (.csv, .tsv, .jsonl, .parquet; see `lab.real.tables`); or `train` and `validation` files;
  or a data set of the hub, `{"hub": "stanfordnlp/imdb", "train": "train", "validation": "test"}`. Paths start
  at the folder of the task file. Without validation rows a fifth of the training rows is held out.
- **prompts**: templates, with columns in braces. Training takes them in turn, evaluation and prediction take
  the first. A brace of the text itself is doubled.
- **choices**: the answers; or a template for each, `["{a}", "{b}"]`; or the column that holds a list of them.
- **label**: the column of the right answer, `label` if it is left out. It holds the place of the right
  choice, counted from 0, or its text. Spaces around it, capitals and a `.0` are passed over where only one
  choice fits. If all choices are numbers themselves, a number is a text.
- **labels**, if that column holds something else: its value for each choice, `["neg", "pos"]`. An empty list
  says that it holds places and nothing else.

`task_file.schema.json` beside this file says the same to an editor, and `example/` has a file to start from.
"""

import json
import string
from pathlib import Path

import jsonschema
import yaml

from . import tables
from .prompts import Prompted

SCHEMA = json.loads(Path(__file__).with_name("task_file.schema.json").read_text())


def read(file: str | Path, check_data: bool = True) -> dict[str, Prompted]:
    """The tasks of a file, by their names. Their data are not read yet.

    Args:
        file: JSON, or YAML if its name ends so.
        check_data: whether files of data have to be there.

    Raises:
        FileNotFoundError: the file is missing, or one that it names.
        ValueError: it is not as the schema says, or a template is wrong; the message names file and task.
    """
    file = Path(file)
    description = _parse(file)
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(SCHEMA).iter_errors(description))
    if error is not None:
        raise ValueError(f"{_where(file, error.absolute_path)}: {_sentence(error)}")
    found = {}
    for name, entry in description["tasks"].items():
        try:
            found[name] = _task(name, entry, file.parent, check_data)
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{file}, task {name!r}: {error}") from None
    return found


def write(file: str | Path, tasks: list[Prompted]) -> None:
    """Writes a task file, which `read` reads. Paths in it are absolute."""
    entries = {}
    for task in tasks:
        places = {k: v for k, v in zip(("train", "validation"), task.splits, strict=True) if v is not None}
        hub = {"hub": task.hub} if task.hub else {}
        hub |= {"revision": task.revision} if task.revision else {}
        entry = {"data": hub | places, "prompts": task.prompts, "choices": task.choices, "label": task.label}
        entries[task.name] = entry | ({} if task.labels is None else {"labels": task.labels})
    Path(file).write_text(json.dumps({"tasks": entries}, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _parse(file):
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; give a task file, JSON or YAML")
    try:
        text = file.read_text("utf-8-sig")
        if file.suffix.lower() in (".yaml", ".yml"):
            return yaml.safe_load(text)
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{file} is not {'YAML' if '.y' in file.suffix.lower() else 'JSON'}: {error}"
        ) from None


def _once(pairs):
    """A JSON object, in which no key stands twice."""
    names = [name for name, _ in pairs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{repeated} stand more than once in one object")
    return dict(pairs)


def _where(file, path):
    """The place of a fault: file, task, and the entry of the task."""
    path = list(path)
    task = f", task {path[1]!r}" if len(path) > 1 else ""
    inner = path[2:] if task else path
    entry = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in inner).lstrip(".")
    return f"{file}{task}" + (f", {entry}" if entry else "")


def _sentence(error):
    """What is wrong, in the schema library's words, and what would fit."""
    wanted = error.schema.get("description")
    if error.validator in ("required", "additionalProperties"):
        wanted = f"the keys are {', '.join(error.schema['properties'])}"
    elif error.validator == "type" and error.schema["type"] == "string":
        wanted = "put it in quotes" if isinstance(error.instance, bool | int | float) else "a text fits"
    return error.message + (f"; {wanted}" if wanted else "")


def _task(name, entry, folder, check_data):
    data, choices, labels = entry["data"], entry["choices"], entry.get("labels")
    data = {"train": data} if isinstance(data, str) else data
    splits = [data["train"], data.get("validation")]
    if "hub" not in data:
        splits = [place and str((folder / place).resolve()) for place in splits]
        for place in filter(None, splits if check_data else []):
            if not Path(place).is_file():
                hub = 'a data set of the hub is {"hub": its name, "train": a split}'
                raise FileNotFoundError(f"{place} is missing; a path starts at {folder.resolve()}, and {hub}")
            if Path(place).suffix.lower() not in tables.READERS:
                raise ValueError(f"{place}: its name must end in one of {', '.join(tables.READERS)}")
    label = entry.get("label", "label")
    for i, template in enumerate(entry["prompts"]):
        columns = _columns(template, f"prompts[{i}]")
        if not columns:
            raise ValueError(f"prompts[{i}]={template!r} shows no column; put one in braces")
        if label in columns:
            raise ValueError(f"prompts[{i}]={template!r} shows {label!r}, the column of the right answer")
    if isinstance(choices, list):
        for i, template in enumerate(choices):
            _columns(template, f"choices[{i}]")
        _different("choices", choices)
    if isinstance(labels, list) and labels:
        _different("labels", labels)
        if isinstance(choices, list) and len(labels) != len(choices):
            raise ValueError(f"labels has {len(labels)} entries, but there are {len(choices)} choices")
    return Prompted(
        hub=data.get("hub", ""),
        prompts=tuple(entry["prompts"]),
        choices=tuple(choices) if isinstance(choices, list) else choices,
        label=label,
        labels=tuple(labels) if isinstance(labels, list) else labels,
        splits=tuple(splits),
        revision=data.get("revision"),
        name=name,
    )


def _columns(template, where):
    """The columns that a template names."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{where}={template!r}: {error}; a brace of the text itself is doubled") from None
    fields = [(field, form, conversion) for _, field, form, conversion in parts if field is not None]
    if any(not field or form or conversion for field, form, conversion in fields):
        raise ValueError(f"{where}={template!r}: in braces stands the name of a column, and nothing else")
    return {field for field, _, _ in fields}


def _different(what, texts):
    if len({text.strip() for text in texts}) < len(texts):
        raise ValueError(f"{what}={texts} are not all different")
