"""A stranger's way: files in, a model out, which answers, gets a task more and is exported."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import peft
import pytest
import tokenizers
import torch
import transformers

import minitensorpoly as mtp
from lab import methods
from lab.real import __main__ as command
from lab.real import finetune, prompts, serve, tables, task_file, tasks

EXAMPLE = Path(serve.__file__).with_name("example")
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = ("decoder", "encoder-decoder", "encoder")
ALONE = {  # what loads an exported model, by transformers alone
    "decoder": transformers.AutoModelForCausalLM,
    "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
    "encoder": transformers.AutoModelForMultipleChoice,
}


def make_pretrained(kind, folder):
    """A tiny random model of a kind that knows the words of the example."""
    words = " ".join(file.read_text() for file in sorted(EXAMPLE.glob("*.*")))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="<unk>"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator([words], tokenizers.trainers.WordLevelTrainer(special_tokens=special))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B:1 </s>:1", special_tokens=[("</s>", 1)]
    )
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    torch.manual_seed(0)
    size = len(tokenizer)
    if kind == "encoder":
        model = transformers.BertModel(transformers.BertConfig(vocab_size=size, **SMALL))
    elif kind == "decoder":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=size, **SMALL))
    else:
        config = transformers.T5Config(
            vocab_size=size, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        model = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    """A finished run on the example's two tasks, and the kind of its model."""
    folder = tmp_path_factory.mktemp(request.param)
    train(make_pretrained(request.param, folder / "pretrained"), folder / "run")
    return request.param, folder / "run"


def train(pretrained, folder, **changes):
    options = {"task_file": EXAMPLE / "tasks.json", "model": pretrained, "output_dir": folder, "budget": 4}
    options |= {"max_steps": 30, "max_length": 40, "use_cpu": True, "disable_tqdm": True, "lr": 0.03}
    options |= {"logging_steps": 30} | changes
    return finetune.main([str(text) for name, value in options.items() for text in (f"--{name}", value)])


@pytest.fixture
def model(run):
    return serve.TaskModel.load(run[1] / "model")


def validation(task):
    """The rows that a run evaluates, without their labels, and the labels."""
    rows = tasks.load(task, "validation").to_list()
    return [{k: v for k, v in row.items() if k not in ("_row", task.label)} for row in rows], [
        row[task.label] for row in rows
    ]


def scores(model, name):
    """(rows, choices) scores on the validation rows, by the model's own chooser."""
    task = next(one for one in model.tasks if one.name == name)
    found = model.predict(validation(task)[0], name)
    return torch.tensor([[*row["scores"].values()] for row in found])


# What a run leaves.


def test_a_run_leaves_a_model_that_answers_as_it_was_measured(run, model):
    result = json.loads((run[1] / "result.json").read_text())
    for task in model.tasks:
        rows, labels = validation(task)
        answers = [found["answer"] for found in model.predict(rows, task.name)]
        right = sum(a == b for a, b in zip(answers, labels, strict=True))
        assert 100 * right / len(rows) == pytest.approx(result["train"][task.name])
    assert result["train"].keys() == {"sentiment", "team"}
    first = [found["score"] for found in model.predict(["The soup was cold.", "A good cake."], "sentiment")]
    assert len({*first, 0.5}) == 3  # it has learned something


def test_the_folder_is_complete_without_the_run_and_its_data(run, model, tmp_path):
    shutil.copytree(run[1] / "model", tmp_path / "copy")
    listed = json.loads((tmp_path / "copy" / "tasks.json").read_text())
    for entry in listed["tasks"].values():
        entry["data"] = "/no/such.csv"
    (tmp_path / "copy" / "tasks.json").write_text(json.dumps(listed))
    source = json.loads((tmp_path / "copy" / "model.json").read_text())
    shutil.copytree(source["name"], tmp_path / "base")
    (tmp_path / "copy" / "model.json").write_text(json.dumps(source | {"name": "/no/such"}))
    other = serve.TaskModel.load(tmp_path / "copy", tmp_path / "base")
    assert torch.equal(scores(model, "team"), torch.tensor(
        [[*row["scores"].values()] for row in other.predict(validation(model.tasks[1])[0], "team")]
    ))  # fmt: skip
    files = {file.name for file in (run[1] / "model").iterdir()}
    assert files >= {"adapter.safetensors", "adapter.json", "tasks.json", "model.json", "tokenizer.json"}


def test_a_saved_model_is_the_same_again(model, tmp_path):
    model.save(tmp_path / "again")
    again = serve.TaskModel.load(tmp_path / "again")
    assert again.tasks == model.tasks and torch.equal(scores(again, "team"), scores(model, "team"))


def test_a_book_task_is_served_too(tmp_path):
    names = {"tasks": "boolq", "data": tasks.FIXTURES, "task_file": EXAMPLE / "tasks.json", "max_steps": 1}
    train(make_pretrained("encoder", tmp_path / "pretrained"), tmp_path / "run", **names)
    model = serve.TaskModel.load(tmp_path / "run" / "model")
    row = {"question": "is it cold", "passage": "The soup was cold."}
    assert model.predict([row])[0]["label"] in ("0", "1")
    assert tasks.load(model.tasks[0], "validation").to_list() == tasks.load(
        "boolq", "validation", tasks.FIXTURES
    ).to_list()  # fmt: skip


# Answers.


def test_mixed_tasks_are_answered_as_each_alone(model):
    rows = [{"task": task.name} | row for task in model.tasks for row in validation(task)[0]]
    mixed = model.predict(rows[::-1], batch_size=7)[::-1]
    alone = [found for task in model.tasks for found in model.predict(validation(task)[0], task.name)]
    for one, other in zip(mixed, alone, strict=True):
        assert one["answer"] == other["answer"] and one["task"] == other["task"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
        assert sum(one["scores"].values()) == pytest.approx(1)
        assert one["score"] == max(one["scores"].values()) == one["scores"][one["answer"]]


def test_a_text_stands_for_the_only_column(model):
    assert model.predict(["The soup was cold."], "sentiment") == model.predict(
        [{"text": "The soup was cold.", "other": 1}], "sentiment"
    )
    assert model.predict([], "sentiment") == []


def test_an_answer_tells_the_label_that_the_column_would_hold(model):
    model.tasks[0] = dataclasses.replace(model.tasks[0], labels=("neg", "pos"))
    found = model.predict(["The soup was cold."], "sentiment")[0]
    assert found["label"] == {"negative": "neg", "positive": "pos"}[found["answer"]]
    model.tasks[0] = dataclasses.replace(model.tasks[0], labels=())
    assert model.predict(["The soup was cold."], "sentiment")[0]["label"] in ("0", "1")


@pytest.mark.parametrize(
    "rows, task, error, message",
    [
        (["a"], "tone", KeyError, "row 0: no task is called 'tone'; there are sentiment, team"),
        (["a"], None, ValueError, "row 0: which task is it.*a column 'task'; there are sentiment, team"),
        ([{"text": "a"}, {"message": "b"}], "sentiment", ValueError,
         r"row 1: task 'sentiment': there is no column 'text'; the columns are \['message'\]"),
        ([{"text": None}], "sentiment", ValueError, "row 0: task 'sentiment': column 'text' has no value"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_answered_is_named(model, rows, task, error, message):
    with pytest.raises(error, match=message):
        model.predict(rows, task)


def test_a_folder_without_a_model_says_where_it_is(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no model.json, so no trained model; it is in .*model"):
        serve.TaskModel.load(run[1])
    with pytest.raises(FileNotFoundError, match="has no model.json, so no trained model$"):
        serve.TaskModel.load(tmp_path)


# A task more.


def test_a_task_learned_by_routing_leaves_the_others_as_they_were(model, tmp_path):
    before = {name: scores(model, name) for name in ("sentiment", "team")}
    new = task_file.read(EXAMPLE / "kind.yaml")["kind"]
    found = model.add_task(new, steps=20)
    assert found["part"] == "routing" and found["before"].keys() == found["after"].keys() == {"kind"}
    model.save(tmp_path)
    after = serve.TaskModel.load(tmp_path)
    assert [task.name for task in after.tasks] == ["sentiment", "team", "kind"]
    for name in before:
        assert torch.equal(scores(after, name), before[name])
    rows, labels = validation(new)
    right = sum(a["answer"] == b for a, b in zip(after.predict(rows, "kind"), labels, strict=True))
    assert 100 * right / len(rows) == pytest.approx(found["after"]["kind"])
    weights = [w[2] - w[:2].mean(0) for w in mtp.routing_weights(after.chooser.model).values()]
    assert any(w.abs().max() > 1e-3 for w in weights)  # it has moved from where it started


def test_a_task_learned_by_everything_says_what_it_does_to_the_others(model):
    before = {name: scores(model, name) for name in ("sentiment", "team")}
    accuracy = {}
    for task in model.tasks:
        rows, labels = validation(task)
        answers = [found["answer"] for found in model.predict(rows, task.name)]
        accuracy[task.name] = 100 * sum(a == b for a, b in zip(answers, labels, strict=True)) / len(rows)
    found = model.add_task(task_file.read(EXAMPLE / "kind.yaml")["kind"], "all", steps=5, lr=0.05)
    assert found["after"].keys() == {"sentiment", "team", "kind"} and not found["unread"]
    for name in accuracy:
        assert found["before"][name] == pytest.approx(accuracy[name])
        assert not torch.equal(scores(model, name), before[name])


def test_every_prompt_of_a_new_task_meets_every_answer(model, tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text(
        "text,label\n" + "a,0\nb,1\n" * 20
    )  # the answers alternate, as prompts do
    task = prompts.Prompted(
        "", ("1 {text}", "2 {text}"), ("no", "yes"), splits=(str(tmp_path / "rows.csv"),) * 2
    )
    seen = set()

    def learn(chooser, arguments, steps, rates, names, train, test):
        seen.update((e["prompt"][0], e["label"]) for e in train or [])
        return dict.fromkeys(names.values(), 0.0)

    monkeypatch.setattr(serve, "learn_briefly", learn)
    found = model.add_task(dataclasses.replace(task, name="new"))
    assert seen == {("1", 0), ("1", 1), ("2", 0), ("2", 1)} and found["rows"] == {"new": 40}


def test_a_model_is_served_in_the_dtype_that_it_was_measured_in(tmp_path):
    pretrained = make_pretrained("decoder", tmp_path / "base")
    options = {
        "task_file": str(EXAMPLE / "tasks.json"),
        "model": pretrained,
        "dtype": "bfloat16",
        "budget": 1,
    }
    arguments = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "use_cpu": True, "disable_tqdm": True}
    record = finetune.run(finetune.Setting(**options), finetune.Arguments(**arguments))
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == json.loads(json.dumps(record))
    model = serve.TaskModel.load(tmp_path / "run" / "model")
    assert model.chooser.model.dtype == torch.bfloat16
    model.save(tmp_path / "again")
    assert serve.TaskModel.load(tmp_path / "again").chooser.model.dtype == torch.bfloat16


def test_what_cannot_be_measured_is_told(model):
    model.tasks[0] = dataclasses.replace(model.tasks[0], splits=("/no/such.csv", None))
    found = model.add_task(task_file.read(EXAMPLE / "kind.yaml")["kind"], "all", steps=1)
    assert found["after"].keys() == {"team", "kind"} and found["unread"] == {
        "sentiment": "/no/such.csv is missing"
    }


def test_a_task_is_not_added_twice(model):
    with pytest.raises(ValueError, match="there is a task called 'team' already; give the new one another"):
        model.add_task(model.tasks[1])
    assert len(model.tasks) == 2


def test_a_fault_in_a_new_task_leaves_the_model_as_it_was(model, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\na,0\nb,\n")
    task = prompts.Prompted(
        "", ("{text}",), ("no", "yes"), splits=(str(tmp_path / "rows.csv"),) * 2, name="new"
    )
    before = scores(model, "team")
    with pytest.raises(ValueError, match="new, row 1 of .*rows.csv: column 'label' has no value"):
        model.add_task(task)
    assert len(model.tasks) == model.chooser.model.adaptation.config.n_tasks == 2
    assert torch.equal(scores(model, "team"), before)


@pytest.mark.parametrize("adapter", ["lora", methods.PRIVATE])
def test_without_routing_a_new_task_takes_everything_or_is_refused(adapter, tmp_path):
    train(make_pretrained("encoder", tmp_path / "base"), tmp_path / "run", adapter=adapter, max_steps=1)
    model = serve.TaskModel.load(tmp_path / "run" / "model")
    assert model.predict(["The soup was cold."], "sentiment")[0]["score"] >= 0.5
    new = task_file.read(EXAMPLE / "kind.yaml")["kind"]
    with pytest.raises(ValueError, match="has no routing|private LoRA has nothing that tasks share"):
        model.add_task(new, "routing")
    if adapter == "lora":
        assert model.add_task(new, steps=1)["part"] == "all"


# Exports.


@pytest.mark.parametrize("merged", [False, True])
def test_an_export_scores_as_the_task_did(run, model, tmp_path, merged):
    kind, folder = run
    model.export("team", tmp_path, merged=merged)
    if merged:
        other = ALONE[kind].from_pretrained(tmp_path)
    else:
        base = ALONE[kind].from_pretrained(json.loads((folder / "model" / "model.json").read_text())["name"])
        other = peft.PeftModel.from_pretrained(base, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    (task,) = task_file.read(tmp_path / "tasks.json").values()
    alone = type(model.chooser)(other.eval(), tokenizer, model.chooser.max_length)
    for example in tasks.examples(task, tasks.load(task, "validation"), 0, prompts=1).to_list():
        found = model.predict([{"message": example["prompt"].partition("? ")[2]}], "team")[0]
        with torch.no_grad():
            expected = alone.scores(**alone.collate([example]))[0].softmax(1)[0]
        by_text = dict(zip(example["choices"], expected.tolist(), strict=True))
        assert found["scores"] == pytest.approx(by_text, abs=1e-5)


def test_an_export_with_the_library_of_transformers_alone(run, model, tmp_path):
    """A head and a tokenizer, and nothing of this project."""
    kind, _ = run
    if kind == "decoder":
        pytest.skip("what a decoder scores is compared in test_decoders.py")
    text = "Why was my card charged twice?"
    found = model.predict([text], "team")[0]["scores"]
    model.export("team", tmp_path, merged=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    plain = ALONE[kind].from_pretrained(tmp_path).eval()
    prompt, values = model.tasks[1].prompts[0].replace("{message}", text), []
    for choice in found:
        with torch.no_grad():
            if kind == "encoder":
                pair = tokenizer([prompt], [choice], return_tensors="pt")
                values.append(plain(**{name: ids[:, None] for name, ids in pair.items()}).logits[0, 0])
            else:
                labels = tokenizer([choice], return_tensors="pt")["input_ids"]
                asked = {k: v for k, v in tokenizer([prompt], return_tensors="pt").items() if "type" not in k}
                values.append(-plain(**asked, labels=labels).loss)
    assert torch.stack(values).softmax(0).tolist() == pytest.approx([*found.values()], abs=1e-5)


# The same as commands.


def test_a_strangers_way(run, tmp_path, capsys):
    model, answers = str(run[1] / "model"), tmp_path / "answers.csv"
    command.main(["check", str(EXAMPLE / "tasks.json")])
    assert "team: 48 training rows, 12 validation rows" in capsys.readouterr().out
    command.main(["predict", model, str(EXAMPLE / "new.csv"), str(answers)])
    with answers.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    expected = serve.TaskModel.load(model).predict(tables.read(EXAMPLE / "new.csv").to_list())
    assert [row["predicted_answer"] for row in rows] == [one["answer"] for one in expected]
    assert json.loads(rows[2]["predicted_scores"]).keys() == {"billing", "delivery", "returns", "technical"}
    assert rows[0]["text"].startswith("A friendly place") and rows[0]["predicted_task"] == "sentiment"
    command.main(["add-task", model, str(EXAMPLE / "kind.yaml"), str(tmp_path / "three"), "--steps", "3"])
    assert "Only the routing of kind was trained" in capsys.readouterr().out
    command.main(
        ["predict", str(tmp_path / "three"), str(EXAMPLE / "kind.csv"), str(answers), "--task", "kind"]
    )
    command.main(["export", str(tmp_path / "three"), "kind", str(tmp_path / "exported"), "--merged"])
    assert (tmp_path / "exported" / "config.json").exists() and len(tables.read(answers)) == 60
    frame = "\\nAnswer:" if run[0] == "decoder" else ""
    asked = f"to read 'Is this message a complaint, praise or a question? {{message}}{frame}'"
    assert asked in capsys.readouterr().out


def test_a_private_lora_has_a_run_of_its_own_and_is_exported(tmp_path):
    """What chapter 12 does with a new task that shall share nothing."""
    pretrained, own = make_pretrained("decoder", tmp_path / "pretrained"), str(EXAMPLE / "kind.yaml")
    record = train(pretrained, tmp_path / "run", task_file=own, adapter="private-lora", max_steps=5)
    model = serve.TaskModel.load(tmp_path / "run" / "model")
    assert record["parameters"]["routing"] == 0 and [task.name for task in model.tasks] == ["kind"]
    model.export("kind", tmp_path / "lora")
    base = ALONE["decoder"].from_pretrained(pretrained)
    served = peft.PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        expected = model.chooser.model(input_ids=ids, task_ids=0).logits
        torch.testing.assert_close(served(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["predict", "{run}", "{new}", "out.csv"], "has no model.json, so no trained model; it is in"),
        (["predict", "{run}/model", "none.csv", "out.csv"], "none.csv is missing"),
        (
            ["predict", "{run}/model", "{new}", "out.csv", "--task", "tone"],
            "no task is called 'tone'; there are",
        ),
        (["add-task", "{run}/model", "{new}", "three"], "is not JSON"),
        (["add-task", "{run}/model", "{new}", "{run}"], "is there already; name a new folder"),
        (["export", "{run}/model", "tone", "out"], "no task is called 'tone'; there are sentiment, team"),
        (["check", "none.json"], "none.json is missing; give a task file"),
    ],
)
def test_a_command_that_fails_says_why_in_a_line(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        command.main([text.format(run=run[1], new=EXAMPLE / "new.csv") for text in arguments])
    assert message in capsys.readouterr().err.splitlines()[-1] and not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["finetune", "check", "predict", "add-task", "export"])
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main([name, "--help"])
    assert stopped.value.code == 0 and "usage: python -m lab.real" in capsys.readouterr().out
