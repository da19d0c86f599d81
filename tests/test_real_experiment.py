"""The experiment on real tasks: the search, the runs, what is recorded, and how it is read."""

import json

import pytest
import torch

from lab import methods, records, runs
from lab.english.backbone import load_backbone
from lab.pictures import results
from lab.real import experiment, finetune, plans, prompts, tasks

FEW = ("LoRA", "TensorPoly-I", methods.PRIVATE, finetune.FROZEN)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The rehearsal with four adapters, in this process."""
    folder = tmp_path_factory.mktemp("rehearsal")
    for part in load_backbone(64):
        part.save_pretrained(folder / "model")

    def execute_all(execute, runs, title, cache, workers):
        return [json.loads(json.dumps(execute(run))) for run in runs]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "execute_all", execute_all)
        patch.setattr(finetune, "ADAPTERS", FEW)
        options = {"model": folder / "model", "data": tasks.FIXTURES, "cache": folder / "cache"}
        options["out"] = folder / "out.json"
        texts = [str(text) for name, value in options.items() for text in (f"--{name}", value)]
        result = experiment.main(["rehearsal", *texts])
        assert json.loads((folder / "out.json").read_text()) == json.loads(json.dumps(result))
    assert (folder / "cache" / "checkpoints").is_dir()
    return json.loads((folder / "out.json").read_text())


def test_every_adapter_has_every_seed_and_every_task(recorded):
    profile = experiment.PROFILES["rehearsal"]
    assert [(r["seed"], r["adapter"]) for r in recorded["runs"]] == [
        (seed, adapter) for seed in profile.seeds for adapter in FEW
    ]
    for i, run in enumerate(recorded["runs"]):
        assert set(run["train"]) == set(profile.train)
        trials = {(t["task"], t["part"], t["seed"]) for t in run["few_shot"]}
        # an encoder-decoder without adapter has nothing to train
        parts = {"frozen": (), "TensorPoly-I": ("routing", "all")}.get(run["adapter"], ("all",))
        seed = tasks.FEW_SHOT_SEEDS[i // len(FEW)]
        expected = {(task, None, None) for task in profile.held_out}
        assert trials == expected | {(task, part, seed) for task in profile.held_out for part in parts}
        used = recorded["chosen"][run["adapter"]]
        assert run["lr"] == used["lr"] and all(
            t["lr"] == used[t["part"]] for t in run["few_shot"] if t["part"]
        )
    assert set(recorded["baselines"]) == {*profile.train, *profile.held_out}


def test_the_search_goes_on_at_an_end_and_sees_development_tasks_alone(recorded):
    profile = experiment.PROFILES["rehearsal"]
    for adapter in FEW:
        tried = [r["lr"] for r in recorded["search"]["training"] if r["adapter"] == adapter]
        assert min(tried) < recorded["chosen"][adapter]["lr"] < max(tried)
        assert len(tried) == len(set(tried))
    for run in recorded["search"]["training"]:
        assert set(run["train"]) == set(profile.development) and not run["few_shot"]
    for run in recorded["search"]["few_shot"]:
        assert {trial["task"] for trial in run["few_shot"]} == set(profile.transfer)


def test_the_best_rate_is_found_for_all_by_one_rule():
    profile = experiment.PROFILES["cpu"]
    rates = runs.LEARNING_RATES[1:9]
    best = {
        adapter: {part: rates[(i + 3 * j) % len(rates)] for j, part in enumerate(("lr", "routing", "all"))}
        for i, adapter in enumerate(finetune.ADAPTERS)
    }

    def score(adapter, part, lr):
        return 50 - abs(torch.tensor(lr / best[adapter][part]).log10().item())

    def make_run(adapter, seed, lr, tasks, steps=None, few_shot=(), **transfer):
        return {"adapter": adapter, "lr": lr, "tasks": tasks, "trials": few_shot}

    def run_all(runs, title):
        for run in runs:
            name = run["adapter"]
            run["train"] = {"task": score(name, "lr", run["lr"])}
            trials = [{"part": p, "lr": lr, "accuracy": score(name, p, lr)} for p, lr in run["trials"]]
            run["few_shot"] = [{"part": None, "accuracy": 99.0}, *trials]
        return runs

    records, chosen = experiment.search(profile, make_run, run_all)
    for adapter in finetune.ADAPTERS:
        parts = ("lr", *experiment.parts_of(adapter))
        assert chosen[adapter] == {part: best[adapter][part] for part in parts}
        tried = {run["lr"] for run in records["training"] if run["adapter"] == adapter}
        assert tried >= {*profile.rates["lr"]} and min(tried) < best[adapter]["lr"] < max(tried)
    assert {run["tasks"] for run in records["training"]} == {profile.development}
    assert {run["tasks"] for run in records["few_shot"]} == {profile.train}


@pytest.mark.parametrize("name", experiment.PROFILES)
def test_no_task_of_a_profile_has_two_uses(name):
    profile = experiment.PROFILES[name]
    used = [*profile.train, *profile.development, *profile.held_out]
    assert len(used) == len(set(used)) and set(used) <= set(prompts.TASKS)
    assert set(profile.transfer) <= set(profile.development)
    assert len(profile.seeds) >= 2 and 0 not in profile.seeds  # which is the search's
    assert len(profile.few_shot_seeds or tasks.FEW_SHOT_SEEDS) >= len(profile.seeds)
    finetune.Setting(**profile.setting)
    finetune.Arguments(output_dir="unused", **profile.arguments)


def test_runs_differ_in_the_cache_when_their_setting_does(tmp_path):
    run = experiment.Run("LoRA", 1, 0.01, ("rte",), setting=(("budget", 8),))
    other = experiment.Run("LoRA", 1, 0.01, ("rte",), setting=(("budget", 16),))
    assert runs.cache_file(tmp_path, run) != runs.cache_file(tmp_path, other)


def test_tables_hold_the_means_of_what_was_recorded(recorded):
    table = experiment.table(recorded).set_index(["adapter", "seed"])
    run = next(r for r in recorded["runs"] if (r["adapter"], r["seed"]) == ("TensorPoly-I", 2))
    row = table.loc["TensorPoly-I", 2]
    assert row["training tasks"] == pytest.approx(records.mean(run["train"]))
    for column, part in (("before", None), ("routing alone", "routing"), ("everything", "all")):
        own = [trial["accuracy"] for trial in run["few_shot"] if trial["part"] == part]
        assert row[column] == pytest.approx(sum(own) / len(own))
    assert row["transfer"] == row["routing alone"] and row["routing"] == run["parameters"]["routing"] > 0
    lora = table.loc["LoRA", 1]
    assert lora["transfer"] == lora["everything"] and lora["routing"] == 0
    assert row["tokens/s"] == pytest.approx(run["tokens"] / run["seconds"])
    assert records.formatted(records.summary(table.reset_index(), ["transfer"])).shape == (4, 1)


def test_a_difference_over_tasks_is_paired(recorded):
    accuracies = experiment.accuracies(recorded)
    difference, half = records.task_difference(accuracies, "TensorPoly-I", "LoRA", "everything")
    pairs = []
    for task in experiment.PROFILES["rehearsal"].held_out:
        own = [
            [t["accuracy"] for t in run["few_shot"] if (t["task"], t["part"]) == (task, "all")]
            for name in ("TensorPoly-I", "LoRA")
            for run in recorded["runs"]
            if run["adapter"] == name
        ]
        pairs.append((sum(own[0] + own[1]) - sum(own[2] + own[3])) / 2)
    assert difference == pytest.approx(sum(pairs) / 2)
    assert half == pytest.approx(12.7062 * abs(pairs[0] - pairs[1]) / 2, rel=1e-4)  # t of one degree


def test_pictures_show_every_adapter(recorded):
    adapters = [name for name in FEW if name != finetune.FROZEN]
    accuracies = experiment.accuracies(recorded)
    transfer = accuracies[accuracies["stage"] == "transfer"]
    panels = dict([*transfer.groupby("task", sort=False)])
    figure = results.real_panels(panels, recorded["baselines"], "title", columns=2)
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert shown == [*adapters, "majority", "chance"] and len(figure.axes) == 2
    figure = results.real_rates(recorded["search"], recorded["chosen"], "title")
    assert [len(axes.lines) for axes in figure.axes] == [8, 2, 6]  # a line and a mark for each adapter


def test_absent_results_are_said_to_be_not_measured(tmp_path, capsys):
    assert records.read_if_measured(tmp_path / "finetune_real.json") is None
    assert capsys.readouterr().out == "finetune_real.json: not measured yet\n"


def t5_parameters(d, d_ff, heads, layers=24, vocabulary=32128, d_kv=64, buckets=32):
    """T5 version 1.1, counted by hand."""
    attention, feed_forward = 4 * d * heads * d_kv, 3 * d * d_ff
    encoder = layers * (attention + feed_forward + 2 * d)
    decoder = layers * (2 * attention + feed_forward + 3 * d)
    return 2 * vocabulary * d + encoder + decoder + 2 * (d + buckets * heads)


@pytest.mark.parametrize("name", plans.T5_SIZES)
def test_planned_parameters_are_those_counted_by_hand(name):
    d, d_ff, heads = plans.T5_SIZES[name].values()
    planned = plans.plan(name, "LoRA", n_tasks=20, rank=1)
    assert planned["base"] == t5_parameters(d, d_ff, heads)
    inner = heads * 64  # an attention has four layers, a gated feed-forward three
    layers = {"attention": 4 * (d + inner) * 3, "feed-forward": 3 * (d + d_ff) * 2}
    assert planned["factors"] == 24 * sum(layers.values())
    assert planned["layers"] == 24 * (4 * 3 + 3 * 2) and planned["routing"] == 0


def test_planned_memory_counts_weights_gradients_and_moments():
    assert plans.memory(trained=0, base=10**9) == 2
    assert plans.memory(trained=10**9, base=0) == 16
    assert plans.memory(10**9, 10**9, gpus=4) == 4.5
