"""The benchmark of costs measures what it says."""

import dataclasses
import json
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import minitensorpoly as mtp
from common import METHODS
from lab.cost import bench

TINY = dataclasses.replace(bench.REHEARSED, experts=3, n_tasks=3, rows=4)


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


def test_time_is_that_of_the_action(monkeypatch):
    """By a clock that stands still but for what the actions take."""
    clock = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])

    def takes(seconds):
        clock[0] += seconds

    seconds = bench.take_turns({"short": lambda: takes(1.0), "long": lambda: takes(3.0)}, rounds=3)
    assert seconds == {"short": [1.0] * 3, "long": [3.0] * 3}


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


class Net(nn.Sequential):
    def forward(self, x):
        return super().forward(x).sum()


def test_memory_is_what_the_forward_pass_keeps_once_and_without_parameters():
    model = Net(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(5, 8)
    kept = bench.memory(model, {"x": x})
    assert kept == 4 * (x.numel() + 5 * 16)  # the input, and the output of tanh, which two layers keep
    with torch.no_grad():
        assert bench.memory(model, {"x": x}) == 0


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


PLAIN, REFERENCE = {"base", "merged"}, {"PEFT LoRA", "PEFT LoRA again", "PEFT Poly"}


def run(monkeypatch, folder, *options):
    monkeypatch.setattr(sys, "argv", ["bench", *options, f"--folder={folder}"])
    bench.main()


def test_profile_measures_all_contenders_at_both_workloads(tmp_path, monkeypatch):
    run(monkeypatch, tmp_path / "folder", "rehearsal")
    result = json.loads((tmp_path / "folder" / "cost_rehearsal.json").read_text())
    assert result["provenance"]["command"].startswith("python -m lab.cost.bench rehearsal")
    assert {"commit", "date", "device", "versions", "threads"} <= set(result["provenance"])
    costs = bench.table(result["records"])
    for (_, workload, _), own in costs.groupby(["dtype", "workload", "mixed"]):
        expected = REFERENCE | set(bench.OURS) | (PLAIN if workload == "generation" else set())
        assert set(own["contender"]) == expected and len(own) == len(expected)
        assert own[["low", "median", "high"]].notna().all(axis=None)
        assert own["memory"].notna().all() == (workload == "training")
    assert len(costs.groupby(["dtype", "workload", "mixed"])) == 8
    assert costs["gated"].any() and not costs["gated"].all()


def test_profile_measures_growth_of_one_option_at_a_time(tmp_path, monkeypatch):
    run(monkeypatch, tmp_path, "rehearsal")
    records = json.loads((tmp_path / "scaling_rehearsal.json").read_text())["records"]
    found = bench.table(records)
    assert set(found["option"]) == set(bench.GROWTH)
    for option, own in found.groupby("option"):
        assert sorted(set(own["value"])) == list(bench.GROWTH[option][:2])
        assert (own[option] == own["value"]).all()
        assert set(own["contender"]) == REFERENCE | set(bench.OURS)
    assert (found[found["contender"] == "PEFT LoRA"]["memory"] == 1).all()
    assert (found[found["contender"] == "PEFT LoRA"]["median"] == 1).all()


def test_setting_of_ones_own_is_measured(tmp_path, monkeypatch):
    sizes = {name: getattr(TINY, name) for name in ("width", "layers", "vocabulary", "rows", "tokens")}
    options = [f"--{name}={size}" for name, size in sizes.items()]
    run(monkeypatch, tmp_path, "custom", *options, "--feed-forward=96", "--new-tokens=3", "--rounds=1")
    records = json.loads((tmp_path / "cost_custom.json").read_text())["records"]
    assert {r["setting"]["feed_forward"] for r in records} == {96}
    assert all(r["setting"][name] == size for r in records for name, size in sizes.items())
    assert not (tmp_path / "scaling_custom.json").exists()


def test_options_that_a_profile_would_not_heed_are_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, "rehearsal", "--width=128")
    assert "the profile rehearsal has settings of its own" in capsys.readouterr().err


def test_profiles_for_measurements_have_the_shapes_that_they_name():
    (t0, _), *_ = bench.PROFILES["gpu"][0]
    with torch.device("meta"):
        model = bench.make_base(dataclasses.replace(t0, device="meta"))
    adapted = mtp.adapt(model, mtp.AdapterConfig("lora", bench.TARGET_MODULES))
    assert len(mtp.adapted_layers(adapted)) == 432 and t0.dtype == "bfloat16" and t0.device == "cuda"
    small = bench.make_base(dataclasses.replace(bench.SMALL, device="meta"))
    assert small.num_parameters() == 60506624  # google-t5/t5-small


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
    p = sum(size**j for size in q for j in range(2, order + 1))  # products of j leaves, cut off at the end
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
