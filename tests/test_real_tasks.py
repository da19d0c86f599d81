"""Real tasks: every prompt on hand-written rows with the hub's columns, and on real data if there is any."""

import dataclasses
import json
import os
import string
from pathlib import Path

import datasets
import pytest

from lab.real import prompts, tasks

REAL_DATA = os.environ.get("MINITENSORPOLY_DATA")
each_task = pytest.mark.parametrize("name", prompts.TASKS)
each_split = pytest.mark.parametrize("split", ["train", "validation"])
with_real_data = pytest.mark.skipif(
    not REAL_DATA, reason="MINITENSORPOLY_DATA names no folder of real data sets"
)


def test_there_are_enough_tasks_and_no_task_has_two_uses():
    assert len(prompts.TRAIN) >= 20 and len(prompts.HELD_OUT) == 10 and len(prompts.DEVELOPMENT) >= 3
    assert len(prompts.TASKS) == len(prompts.TRAIN) + len(prompts.HELD_OUT) + len(prompts.DEVELOPMENT)
    assert set(tasks.FEW_SHOT) == set(prompts.HELD_OUT)


@each_task
def test_a_task_has_two_prompts_or_more_and_they_show_the_same_columns(name):
    task = prompts.TASKS[name]
    assert len(set(task.prompts)) >= 2
    for template in task.prompts:
        assert [field for _, field, _, _ in string.Formatter().parse(template) if field]
        assert not template.endswith((" ", "\n"))


@each_split
@each_task
def test_every_row_becomes_a_prompt_with_choices_one_of_which_is_right(name, split):
    _check(name, tasks.load(name, split, tasks.FIXTURES))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", prompts.HELD_OUT)
def test_few_shot_sets_have_the_columns_of_their_task(name, seed):
    _check(name, tasks.load_few_shot(name, seed, tasks.FIXTURES))


@with_real_data
@each_split
@each_task
def test_real_data_set(name, split):
    found = _check(name, tasks.load(name, split, REAL_DATA))
    assert len(set(found["label"])) > 1


@with_real_data
@pytest.mark.parametrize("seed", tasks.FEW_SHOT_SEEDS)
@pytest.mark.parametrize("name", prompts.HELD_OUT)
def test_real_few_shot_set(name, seed):
    rows = tasks.load_few_shot(name, seed, REAL_DATA)
    assert len(_check(name, rows)) == tasks.FEW_SHOT[name][1]


def _check(name, rows):
    found = tasks.examples(name, rows, task_id=7)
    assert len(found) == len(rows) and set(found["task"]) == {name} and set(found["task_ids"]) == {7}
    for example in found:
        assert 0 <= example["label"] < len(example["choices"]) >= 2
        assert example["prompt"].strip() and all(choice.strip() for choice in example["choices"])
    return found


def test_a_worded_row_says_what_the_row_says():
    row = {"sentence": "The key did not fit the lock because the _ was too big.", "option1": "key"}
    row |= {"option2": "lock", "answer": "1"}
    task = prompts.TASKS["winogrande"]
    prompt, choices, label = tasks.word(task, row, task.prompts[0])
    assert row["sentence"] in prompt and choices == ["key", "lock"] and choices[label] == "key"
    row = {"id": 0, "dialogue": ["M: Hello.", "W: Good morning."], "question": "Who greets?"}
    row |= {"choice": ["Nobody.", "Both."], "answer": "Both."}
    task = prompts.TASKS["dream"]
    prompt, choices, label = tasks.word(task, row, task.prompts[0])
    assert prompt.endswith("M: Hello.\nW: Good morning.") and choices[label] == "Both."


@pytest.mark.parametrize(
    "name, right",
    [("arc_easy", "light"), ("sciq", "carbon dioxide"), ("social_i_qa", "helpful"), ("creak", "true")],
)
def test_the_label_points_to_the_right_answer(name, right):
    first = tasks.examples(name, tasks.load(name, "train", tasks.FIXTURES), 0)[0]
    assert first["choices"][first["label"]] == right


def test_prompts_take_turns_in_training_and_the_first_serves_for_evaluation():
    rows = tasks.load("rte", "train", tasks.FIXTURES)
    first, second = tasks.examples("rte", rows, 0)["prompt"][:2]
    assert first.startswith("Claim:") and second.startswith(rows[1]["premise"])
    assert all(
        prompt.startswith("Claim:") and prompt.endswith(row["premise"])
        for prompt, row in zip(tasks.examples("rte", rows, 0, prompts=1)["prompt"], rows, strict=True)
    )


@pytest.mark.parametrize("name", ["qasc", "trec", "rte"])
def test_fewer_choices_keep_the_right_one_and_their_order(name):
    rows = tasks.load(name, "train", tasks.FIXTURES)
    whole, few = (tasks.examples(name, rows, 0, most_choices=n) for n in (None, 3))
    for every, some in zip(whole, few, strict=True):
        assert len(some["choices"]) == min(3, len(every["choices"]))
        assert some["choices"][some["label"]] == every["choices"][every["label"]]
        places = [every["choices"].index(choice) for choice in some["choices"]]
        assert places == sorted(places)
    again = tasks.examples(name, rows, 0, most_choices=3)
    assert again["choices"][:] == few["choices"][:]


def test_few_shot_sets_of_other_tasks_are_drawn_from_their_training_rows():
    rows = tasks.load("multirc", "train", tasks.FIXTURES)
    drawn = tasks.load_few_shot("multirc", 1, tasks.FIXTURES)
    assert len(drawn) == min(tasks.FEW_SHOT_ROWS, len(rows))
    assert all(row == rows[row["_row"]] | {"_row": row["_row"]} for row in drawn)


# What bad input gets.


def _folder(tmp_path, lines) -> Path:
    file = tmp_path / "tasks" / "rte" / "train.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8", errors="surrogateescape")
    return tmp_path


GOOD = json.dumps({"premise": "It rained.", "hypothesis": "It was dry.", "label": 1})


def test_unknown_task_lists_the_known_ones():
    with pytest.raises(KeyError, match="'story_cloze'.*rte"):
        tasks.load("story_cloze", "train", tasks.FIXTURES)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"rte.validation\.jsonl is missing"):
        tasks.load("rte", "validation", _folder(tmp_path, [GOOD]))


@pytest.mark.parametrize(
    "line, problem",
    [
        ("{broken", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ('{"premise": "It rained.", "label": 1}', r"columns \['hypothesis'\] are not those of row 0"),
        ('{"premise": "\udcff"}', "not JSON in UTF-8"),
    ],
)
def test_unreadable_line_is_named(tmp_path, line, problem):
    with pytest.raises(ValueError, match=rf"rte.train\.jsonl, row 1: {problem}"):
        tasks.load("rte", "train", _folder(tmp_path, [GOOD, line]))


def test_a_column_of_two_types_is_named(tmp_path):
    line = json.dumps(json.loads(GOOD) | {"premise": {"text": "It rained."}})
    with pytest.raises(ValueError, match=r"rte.train\.jsonl: a column changes its type between rows"):
        tasks.load("rte", "train", _folder(tmp_path, [GOOD, line]))


def test_a_missing_value_names_set_file_row_and_column(tmp_path):
    line = json.dumps(json.loads(GOOD) | {"premise": None})
    rows = tasks.load("rte", "train", _folder(tmp_path, [GOOD, line]))
    with pytest.raises(ValueError, match=r"rte, row 1 of .*train\.jsonl: column 'premise' has no value"):
        tasks.examples("rte", rows, 0)


def test_one_choice_alone_is_refused(monkeypatch):
    task = dataclasses.replace(prompts.TASKS["rte"], choices=("Yes",))
    with pytest.raises(ValueError, match=r"\['Yes'\] are no two choices"):
        tasks.word(task, json.loads(GOOD), task.prompts[0])


def test_empty_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"rte.train\.jsonl has no rows"):
        tasks.load("rte", "train", _folder(tmp_path, []))


def test_missing_column_names_set_file_row_and_column(tmp_path):
    rows = tasks.load("rte", "train", _folder(tmp_path, [GOOD])).remove_columns("premise")
    with pytest.raises(
        ValueError, match=r"rte, row 0 of .*train\.jsonl: there is no column 'premise'.*label"
    ):
        tasks.examples("rte", rows, 0)


@pytest.mark.parametrize("label", [-1, 2, "x"])
def test_label_out_of_range_names_set_file_and_row(tmp_path, label):
    bad = json.dumps(json.loads(GOOD) | {"label": label})
    rows = tasks.load("rte", "train", _folder(tmp_path, [bad]))
    with pytest.raises(ValueError, match=r"rte, row 0 of .*train\.jsonl: label=.* is the label of no choice"):
        tasks.examples("rte", rows, 0)


def test_the_hub_is_asked_for_repository_configuration_split_and_branch(monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)))
    tasks.load("anli_r2", "validation")
    tasks.load("trec", "validation")
    tasks.load("cola", "train")
    tasks.load_few_shot("hellaswag", 42)
    assert asked == [
        (("facebook/anli", None), {"split": "dev_r2", "revision": None}),
        (("CogComp/trec", None), {"split": "test", "revision": prompts.PARQUET}),
        (("nyu-mll/glue", "cola"), {"split": "train", "revision": None}),
        (
            ("json",),
            {
                "data_files": f"{tasks.FEW_SHOT_ADDRESS}/few_shot/h-swag/20_shot/42_seed.jsonl",
                "split": "train",
            },
        ),
    ]
