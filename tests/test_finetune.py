"""Fine-tuning on real tasks: equal sizes, exact resume, several processes, and what is written down."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import minitensorpoly as mtp
from lab import methods
from lab.english.backbone import load_backbone
from lab.real import choosers, finetune, prompts, settings, tasks, trainer

BOOK = Path(finetune.__file__).parents[2]
TASKS = ["boolq", "arc_easy", "trec"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The embedded backbone, as a folder such as `save_pretrained` makes."""
    folder = tmp_path_factory.mktemp("model")
    for part in load_backbone(64):
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny random BERT, whose checkpoint lacks the classifier."""
    folder = tmp_path_factory.mktemp("encoder")
    _, tokenizer = load_backbone(64)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.BertConfig(vocab_size=len(tokenizer), **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def options(model, folder, **changes):
    """Arguments of the command for a short run on the fixtures."""
    short = {"model": model, "data": tasks.FIXTURES, "output_dir": folder, "max_length": 32}
    short |= {"max_steps": 6, "save_steps": 2, "logging_steps": 1, "use_cpu": True, "disable_tqdm": True}
    short |= {"tasks": TASKS, "new_tasks": ["rte"], "few_shot_seeds": [0], "few_shot_steps": 2}
    return [
        str(text)
        for name, value in (short | changes).items()
        for text in (f"--{name}", *(value if isinstance(value, list) else [value]))
    ]


def parse(arguments):
    return settings.make_parser("lab.real.finetune", "").parse_args_into_dataclasses(arguments)


def trained(folder):
    read = load_file(folder / "checkpoint-6" / "model.safetensors")
    return {name: tensor.clone() for name, tensor in read.items()}  # the file is mapped, and may change


@pytest.mark.parametrize("adapter", finetune.ADAPTERS)
def test_every_adapter_is_trained_and_transferred(model, tmp_path, adapter):
    record = finetune.main(options(model, tmp_path, adapter=adapter))
    assert json.loads((tmp_path / "result.json").read_text()) == record
    assert set(record["train"]) == set(TASKS) and set(record["baselines"]) == {*TASKS, "rte"}
    found = [(r["task"], r["part"], r["seed"]) for r in record["few_shot"]]
    routed = adapter in ("Poly", "MHR", "TensorPoly-I", "TensorPoly-II")
    expected = [None] + ["routing"] * routed + ["all"] * (adapter != finetune.FROZEN)
    assert found == [("rte", part, None if part is None else 0) for part in expected]
    accuracies = [r["accuracy"] for r in record["few_shot"]] + list(record["train"].values())
    assert all(0 <= accuracy <= 100 for accuracy in accuracies)
    assert record["parameters"]["head"] == 0  # an encoder-decoder has its own
    if adapter != finetune.FROZEN:
        assert record["losses"][-1] < record["losses"][0]
        assert (record["parameters"]["routing"] > 0) == routed


@pytest.mark.parametrize("adapter", finetune.ADAPTERS)
def test_an_encoder_in_bfloat16_is_trained_and_transferred(encoder, tmp_path, adapter):
    half = {"dtype": "bfloat16", "attention": "eager", "budget": 8}
    record = finetune.main(options(encoder, tmp_path, adapter=adapter, **half))
    assert record["parameters"]["head"] == 32 * 32 + 32 + 32 + 1  # pooler and classifier
    assert all(torch.tensor(record["losses"]).isfinite())
    assert "all" in {trial["part"] for trial in record["few_shot"]}


@pytest.mark.parametrize("adapter", ["TensorPoly-I", "LoRA", methods.PRIVATE])
def test_transfer_leaves_the_chooser_as_it_was_and_shares_its_base(encoder, tmp_path, adapter):
    setting, arguments = parse(options(encoder, tmp_path, adapter=adapter))
    chooser, _ = finetune.multi_task(setting, arguments)
    before = {name: p.clone() for name, p in chooser.named_parameters()}
    finetune.few_shot(chooser, setting, arguments)
    after = dict(chooser.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    if adapter != methods.PRIVATE:
        learner = finetune._learner(chooser, setting, "all", seed=0)
        for name, parameter in learner.named_parameters():
            assert (parameter is after[name]) == (not parameter.requires_grad), name
    if adapter == "TensorPoly-I":
        learner = finetune._learner(chooser, setting, "routing", seed=0)
        trained = [name for name, p in learner.named_parameters() if p.requires_grad]
        assert trained and all(name.endswith("router.logits") for name in trained)


@pytest.mark.parametrize("adapter", methods.EQUAL_SIZE)
def test_adapters_have_the_factors_of_a_lora(model, adapter):
    arguments = options(model, "unused", adapter=adapter, budget=8)
    chooser = finetune.make_chooser(parse(arguments)[0], seed=0)
    lora = sum(8 * (layer.in_features + layer.out_features) for layer in _layers(chooser))
    assert abs(finetune.count(chooser)["factors"] / lora - 1) < 0.15


def _layers(chooser):
    return mtp.adapted_layers(chooser.model).values()


def test_tasks_are_drawn_equally_often(model, tmp_path):
    for name, copies in (("ag_news", 100), ("boolq", 1)):
        lines = (tasks.FIXTURES / "tasks" / name / "train.jsonl").read_text()
        (tmp_path / "tasks" / name).mkdir(parents=True)
        (tmp_path / "tasks" / name / "train.jsonl").write_text(lines * copies)
    setting, _ = parse(options(model, "unused", tasks=["ag_news", "boolq"], data=tmp_path))
    drawn = torch.tensor(finetune.mixture(setting, seed=0)["task_ids"][:]).bincount()
    assert drawn.min() > 0.8 * drawn.max() > 200


def test_baselines_count_labels_and_choices(model):
    setting, _ = parse(options(model, "unused"))
    found = finetune.baselines(setting)
    rows = tasks.load("arc_easy", "validation", setting.data)
    most = max(rows["answerKey"][:].count(key) for key in "ABCD") / len(rows)
    assert found["arc_easy"] == pytest.approx({"chance": 25, "majority": 100 * most})
    assert found["trec"]["chance"] == pytest.approx(100 / 6)


@pytest.fixture
def one_thread():
    """Two threads add in another order, if the machine is busy: a last digit may change from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_run_that_was_killed_ends_as_one_that_was_not(model, tmp_path, monkeypatch, one_thread):
    finetune.multi_task(*parse(options(model, tmp_path / "whole")))
    original, calls = choosers.Chooser.collate, []

    def killed(self, examples):
        calls.append(len(examples))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, examples)

    arguments = parse(options(model, tmp_path / "parts"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(choosers.Chooser, "collate", killed)
        finetune.multi_task(*arguments)
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {"checkpoint-2", "setting.json"}
    before = json.loads((tmp_path / "parts" / "checkpoint-2" / "trainer_state.json").read_text())
    before = before["stateful_callbacks"]["Clock"]["attributes"]["before"]
    assert finetune.multi_task(*arguments)[1]["seconds"] > before > 0  # of both parts
    whole, parts = trained(tmp_path / "whole"), trained(tmp_path / "parts")
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)


def test_checkpoints_hold_what_is_trained(model, tmp_path):
    chooser, record = finetune.multi_task(*parse(options(model, tmp_path)))
    saved = trained(tmp_path)
    assert sum(tensor.numel() for tensor in saved.values()) == sum(record["parameters"].values())
    for name, parameter in chooser.named_parameters():
        assert (name in saved) == parameter.requires_grad


def test_two_processes_have_the_losses_of_one(model, tmp_path):
    """Launched by torchrun; tests/test_task_ids.py launches by accelerate."""
    folder = tmp_path / "two"
    # Four full batches: of an incomplete one, each process would repeat other rows.
    common = {"tasks": [*prompts.TRAIN][:10], "transfer": False, "max_steps": 4}
    arguments = options(model, folder, per_device_train_batch_size=3, **common)
    environment = os.environ | {"PYTHONPATH": f"{BOOK}{os.pathsep}{BOOK.parent}", "OMP_NUM_THREADS": "1"}
    two = "torch.distributed.run --standalone --nproc-per-node 2"
    command = [sys.executable, "-m", *two.split(), "-m", "lab.real.finetune", *arguments]
    done = subprocess.run(command, env=environment, cwd=BOOK, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "find_unused_parameters" not in done.stderr + done.stdout
    assert done.stdout.count("Accuracy in percent") == 1
    two = json.loads((folder / "result.json").read_text())
    one = finetune.main(options(model, tmp_path / "one", per_device_train_batch_size=6, **common))
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)
    assert two["train"] == one["train"]


def test_a_new_task_of_private_adapters_starts_as_the_base_model(model, tmp_path):
    setting, arguments = parse(options(model, tmp_path, adapter=methods.PRIVATE))
    chooser, _ = finetune.multi_task(setting, arguments)
    learner = finetune._learner(chooser, setting, "all", seed=0)
    frozen = finetune.make_chooser(dataclasses.replace(setting, adapter=finetune.FROZEN), seed=0)
    rows = tasks.load("rte", "validation", setting.data)
    batch = chooser.collate(tasks.examples("rte", rows, len(TASKS)).to_list())
    with torch.no_grad():
        assert torch.equal(learner(**batch)["loss"], frozen(**batch)["loss"])
    rank = chooser.model.adaptation.config.rank
    assert learner.model.adaptation.config.rank == rank and all(
        p.isfinite().all() for p in learner.parameters()
    )


def test_each_part_of_a_chooser_has_its_rate(encoder, tmp_path):
    """An encoder: factors, routing and head in a group each, every trainable parameter in one of them."""
    for adapter, rates in (("TensorPoly-I", [0.5, 0.25, 0.125]), ("LoRA", [0.5, 0.125]), ("frozen", [0.5])):
        setting, arguments = parse(options(encoder, tmp_path, adapter=adapter, budget=2))
        chooser = finetune.make_chooser(setting, seed=0)
        learning = trainer.AdapterTrainer(chooser, arguments, (0.5, 0.25, 0.125), {})
        groups = learning.create_optimizer().param_groups
        assert [group["lr"] for group in groups] == rates
        trained = [id(p) for group in groups for p in group["params"]]
        assert sorted(trained) == sorted(id(p) for p in chooser.parameters() if p.requires_grad)
        counts = [sum(p.numel() for p in group["params"]) for group in groups]
        assert counts == [n for n in finetune.count(chooser).values() if n]


def test_it_evaluates_while_it_trains(model, tmp_path):
    finetune.main(options(model, tmp_path, eval_strategy="steps", eval_steps=2))
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    evaluated = [entry for entry in state["log_history"] if "eval_accuracy" in entry]
    assert [entry["step"] for entry in evaluated] == [2, 4, 6]
    for entry in evaluated:
        own = [entry[f"eval_accuracy_{name}"] for name in TASKS]
        assert entry["eval_accuracy"] == pytest.approx(sum(own) / len(own))


def test_help_lists_tasks_and_trainers_arguments(capsys):
    with pytest.raises(SystemExit):
        finetune.main(["--help"])
    text = capsys.readouterr().out
    ours, trainers = text.index("options of this project"), text.index("options of transformers.Training")
    assert ours < text.index("  --adapter ADAPTER") < text.index("  --few_shot_lr") < trainers
    assert trainers < text.index("  --per_device_train_batch_size")
    assert all(
        name in text for name in (*prompts.TRAIN, *prompts.HELD_OUT, *mtp.METHODS, *methods.EQUAL_SIZE)
    )
    examples = [line for line in finetune.__doc__.splitlines() if line.startswith("    ")]
    assert len(examples) > 5 and all(line in text.splitlines() for line in examples)  # a line each
    assert "tensorboard" in text and "wandb" in text


def test_defaults_hold_out_what_they_transfer_to():
    setting = finetune.Setting()
    assert not {*setting.tasks} & {*setting.new_tasks} and not {*prompts.DEVELOPMENT} & {*setting.tasks}


def test_transfer_can_be_left_for_later(model, tmp_path):
    first = finetune.main(options(model, tmp_path, transfer=False))
    assert first["few_shot"] == []
    later = finetune.main(options(model, tmp_path))
    assert later["few_shot"] and later["losses"] == first["losses"]  # nothing was trained again


def test_what_is_not_transferred_to_is_not_read(model, tmp_path):
    for name in TASKS:
        shutil.copytree(tasks.FIXTURES / "tasks" / name, tmp_path / "data" / "tasks" / name)
    found = finetune.main([*options(model, tmp_path / "run", data=tmp_path / "data"), "--no_transfer"])
    assert set(found["baselines"]) == set(TASKS) and found["few_shot"] == []
    with pytest.raises(FileNotFoundError, match=r"rte.*is missing"):
        finetune.prepare(options(model, tmp_path / "run", data=tmp_path / "data"))
    assert finetune.prepare([*options(model, tmp_path / "run", data=tmp_path / "data"), "--new_tasks"])


def test_a_finished_run_started_again_is_read(model, tmp_path):
    constant = {"lr_scheduler_type": "constant", "transfer": False}
    chooser, first = finetune.multi_task(*parse(options(model, tmp_path, **constant)))
    saved = trained(tmp_path)
    again, second = finetune.multi_task(*parse(options(model, tmp_path, **constant)))
    assert second.pop("seconds") > 0 and first.pop("seconds") > 0  # of the training, which is over
    assert second == first and len(first["losses"]) == 6
    for name, parameter in chooser.named_parameters():
        assert torch.equal(parameter, dict(again.named_parameters())[name])
    after = trained(tmp_path)
    assert all(torch.equal(saved[name], after[name]) for name in saved)
    assert not (tmp_path / "checkpoint-7").exists()


def test_the_best_model_of_a_finished_run_is_read(model, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy", "save_total_limit": 5}
    best |= {"eval_strategy": "steps", "eval_steps": 2, "transfer": False}
    chooser, _ = finetune.multi_task(*parse(options(model, tmp_path, **best)))
    again, _ = finetune.multi_task(*parse(options(model, tmp_path, **best)))
    for name, parameter in chooser.named_parameters():
        assert torch.equal(parameter, dict(again.named_parameters())[name])


def test_a_transfer_that_was_killed_goes_on_where_it_was(model, tmp_path, monkeypatch):
    arguments, original, calls = options(model, tmp_path, few_shot_seeds=[0, 1]), finetune.learn_briefly, []

    def killed(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(finetune, "learn_briefly", killed)
        finetune.main(arguments)
    file = tmp_path / "few_shot.jsonl"
    early = [json.loads(line) for line in file.read_text().splitlines() if line]
    assert len(early) == 2 and not (tmp_path / "result.json").exists()
    with file.open("a") as lines:
        lines.write('\n{"task": "rt')  # a line that a kill cut off
    monkeypatch.setattr(finetune, "learn_briefly", killed)
    record = finetune.main(arguments)
    assert record["few_shot"][:2] == early
    assert [(r["part"], r["seed"]) for r in record["few_shot"]] == [
        (None, None), ("routing", 0), ("routing", 1), ("all", 0), ("all", 1)
    ]  # fmt: skip
    assert len(calls) == 3 + 3  # three were left
    # Left out, the transfers that are recorded stay; with other rates all but the first is done again.
    kept = finetune.main(options(model, tmp_path, transfer=False))
    assert kept["few_shot"] == record["few_shot"]
    finetune.main(options(model, tmp_path, few_shot_seeds=[0], few_shot_lr=0.5))
    assert len(calls) == 3 + 3 + 1


@pytest.mark.parametrize("broken", ["trainer_state.json", "model.safetensors", "optimizer.pt"])
def test_an_incomplete_checkpoint_is_passed_over(model, tmp_path, capsys, one_thread, broken):
    arguments = options(model, tmp_path, save_total_limit=5)
    finetune.multi_task(*parse(arguments))
    whole, file = trained(tmp_path), tmp_path / "checkpoint-6" / broken
    file.write_bytes(file.read_bytes()[:100])
    capsys.readouterr()
    finetune.multi_task(*parse(arguments))
    assert "checkpoint-6 is incomplete" in capsys.readouterr().out
    torch.testing.assert_close(trained(tmp_path), whole, rtol=0, atol=0)


def test_the_optimizers_arguments_are_heeded(encoder, tmp_path):
    changes = {"optim": "adamw_torch", "weight_decay": 0.25, "adam_beta1": 0.5, "adam_epsilon": 1e-3}
    setting, arguments = parse(options(encoder, tmp_path, adapter="TensorPoly-I", budget=2, **changes))
    learning = trainer.AdapterTrainer(finetune.make_chooser(setting, 0), arguments, (0.5, 0.25, 0.125), {})
    optimizer = learning.create_optimizer()
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["betas"] == (0.5, 0.999) and optimizer.defaults["eps"] == 1e-3
    decays = {group["lr"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {0.5: 0.25, 0.25: 0.0, 0.125: 0.25}  # the routing of absent tasks stays
    losses = {
        optim: finetune.main(options(encoder, tmp_path / optim, optim=optim, transfer=False))["losses"]
        for optim in ("sgd", "adafactor", "adamw_torch")
    }
    assert len({tuple(of) for of in losses.values()}) == 3


def test_losses_are_printed_without_a_bar(model, tmp_path, capsys):
    record = finetune.main(options(model, tmp_path, disable_tqdm=True))
    text = capsys.readouterr().out
    assert text.count("'loss'") == 6 and "eval_loss" not in text
    for name in TASKS:
        line = next(line.split() for line in text.splitlines() if line.startswith(f"{name} "))
        of = record["baselines"][name]
        assert [float(x) for x in line[1:4]] == pytest.approx(
            [record["train"][name], of["chance"], of["majority"]], abs=0.051
        )
    assert "routing alone" in text and f"Written to {tmp_path}" in text
    finetune.multi_task(*parse(options(model, tmp_path / "quiet", disable_tqdm=True)), quiet=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("given, name", [
    ("TensorPoly-I", "TensorPoly-I"), ("tensorpoly-i", "TensorPoly-I"), ("tensorpoly-1", "TensorPoly-I"),
    ("tensorpoly-2", "TensorPoly-II"), ("LORA", "LoRA"), ("tlora", "TLoRA"), ("poly", "Poly"), ("mhr", "MHR"),
    ("private LoRA", methods.PRIVATE), ("private-lora", methods.PRIVATE), ("Frozen", finetune.FROZEN),
])  # fmt: skip
def test_an_adapter_goes_by_the_librarys_name_and_the_books(given, name):
    assert finetune.Setting(adapter=given).adapter == name


def test_the_librarys_options_are_heeded(model, tmp_path):
    shape = {"rank": 3, "tensor_rank": 5, "order": 3, "alpha": 6.0}
    setting, _ = parse(options(model, tmp_path, adapter="tensorpoly-2", **shape))
    config = finetune.make_chooser(setting, 0).model.adaptation.config
    assert {name: getattr(config, name) for name in shape} == shape and config.method == "tensorpoly-2"
    setting, _ = parse(options(model, tmp_path, adapter="poly", n_skills=3, budget=6))
    config = finetune.make_chooser(setting, 0).model.adaptation.config
    assert (config.n_skills, config.rank) == (3, 2)  # the rank still follows from the budget


def test_a_run_does_not_go_on_with_other_rows(model, tmp_path):
    rows = "text,label\n" + "".join(f"the cat number {i},{i % 2}\n" for i in range(10))
    task = {"data": "rows.csv", "prompts": ["{text}"], "choices": ["the cat", "the dog"]}
    (tmp_path / "tasks.json").write_text(json.dumps({"tasks": {"mine": task}}))
    (tmp_path / "rows.csv").write_text(rows)
    own = {"task_file": tmp_path / "tasks.json", "tasks": ["mine", "boolq"], "transfer": False}
    found = finetune.main(options(model, tmp_path / "run", **own))
    assert set(found["train"]) == {"mine", "boolq"}
    (tmp_path / "rows.csv").write_text(rows + "another cat,1\n")
    with pytest.raises(ValueError, match="of another run, with rows of mine="):
        finetune.main(options(model, tmp_path / "run", **own))


def test_a_run_does_not_go_on_with_another_setting(model, tmp_path):
    finetune.multi_task(*parse(options(model, tmp_path, lr=0.01)))
    finetune.multi_task(*parse(options(model, tmp_path, lr=0.01, few_shot_steps=3)))  # of transfer
    with pytest.raises(ValueError, match="of another run, with adapter='TensorPoly-I'.*now 'Poly'.*lr=0.01"):
        finetune.multi_task(*parse(options(model, tmp_path, adapter="Poly", lr=0.02)))


def test_a_fault_in_the_data_is_found_before_any_training(model, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tasks.FIXTURES, data)
    file = data / "few_shot" / "rte" / "32_shot" / "0_seed.jsonl"
    file.write_text(file.read_text().replace('"label": 0', '"label": 7'))
    with pytest.raises(ValueError, match="rte, row .* of .*0_seed.jsonl: label='7'"):
        finetune.prepare(options(model, tmp_path / "run", data=data))
    assert not (tmp_path / "run").exists()


def test_a_fault_is_told_by_its_row_in_the_file(model, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tasks.FIXTURES, data)
    file = data / "tasks" / "boolq" / "train.jsonl"
    lines = file.read_text().splitlines() * 10
    lines[17] = json.dumps(json.loads(lines[17]) | {"label": 7})
    file.write_text("\n".join(lines))
    setting, _ = parse(options(model, tmp_path, data=data))
    with pytest.raises(ValueError, match="boolq, row 17 of .*train.jsonl: label='7'"):
        finetune.word_all(setting)


def test_several_gpus_want_several_processes(model, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune.Arguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="one process for 2 GPUs: launch with torchrun or accelerate"):
        finetune.prepare(options(model, tmp_path))


@pytest.mark.parametrize(
    "name, value, message",
    [
        (
            "adapter",
            "DoRA",
            "adapter='DoRA' must be one of lora, tlora.*library.*, LoRA, .*TensorPoly-I.*book",
        ),
        ("n_heads", 4, "tensorpoly-1 has no n_heads=4; only mhr have"),
        ("tensor_rank", 0, "tensor_rank=0 must be an integer of at least 1"),
        ("model", "/no/such", "model='/no/such' does not exist, and is no name on the hub; a folder"),
        ("model", "./none", "model='./none' does not exist, and is no name on the hub; a folder"),
        ("model", str(tasks.FIXTURES), "model=.* is here, but has no config.json; a folder"),
        (
            "resume_from_checkpoint",
            "x",
            "resume_from_checkpoint=x has no effect here; a run goes on by itself",
        ),
        ("label_smoothing_factor", 0.1, "label_smoothing_factor=0.1 has no effect here"),
        ("tasks", [], "tasks is empty: name one at least"),
        ("parts", "head", "parts=.*'head'.* must be some of routing, all"),
        ("dtype", "float16", "dtype='float16' must be one of auto, float32, bfloat16"),
        ("most_choices", 1, "most_choices=1 must be at least 2"),
        ("rows", 0, "rows=0 must be at least 1"),
        ("new_tasks", "boolq", "tasks and new_tasks name boolq more than once"),
        ("learning_rate", 0.1, "learning_rate=0.1 has no effect here; give lr, router_lr and head_lr"),
        ("num_train_epochs", 1, "num_train_epochs=1.0 has no effect here; give max_steps"),
        ("fp16", True, "T5 overflows in float16"),
    ],
)
def test_wrong_arguments_are_named(model, tmp_path, name, value, message):
    with pytest.raises(ValueError, match=message):
        finetune.prepare([*options(model, tmp_path), f"--{name}", *([str(value)] if value != [] else [])])


def test_a_run_needs_a_folder_and_says_so_without_a_traceback(model, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        finetune.main(["--model", model])
    error = capsys.readouterr().err
    assert error.splitlines()[-1].endswith(
        "error: output_dir is missing: name a folder for the run, such as runs/first"
    )
    assert len(error.splitlines()) == 2 and not [*tmp_path.iterdir()]
