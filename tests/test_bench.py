"""The benchmark of costs measures what it says."""

import dataclasses
import json
import sys
import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import minitensorpoly as mtp
from common import METHODS
from lab import bench

TINY = bench.Setting(
    width=64, layers=1, vocabulary=50, rank=4, experts=3, n_tasks=3, rows=4, tokens=6, new_tokens=3
)


@pytest.fixture(scope="module")
def contenders():
    torch.manual_seed(0)
    return bench.make_contenders(TINY)


def test_every_round_calls_each_contender_once_and_begins_with_another():
    calls = []
    actions = {name: lambda name=name: calls.append(name) for name in "abc"}
    seconds = bench.take_turns(actions, rounds=3, warm_up=2)
    rounds = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert rounds == ["bca", "cab", "abc", "bca", "cab"]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_time_is_that_of_the_action():
    actions = {"waits": lambda: time.sleep(0.02), "does nothing": lambda: None}
    seconds = bench.take_turns(actions, rounds=3)
    assert min(seconds["waits"]) >= 0.02 > min(seconds["does nothing"])


def test_ratio_is_taken_within_a_round():
    seconds = {"reference": [1.0, 10.0, 2.0, 1.0, 4.0], "other": [2.0, 20.0, 4.0, 1.0, 12.0]}
    found = bench.ratios(seconds, "reference")
    assert found["reference"] == {"low": 1, "median": 1, "high": 1}  # however its own times vary
    assert found["other"] == {"low": 2, "median": 2, "high": 2}  # of 1, 2, 2, 2 and 3
    assert bench.ratios({"a": [1.0] * 4, "b": [1.0, 2.0, 3.0, 4.0]}, "a")["b"] == pytest.approx(
        {"low": 1.75, "median": 2.5, "high": 3.25}
    )


def test_equal_methods_have_equal_parameters_and_plain_models_train_none(contenders):
    trained = {name: bench.count_trained(model) for name, model in contenders.items()}
    assert trained["LoRA"] == trained["PEFT LoRA"] == trained["PEFT LoRA again"] > 0
    assert trained["Poly"] == trained["PEFT Poly"] > trained["PEFT LoRA"]
    assert trained["base"] == trained["merged"] == 0
    assert contenders["merged"].num_parameters() == contenders["base"].num_parameters()


def test_contenders_share_the_base_and_start_at_it(contenders):
    base, batch = contenders["base"], bench.make_batch(TINY)
    expected = base(input_ids=batch["input_ids"], labels=batch["labels"]).logits
    for name, model in contenders.items():
        assert model.get_input_embeddings().weight is base.get_input_embeddings().weight
        inputs = batch if name.endswith("Poly") or name in bench.OURS else {**batch, "task_ids": None}
        inputs = {key: values for key, values in inputs.items() if values is not None}
        assert torch.equal(model.eval()(**inputs).logits, expected), name


def test_memory_is_what_the_forward_pass_keeps_once_and_without_parameters():
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(5, 8)
    kept = bench.memory(lambda: model(x).sum().backward(), model)
    assert kept == 4 * (x.numel() + 5 * 16)  # the input, and the output of tanh, which two layers keep
    with torch.no_grad():
        assert bench.memory(lambda: model(x), model) == 0


def test_batch_has_a_task_for_each_row_or_one_for_all():
    setting = bench.Setting(rows=4, n_tasks=3, vocabulary=50)
    assert bench.make_batch(setting)["task_ids"].tolist() == [0, 1, 2, 0]
    one = dataclasses.replace(setting, mixed=False)
    assert bench.make_batch(one)["task_ids"].tolist() == [0, 0, 0, 0]


def test_a_step_trains_the_adapter_alone_and_generation_writes_all_tokens(contenders):
    batch = bench.make_batch(TINY)
    model = contenders["TensorPoly-II"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    bench.training(model, batch)()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and changed <= set(mtp.adapter_parameters(model))
    assert bench.generation(model, batch)().shape == (4, 1 + 3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_command_measures_all_contenders_and_writes_json(dtype, tmp_path, monkeypatch, capsys):
    shape = [
        f"--{name.replace('_', '-')}={getattr(TINY, name)}"
        for name in (
            "width",
            "layers",
            "vocabulary",
            "rank",
            "experts",
            "n_tasks",
            "rows",
            "tokens",
            "new_tokens",
        )
    ]
    file = tmp_path / "folder" / "bench.json"
    options = [*shape, f"--dtype={dtype}", "--rounds=1", f"--out={file}"]
    monkeypatch.setattr(sys, "argv", ["bench", *options])
    bench.main()
    result = json.loads(file.read_text())
    assert result["provenance"]["command"].startswith("python -m lab.bench --width=64")
    assert {"commit", "date", "device", "versions", "threads"} <= set(result["provenance"])
    plain, reference = {"base", "merged"}, {"PEFT LoRA", "PEFT LoRA again", "PEFT Poly"}
    for workload, expected in (
        ("training", reference | set(bench.OURS)),
        ("generation", plain | reference | set(bench.OURS)),
    ):
        for mixed in (False, True):
            records = [
                r
                for r in result["records"]
                if r["workload"] == workload
                and r["setting"]["mixed"] == mixed
                and r["setting"]["dtype"] == dtype
            ]
            assert {r["contender"] for r in records} == expected
            assert all(len(r["seconds"]) == 1 and r["ratio"]["median"] > 0 for r in records)
            assert all((r["memory"] is not None) == (workload == "training") for r in records)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_multiplications_of_a_layer_are_those_that_pytorch_counts(method, order):
    d, o, r, K, u, n = 48, 80, 4, 3, 5, 7
    has = mtp.METHODS[method].options
    options = {"n_skills": K, "n_heads": 4, "tensor_rank": K, "order": order}
    config = mtp.AdapterConfig(method, "0", 6, r, **{k: v for k, v in options.items() if k in has})
    model = mtp.adapt(nn.Sequential(nn.Linear(d, o)), config)
    layer, ids = model[0], torch.arange(u)
    q = [mtp.leaf_size(size, order) for size in (d, o)]
    p = sum(size**j for size in q for j in range(2, order + 1))
    mixed, products = u * K * r * (d + o), K * r * p
    factors = {
        "lora": 0,
        "tlora": products,
        "poly": mixed,
        "mhr": mixed,
        "tensorpoly-1": products + mixed,
        "tensorpoly-2": u * order * K * r * sum(q) + u * r * p,
    }[method]

    def count(action, **options):
        with FlopCounterMode(display=False, **options) as counter:
            action()
        return counter.get_total_flops() / 2  # it counts a multiplication and an addition

    def build():
        weights = () if layer.router is None else (layer.router(ids),)
        return layer.A(*weights), layer.B(*weights)

    elementwise = {torch.ops.aten.mul: lambda *_, out_shape=None, **__: 2 * torch.Size(out_shape).numel()}
    assert count(build, custom_mapping=elementwise) == factors
    whole = count(lambda: model.train()(torch.randn(u, n, d), task_ids=ids))
    assert whole - count(build) == u * n * d * o + u * n * r * (d + o)
