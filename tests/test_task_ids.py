"""Task ids arrive wherever a model goes: generation, checkpointing, Trainer, several processes, compilers."""

import copy
import os
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from launched import train_together
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

import minitensorpoly as mtp
from common import (
    METHODS,
    N_TASKS,
    ROUTED,
    adapted_linear,
    adapted_t5,
    enable_checkpointing,
    make_batch,
    make_config,
    make_t5,
    randomize,
)

GENERATION = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams that all return": {"num_beams": 3, "num_return_sequences": 3},
}


def gradients(model):
    return {name: p.grad.clone() for name, p in mtp.adapter_parameters(model).items()}


@pytest.mark.parametrize("method", METHODS)
def test_mixed_batch_equals_each_rows_merged_model(method):
    batch = make_batch(rows=6)
    model = randomize(mtp.adapt(make_t5().double(), make_config(method)))
    ids = batch["task_ids"]
    logits = model(**batch).logits
    assert len(ids.unique()) > 2
    for row, task in enumerate(ids.tolist()):
        merged = mtp.merge(copy.deepcopy(model), task=task)
        one = {name: batch[name][row : row + 1] for name in ("input_ids", "attention_mask", "labels")}
        torch.testing.assert_close(logits[row], merged(**one).logits[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("options", GENERATION.values(), ids=GENERATION)
@pytest.mark.parametrize("method", METHODS)
def test_generation_equals_each_rows_merged_model(method, options):
    batch = make_batch(rows=4)
    batch["task_ids"] = torch.tensor([3, 0, 3, 1])
    del batch["labels"]
    model = randomize(adapted_t5(method), std=1.0)
    options = options | {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    text = model.generate(**batch, **options).unflatten(0, (4, -1))
    for row, task in enumerate([3, 0, 3, 1]):
        merged = mtp.merge(copy.deepcopy(model), task=task)
        one = {name: batch[name][row : row + 1] for name in ("input_ids", "attention_mask")}
        assert torch.equal(text[row], merged.generate(**one, **options))
    if method in ROUTED:  # and the ids matter
        batch["task_ids"] = torch.tensor([1, 3, 0, 3])
        assert not torch.equal(text, model.generate(**batch, **options).unflatten(0, (4, -1)))
    assert model.adaptation.call == mtp.routing.Call()


@pytest.mark.parametrize("method", METHODS)
def test_samples_of_several_sequences_equal_the_merged_models(method):
    batch = make_batch(rows=2)
    del batch["labels"]
    model = adapted_t5(method)
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 6, "top_k": 0}
    batch["task_ids"] = torch.tensor([2, 2])
    torch.manual_seed(0)
    ours = model.generate(**batch, **options)
    del batch["task_ids"]
    torch.manual_seed(0)
    assert torch.equal(ours, mtp.merge(copy.deepcopy(model), task=2).generate(**batch, **options))
    assert len(ours) == 6


@pytest.mark.parametrize("order", ["both losses at once", "one after the other", "last first"])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_gives_the_same_gradients(method, reentrant, order):
    def run(model):
        first, second = make_batch(seed=1), make_batch(seed=2)
        losses = [model(**batch).loss for batch in (first, second)]  # two calls are pending
        if order == "both losses at once":
            (losses[0] + losses[1]).backward()
        else:
            for loss in losses if order == "one after the other" else losses[::-1]:
                loss.backward()
        return gradients(model)

    expected = run(adapted_t5(method).train())
    model = adapted_t5(method).train()
    enable_checkpointing(model, reentrant)
    if reentrant:
        model.enable_input_require_grads()
    for name, gradient in run(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    assert model.adaptation.call == mtp.routing.Call()


def make_dataset(rows=16):
    batch = make_batch(rows)
    return datasets.Dataset.from_dict({name: column.tolist() for name, column in batch.items()})


def trainer_arguments(folder, **options):
    usual = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 0.01, "report_to": []}
    usual |= {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_grad_norm": 0.0}
    return {"output_dir": str(folder)} | usual | options


@pytest.mark.parametrize("method", METHODS)
def test_trainer_with_its_default_settings_equals_a_loop(method, tmp_path, monkeypatch):
    data, model, other = make_dataset(), adapted_t5(method), adapted_t5(method)
    trainer = Trainer(model, TrainingArguments(**trainer_arguments(tmp_path)), train_dataset=data)
    assert trainer.args.remove_unused_columns
    seen, called = [], type(model).__call__
    trainer.create_optimizer()
    monkeypatch.setattr(type(model), "__call__", lambda self, **kw: seen.append(kw) or called(self, **kw))
    trainer.train()
    monkeypatch.undo()
    assert all("task_ids" in kwargs for kwargs in seen) and len(seen) == 4

    parameters = [p for p in other.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.0)
    other.train()
    for step, kwargs in enumerate(seen):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 - step / 4)  # Trainer's linear decay
        kwargs = {name: value for name, value in kwargs.items() if name != "num_items_in_batch"}
        other(**kwargs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in mtp.adapter_parameters(model).items():
        torch.testing.assert_close(parameter, mtp.adapter_parameters(other)[name], rtol=1e-4, atol=1e-5)
    assert trainer.evaluate(data)["eval_loss"] == pytest.approx(
        other.eval()(**make_batch(16)).loss.item(), rel=1e-3
    )


def test_interrupted_trainer_resumes_to_the_uninterrupted_result(tmp_path):
    data, results = make_dataset(), []
    for folder, stops in (("one", [4]), ("two", [2, 4])):
        for steps in stops:
            model = adapted_t5("tensorpoly-1")
            options = {
                "save_strategy": "steps",
                "save_steps": 2,
                "lr_scheduler_type": "constant",
                "max_steps": steps,
            }
            arguments = TrainingArguments(**trainer_arguments(tmp_path / folder, **options))
            trainer = Trainer(model, arguments, train_dataset=data)
            trainer.train(resume_from_checkpoint=True if steps != stops[0] else None)
        results.append(mtp.adapter_parameters(model))
    for name, parameter in results[0].items():
        torch.testing.assert_close(parameter, results[1][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ROUTED)
def test_seq2seq_trainer_predicts_with_generate(method, tmp_path):
    data, model = make_dataset(8), adapted_t5(method)
    arguments = Seq2SeqTrainingArguments(
        **trainer_arguments(tmp_path),
        predict_with_generate=True,
        generation_max_length=6,
        per_device_eval_batch_size=8,
    )
    predicted = torch.tensor(Seq2SeqTrainer(model, arguments).predict(data).predictions)
    batch = make_batch(8)
    del batch["labels"]
    written = model.generate(**batch, max_length=6)
    assert torch.equal(predicted[:, : written.shape[1]], written)


SCRIPT = Path(train_together.__file__)


@pytest.mark.parametrize(
    "launcher, way",
    [("torch.distributed.run", "fsdp"), ("accelerate.commands.launch", "ddp")],
)
def test_two_processes_train_like_one(launcher, way, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    two = {
        "torch.distributed.run": ["--nproc_per_node=2", f"--master_port={port}"],
        # with --cpu it would start one process, without MPI
        "accelerate.commands.launch": [
            "--multi_gpu",
            "--num_processes=2",
            "--num_machines=1",
            "--mixed_precision=no",
            "--dynamo_backend=no",
            f"--main_process_port={port}",
        ],
    }[launcher]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(
        [sys.executable, "-m", launcher, *two, str(SCRIPT), str(tmp_path / "two.pt"), way],
        env=environment,
        check=True,
        timeout=1800,
    )
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    one = {method: train_together.train(method, "alone", rank=0, size=1) for method in METHODS}
    assert one.keys() == two.keys() and len(one) == len(METHODS)
    for method, parameters in one.items():
        for name, parameter in parameters.items():
            torch.testing.assert_close(two[method][name], parameter, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_is_close_to_float32(method):
    model, batch = randomize(adapted_t5(method), std=0.1), make_batch()
    expected = model(**batch).logits
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    assert (output.logits.float() - expected).norm() < 0.05 * expected.norm()
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in mtp.adapter_parameters(model).values())


@pytest.mark.parametrize("method", METHODS)
def test_adapter_of_a_bfloat16_base_is_float32_and_trains(method):
    model, batch = mtp.adapt(make_t5().to(torch.bfloat16), make_config(method)), make_batch()
    assert {p.dtype for p in mtp.adapter_parameters(model).values()} == {torch.float32}
    optimizer = torch.optim.Adam(mtp.parameter_groups(model, lr=0.02))
    losses = []
    for _ in range(8):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("method", METHODS)
def test_model_moves_to_another_dtype(method):
    model, batch = adapted_t5(method), make_batch()
    expected = model(**batch).logits
    torch.testing.assert_close(model.double()(**batch).logits.float(), expected, rtol=1e-3, atol=1e-4)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("method", METHODS)
def test_model_moves_to_another_device(method):
    model = adapted_linear(method).to("meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    x = torch.empty(3, 12, dtype=torch.float64, device="meta")
    assert (
        model(x, task_ids=torch.tensor([0, 4, 1])).device.type == "meta"
    )  # ids on the host follow the inputs


@pytest.mark.parametrize("method", METHODS)
def test_compiled_model_has_no_graph_break_and_equals_the_eager_one(method):
    torch.compiler.reset()
    model = adapted_linear(method, dtype=torch.float32)
    x, ids = torch.randn(4, 6, 12), torch.tensor([0, 3, 3, 1])
    expected = model(x, task_ids=ids)
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    output = compiled(x, task_ids=ids)
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    expected.sum().backward()
    for (name, theirs), ours in zip(
        gradients(model).items(), gradients(compiled._orig_mod).values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_compiled_t5_has_no_graph_break_in_its_layers():
    torch.compiler.reset()
    model, batch = randomize(mtp.adapt(make_t5(num_layers=1), make_config("tensorpoly-2"))), make_batch()
    expected = model(**batch)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**batch).logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_compiled_model_rejects_ids_out_of_range():
    torch.compiler.reset()
    compiled = torch.compile(adapted_linear("poly", dtype=torch.float32), backend="aot_eager")
    with pytest.raises(RuntimeError, match="a task id is out of range; with n_tasks=5 the ids are 0 to 4"):
        compiled(torch.randn(2, 12), task_ids=torch.tensor([0, -1]))


@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("method", METHODS)
def test_inputs_may_have_any_leading_axes(method, shape):
    model = adapted_linear(method)
    x, ids = torch.randn(4, *shape, 12, dtype=torch.float64), torch.tensor([1, 0, 4, 1])
    y = model(x, task_ids=ids)
    assert y.shape == (4, *shape, 20)
    for row, task in enumerate(ids.tolist()):
        merged = mtp.merge(copy.deepcopy(model), task=task)
        torch.testing.assert_close(y[row], merged(x[row]), rtol=1e-10, atol=1e-12)


def test_choices_flattened_into_the_batch_keep_their_task():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = BertForMultipleChoice(BertConfig(**sizes, intermediate_size=48)).eval()
    model = randomize(mtp.adapt(base, make_config("tensorpoly-1", r".*\.(query|value)")))
    ids, tasks = torch.randint(64, (4, 3, 7)), torch.tensor([0, 2, 2, 4])
    logits = model(input_ids=ids, task_ids=tasks).logits
    for row, task in enumerate(tasks.tolist()):
        merged = mtp.merge(copy.deepcopy(model), task=task)
        torch.testing.assert_close(
            logits[row], merged(input_ids=ids[row, None]).logits[0], rtol=1e-4, atol=1e-5
        )


class NoSynchronisation(TorchDispatchMode):
    """Forbids what makes the host wait for a device: reading a value."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        assert function not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*arguments, **keywords or {})


@pytest.mark.parametrize("method", METHODS)
def test_layers_do_not_wait_for_the_device(method):
    model = adapted_t5(method)
    layer, x = next(iter(mtp.adapted_layers(model).values())), torch.randn(4, 5, 32)
    with mtp.task_ids(model, make_batch()["task_ids"]), NoSynchronisation():
        layer(x).sum().backward()
    with pytest.raises(AssertionError), NoSynchronisation():
        x.sum().item()


def test_ids_may_be_a_list_and_any_integer_type():
    model = adapted_linear("poly")
    x = torch.randn(3, 12, dtype=torch.float64)
    expected = model(x, task_ids=torch.tensor([0, 1, 2]))
    for ids in (
        [0, 1, 2],
        torch.tensor([0, 1, 2], dtype=torch.int32),
        torch.tensor([0, 1, 2], dtype=torch.uint8),
    ):
        assert torch.equal(model(x, task_ids=ids), expected)


def test_a_model_without_generate_gets_none():
    assert not hasattr(mtp.adapt(nn.Sequential(nn.Linear(3, 3)), make_config("poly", "0")), "generate")
    assert N_TASKS == 5
