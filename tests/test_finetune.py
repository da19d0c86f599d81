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
from lab.real import choosers, finetune, prompts, tasks

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
    parser = transformers.HfArgumentParser((finetune.Setting, finetune.Arguments))
    return parser.parse_args_into_dataclasses(arguments)


def trained(folder):
    return load_file(folder / "checkpoint-6" / "model.safetensors")


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


def test_a_run_that_was_killed_ends_as_one_that_was_not(model, tmp_path, monkeypatch):
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
    assert finetune.multi_task(*arguments)[1]["seconds"] is None  # it was interrupted
    whole, parts = trained(tmp_path / "whole"), trained(tmp_path / "parts")
    assert set(whole) == set(parts) and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_checkpoints_hold_what_is_trained(model, tmp_path):
    chooser, record = finetune.multi_task(*parse(options(model, tmp_path)))
    saved = trained(tmp_path)
    assert sum(tensor.numel() for tensor in saved.values()) == sum(record["parameters"].values())
    for name, parameter in chooser.named_parameters():
        assert (name in saved) == parameter.requires_grad


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_have_the_losses_of_one(model, tmp_path, launcher):
    folder = tmp_path / "two"
    # Four full batches: of an incomplete one, each process would repeat other rows.
    common = {"tasks": [*prompts.TRAIN][:10], "transfer": False, "max_steps": 4}
    arguments = options(model, folder, per_device_train_batch_size=3, **common)
    environment = os.environ | {"PYTHONPATH": f"{BOOK}{os.pathsep}{BOOK.parent}", "OMP_NUM_THREADS": "1"}
    two = {
        "torchrun": "torch.distributed.run --standalone --nproc-per-node 2",
        "accelerate": "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1"
        " --mixed_precision no --dynamo_backend no --main_process_port 0",
    }[launcher]
    command = [sys.executable, "-m", *two.split(), "-m", "lab.real.finetune", *arguments]
    done = subprocess.run(command, env=environment, cwd=BOOK, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
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
        trainer = finetune.AdapterTrainer(chooser, arguments, (0.5, 0.25, 0.125), {})
        groups = trainer.create_optimizer().param_groups
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
        own = [entry[f"eval_{name}"] for name in TASKS]
        assert entry["eval_accuracy"] == pytest.approx(sum(own) / len(own))


def test_help_lists_tasks_and_trainers_arguments(capsys):
    with pytest.raises(SystemExit):
        finetune.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in ("--adapter", "TensorPoly-II", "--per_device_train_batch_size"))
    assert all(name in text for name in (*prompts.TRAIN, *prompts.HELD_OUT))


def test_defaults_hold_out_what_they_transfer_to():
    setting = finetune.Setting()
    assert not {*setting.tasks} & {*setting.new_tasks} and not {*prompts.DEVELOPMENT} & {*setting.tasks}


def test_transfer_can_be_left_for_later(model, tmp_path):
    assert finetune.main(options(model, tmp_path, transfer=False))["few_shot"] == []
    later = finetune.main(options(model, tmp_path))
    assert later["few_shot"] and later["seconds"] is None  # nothing was trained again


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
        finetune.main(options(model, tmp_path / "run", data=data))
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
        finetune.main(options(model, tmp_path))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("adapter", "DoRA", "adapter='DoRA'.*TensorPoly-I"),
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
        finetune.main(options(model, tmp_path, **{name: value}))
