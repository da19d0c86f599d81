"""Task files: what they say is what is trained, and a fault is named with file, task, row and column."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from lab.real import finetune, task_file, tasks

EXAMPLE = Path(task_file.__file__).with_name("example")
ROWS = [("It was good.", "yes"), ("It was bad.", "no")] * 5


def entry(**changes):
    """A task, as a task file has it."""
    task = {"data": "rows.csv", "prompts": ["Good? {text}"], "choices": ["no", "yes"], "label": "answer"}
    return {name: value for name, value in (task | changes).items() if value is not None}


def write(folder, rows=ROWS, name="rows.csv", header=("text", "answer"), **changes):
    """A task file with one task, `mine`, and its rows."""
    quoted = [",".join(f'"{cell}"' for cell in row) for row in (header, *rows)]
    (folder / name).write_text("\n".join(quoted) + "\n")
    file = folder / "tasks.json"
    file.write_text(json.dumps({"tasks": {"mine": entry(**changes)}}))
    return file


def notes(file, **options):
    return finetune.word_all(finetune.Setting(task_file=str(file), **options))


@pytest.mark.parametrize("file", sorted(EXAMPLE.glob("*.json")) + sorted(EXAMPLE.glob("*.yaml")))
def test_the_example_fits_the_schema_that_ships(file):
    jsonschema.Draft202012Validator.check_schema(task_file.SCHEMA)
    jsonschema.validate(yaml.safe_load(file.read_text()), task_file.SCHEMA)
    for task in task_file.read(file).values():
        rows = tasks.load(task, "train")
        assert len(tasks.examples(task, rows, 0)) == len(rows)


def test_json_and_yaml_say_the_same(tmp_path):
    file = write(tmp_path)
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(json.loads(file.read_text())))
    assert task_file.read(file) == task_file.read(tmp_path / "tasks.yaml")


@pytest.mark.parametrize("changes", [{}, {"labels": ["n", "y"]}, {"labels": []}, {"choices": "list"}])
def test_what_is_written_is_read(tmp_path, changes):
    read = task_file.read(write(tmp_path, **changes))
    task_file.write(tmp_path / "again.json", list(read.values()))
    assert task_file.read(tmp_path / "again.json") == read


def test_tasks_of_the_book_can_be_written_and_read(tmp_path):
    for name in tasks.TASKS:
        for data in (None, tasks.FIXTURES):
            task = tasks.placed(tasks.find(name), data)
            task_file.write(tmp_path / "one.json", [task])
            assert task_file.read(tmp_path / "one.json") == {name: task}


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"prompts": None, "prompt": "x"},
            r"task 'mine': 'prompts' is a required .*; the keys are data, prompts",
        ),
        ({"prompt": "x"}, r"task 'mine': Additional .*'prompt' was unexpected.*; the keys are data, prompts"),
        (
            {"prompts": "Good? {text}"},
            r"task 'mine', prompts: 'Good\? {text}' is not of type 'array'; Templates",
        ),
        ({"prompts": []}, r"task 'mine', prompts: \[\] should be non-empty; Templates"),
        (
            {"choices": [False, True]},
            r"task 'mine', choices\[0\]: False is not of type 'string'; put it in quotes",
        ),
        ({"choices": ["yes"]}, r"task 'mine', choices: \['yes'\] is too short"),
        ({"labels": [0, 1]}, r"task 'mine', labels\[0\]: 0 is not of type 'string'; put it in quotes"),
        (
            {"data": {"training": "a.csv"}},
            r"task 'mine', data: .*; A file of training rows, or where training",
        ),
        ({"prompts": ["Good?"]}, r"task 'mine': prompts\[0\]='Good\?' shows no column; put one in braces"),
        ({"prompts": ["{text", "{text}"]}, r"task 'mine': prompts\[0\]='{text': .*; a brace of the text"),
        (
            {"prompts": ["{text!r}"]},
            r"task 'mine': prompts\[0\]=.* stands the name of a column, and nothing else",
        ),
        ({"prompts": ["{}"]}, r"task 'mine': prompts\[0\]='{}': in braces stands the name of a column"),
        (
            {"prompts": ["{text} {answer}"]},
            r"task 'mine': prompts\[0\]=.* shows 'answer', the column of the right answer",
        ),
        ({"choices": ["no", "no "]}, r"task 'mine': choices=\['no', 'no '\] are not all different"),
        ({"labels": ["a", "b", "c"]}, r"task 'mine': labels has 3 entries, but there are 2 choices"),
        (
            {"data": "row.csv"},
            r"task 'mine': .*row\.csv is missing; a path starts at .*, and a data set of the hub",
        ),
        ({"data": "tasks.json.txt"}, r"task 'mine': .*\.txt: its name must end in one of \.csv"),
    ],
)
def test_a_fault_in_a_task_file_is_named(tmp_path, changes, message):
    (tmp_path / "tasks.json.txt").touch()
    with pytest.raises((ValueError, FileNotFoundError), match=rf"tasks\.json, {message}"):
        task_file.read(write(tmp_path, **changes))


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("tasks.json", '{"tasks": }', "is not JSON: Expecting value: line 1"),
        (
            "tasks.json",
            '{"tasks": {"a": 1, "a": 2}}',
            r"is not JSON: \['a'\] stand more than once in one object",
        ),
        ("tasks.yaml", "tasks: [", "is not YAML: "),
        ("tasks.json", "[]", r"\[\] is not of type 'object'"),
        ("tasks.json", '{"tasks": {}}', "{} should be non-empty"),
    ],
)
def test_a_file_that_is_no_task_file_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name}.* {message}"):
        task_file.read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"other\.json is missing; give a task file, JSON or YAML"):
        task_file.read(tmp_path / "other.json")


@pytest.mark.parametrize(
    "changes, given, right",
    [
        ({}, "yes", "yes"),
        ({}, " Yes ", "yes"),
        ({}, "1", "yes"),
        ({}, "1.0", "yes"),  # a column of integers with an empty cell is one of floats to pandas
        ({"choices": ["1", "2", "3"]}, "1", "1"),  # a number that is a choice
        ({"choices": ["1", "2", "3"]}, "3.0", "3"),
        ({"choices": ["1", "2", "3"], "labels": []}, "1", "2"),
        ({"choices": ["It is bad.", "It is good."], "labels": ["neg", "pos"]}, "pos", "It is good."),
        ({"choices": ["It is bad.", "It is good."], "labels": ["0", "1"]}, "1", "It is good."),
        ({"choices": ["no", "YES", "yes"]}, "yes", "yes"),
        ({"choices": ["{text}", "never"]}, "It was good.", "It was good."),
        ({"choices": ["never", "{text}"]}, "0", "never"),
    ],
)
def test_a_label_is_a_place_or_a_text(tmp_path, changes, given, right):
    task = task_file.read(write(tmp_path, **changes))["mine"]
    row = {"text": "It was good.", "answer": given}
    _, choices, label = tasks.word(task, row, task.prompts[0])
    assert choices[label] == right


def test_choices_may_come_from_a_list_or_from_columns(tmp_path):
    rows = [{"q": "2 + 2?", "a": "4", "b": "5", "both": ["4", "5"], "answer": 0}]
    for choices in ("both", ["{a}", "{b}"]):
        task = task_file.read(write(tmp_path, prompts=["{q}"], choices=choices, labels=[]))["mine"]
        assert tasks.word(task, rows[0], task.prompts[0]) == ("2 + 2?", ["4", "5"], 0)


def test_columns_may_be_called_anything(tmp_path):
    row = {"a review": "Fine {so far}.", "v1.2": "x", "row": "7", "answer": "yes"}
    task = task_file.read(write(tmp_path, prompts=["{{{a review}}} {v1.2} {row}"]))["mine"]
    assert tasks.word(task, row, task.prompts[0])[0] == "{Fine {so far}.} x 7"


@pytest.mark.parametrize(
    "rows, changes, message",
    [
        ([*ROWS, ("Ok", "maybe")], {}, r"10 of .*answer='maybe' is the label of no choice; .*'no', 'yes'"),
        ([*ROWS, ("Ok", "yess")], {}, r"10 of .*rows\.csv: answer='yess' .*; is 'yes' meant\?"),
        ([*ROWS, ("Ok", "2")], {}, r"10 of .*answer='2' is the label of no choice; .*\['0', '1'\]"),
        ([*ROWS, ("", "yes")], {}, r"10 of .*rows\.csv: column 'text' has no value"),
        ([*ROWS, ("Ok", "")], {}, r"10 of .*rows\.csv: column 'answer' has no value"),
        (ROWS, {"prompts": ["{txt}"]}, r"0 of .*no column 'txt'; the columns are \['answer', 'text'\] \(9"),
        (ROWS, {"label": "stars"}, r"0 of .*there is no column 'stars'; the columns are"),
        (ROWS, {"choices": "text"}, r"0 of .*column 'text' holds 'It was good.', no list"),
        ([("", "no"), ("a", "no")] * 3, {}, r"0 of .*has no value \(2 more of its rows .*, row 2 next\)"),
    ],
)
@pytest.mark.parametrize("held_out", [False, True])
def test_a_fault_in_the_rows_is_named_before_any_training(tmp_path, rows, changes, message, held_out):
    data = "rows.csv" if held_out else {"train": "rows.csv", "validation": "rows.csv"}
    with pytest.raises(ValueError, match=rf"mine, row {message}"):
        notes(write(tmp_path, rows, data=data, **changes), rows=50)


def test_rows_are_held_out_of_every_label_that_occurs_twice(tmp_path):
    rows = [(f"text {i}", "yes" if i % 3 else "no") for i in range(30)]
    rows += [("alone", "maybe"), ("first", "often"), ("second", "often")]
    choices = ["no", "yes", "maybe", "often"]
    file = write(tmp_path, rows, choices=choices)
    task = task_file.read(file)["mine"]
    train, validation = (tasks.load(task, split).to_list() for split in ("train", "validation"))
    assert sorted(row["_row"] for row in [*train, *validation]) == list(range(33))
    held = [row["answer"] for row in validation]
    assert {answer: held.count(answer) for answer in choices} == {"no": 2, "yes": 4, "maybe": 0, "often": 1}
    assert all(rows[row["_row"]] == (row["text"], row["answer"]) for row in train + validation)
    assert tasks.load(task, "validation").to_list() == validation  # the same, whenever it is asked
    assert notes(file) == ["mine: no validation rows are given, so 7 of the training rows are held out"]


def test_a_held_out_fault_is_told_by_its_row_in_the_file(tmp_path):
    rows = [(f"text {i}" if i != 7 else "", "yes" if i % 2 else "no") for i in range(20)]
    with pytest.raises(ValueError, match=r"mine, row 7 of .*rows\.csv: column 'text' has no value"):
        notes(write(tmp_path, rows))


def test_a_fifth_is_held_out_where_every_row_has_choices_of_its_own(tmp_path):
    rows = [(f"question {i}", f"right {i}", f"wrong {i}", f"right {i}") for i in range(20)]
    file = write(tmp_path, rows, header=("text", "a", "b", "answer"), choices=["{a}", "{b}"])
    assert notes(file) == ["mine: no validation rows are given, so 4 of the training rows are held out"]


def test_nothing_can_be_held_out_of_labels_that_occur_once(tmp_path):
    with pytest.raises(ValueError, match=r"mine: no answer occurs twice in .*; give validation rows"):
        notes(write(tmp_path, ROWS[:2]))


def test_what_a_reader_should_know_of_the_rows_is_said(tmp_path):
    write(tmp_path, [("Unseen.", "yes"), ROWS[0]], "test.csv")
    data = {"train": "rows.csv", "validation": "test.csv"}
    found = notes(write(tmp_path, data=data, choices=["no", "yes", "maybe"]), rows=6)
    assert found == [
        "mine: 6 of 10 training rows are used; --rows takes more",
        "mine: no training row has the answer 'maybe'",
        "mine: every validation row has the answer 'yes': their accuracy says little",
        "mine: 1 validation prompts are among the training rows too",
    ]


def test_own_tasks_stand_beside_the_books_or_in_their_place(tmp_path):
    file = str(write(tmp_path))
    alone = finetune.Setting(task_file=file)
    assert (alone.tasks, alone.new_tasks, alone.used) == (["mine"], [], ["mine"])
    beside = finetune.Setting(task_file=file, tasks=["boolq", "mine"], new_tasks=["rte"])
    assert beside.used == ["boolq", "mine", "rte"] and beside.find("mine").choices == ("no", "yes")
    assert finetune.Setting(task_file=file, tasks=["boolq"], new_tasks=["mine"]).used == ["boolq", "mine"]
    with pytest.raises(KeyError, match="no task is called 'other'; there are mine, ag_news.*rte"):
        finetune.Setting(task_file=file, tasks=["other"])
    renamed = json.loads((tmp_path / "tasks.json").read_text())["tasks"]["mine"]
    (tmp_path / "tasks.json").write_text(json.dumps({"tasks": {"rte": renamed}}))
    with pytest.raises(ValueError, match="the book has tasks called rte; rename yours"):
        finetune.Setting(task_file=file)
