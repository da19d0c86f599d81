"""The comparison in controlled English: its budgets, its search, its learners, its statistics, its files."""

import collections
import copy
import dataclasses
import json
import math
import re

import numpy
import pandas
import pytest
import torch

import minitensorpoly as mtp
from lab import records, runs
from lab.english import (
    backbone,
    comparison,
    contenders,
    learners,
    outcomes,
    rules,
    run,
    search,
    statistics,
    tasks,
    training,
)
from lab.english.contenders import BUDGETS, CONTENDERS, SHAPES
from lab.pictures import results, switches

MIXTURES = ("Poly", "MHR", "TensorPoly-I", "TensorPoly-II")
SHAPE = {"LoRA": "r=8", "LoRA, vector": "r=8", "Poly": "K=4 r=2", "MHR": "K=4 r=2 H=8"}
SHAPE |= {"LoRA, layer vectors": "r=8"}
SHAPE |= {"TensorPoly-I": "N=2 R=8 r=4", "TensorPoly-II": "N=2 R=8 r=4", "private LoRA": "r=1 on=q|v"}


# ------------------------------------------------------------ budgets


@pytest.mark.parametrize(("width", "budget"), SHAPES)
def test_every_shape_of_every_contender_has_the_budget_within_7_percent(width, budget, monkeypatch):
    empty = backbone.load_backbone(width)[0].to("meta")  # shapes without numbers
    monkeypatch.setattr(contenders, "load_backbone", lambda width: (copy.deepcopy(empty), None))
    for contender, rows in SHAPES[width, budget].items():
        wanted = BUDGETS[width, budget] * (3 if contender == "private LoRA, 3 times" else 1)
        for shape in (shape for row in rows for shape in row):
            model = contenders.build(width, contender, shape, 24, seed=0)
            factors = sum(p.numel() for p in contenders.parameters(model)["factors"])
            assert abs(factors / wanted - 1) < 0.07, (contender, shape, factors)


def test_private_adapters_share_nothing_and_have_the_budget_together():
    model = contenders.build(64, "private LoRA", "r=1 on=q|v", 24, seed=0)
    groups = contenders.parameters(model)
    assert sum(p.numel() for p in groups["factors"]) == BUDGETS[64, "large"] and not groups["own"]
    weights = mtp.routing_weights(model).values()
    assert all(torch.equal(w[:, 0], torch.eye(24)) for w in weights)


# ------------------------------------------------------------ a contender that is told the task


def test_the_vector_is_a_function_of_the_task_alone():
    model = contenders.build(64, "LoRA, vector", "r=8", 4, seed=0)
    batch = small_batch(rows=4)
    plain = contenders.logits(model, batch)
    assert torch.equal(told(model, batch, [0, 1, 2, 3]), plain)  # it starts at zero
    with torch.no_grad():
        model.task_vectors[2] += 1
    changed = [not torch.equal(*rows) for rows in zip(told(model, batch, [0, 1, 2, 3]), plain, strict=True)]
    assert changed == [False, False, True, False]
    same_text = {name: column[:1].repeat(4, 1) for name, column in batch.items()}
    first, second, third, fourth = told(model, same_text, [2, 2, 1, 0])
    assert torch.equal(first, second) and torch.equal(third, fourth) and not torch.equal(first, third)


@torch.no_grad()
def test_vectors_in_layers_are_biases_of_each_task():
    model, batch = trained("LoRA, layer vectors"), small_batch(rows=3)
    predicted = contenders.logits(model, batch, task_ids=torch.tensor([0, 2, 1]))
    assert sum(p.numel() for p in contenders.parameters(model)["own"]) == 3 * 32 * 8
    together = learners.Learners(model, 3)
    own = together.known[torch.tensor([0, 2, 1])]
    grouped = together.logits(batch, together.factors, own)
    torch.testing.assert_close(grouped, predicted, rtol=1e-4, atol=1e-4)
    for row, task in enumerate([0, 2, 1]):
        plain = contenders.build(64, "LoRA", "r=8", 1, seed=0)
        for i, (name, layer) in enumerate(mtp.adapted_layers(plain).items()):
            told = mtp.adapted_layers(model)[name]
            layer.A.matrices.copy_(told.A.matrices)
            layer.B.matrices.copy_(told.B.matrices)
            bias = told.B.matrices[0].T @ model.task_vectors[task, i]
            layer.register_forward_hook(lambda layer, x, y, bias=bias: y + bias)
        expected = contenders.logits(plain, batch)[row]
        torch.testing.assert_close(predicted[row], expected, rtol=1e-4, atol=1e-4)


def told(model, batch, ids):
    """Predictions for rows of the given tasks."""
    ids = torch.tensor(ids)
    return contenders.logits(model, batch, model.task_vectors[ids], task_ids=ids)


def small_batch(rows):
    """Rows of the first training task."""
    of = tasks.make_split(1).train[:1]
    data = training.encode(tasks.make_dataset(of, rows, "batch"), backbone.make_tokenizer())
    return {name: data[name] for name in ("input_ids", "attention_mask", "labels")}


def test_predictions_after_the_right_words_tell_what_greedy_decoding_writes():
    model, tokenizer = backbone.load_backbone(64)
    data = training.encode(tasks.make_pretraining_dataset(300, seed=3), tokenizer)
    data["labels"][::2, 3] = tokenizer.unk_token_id  # a model that is right on some, and wrong on others
    with torch.no_grad():
        right = contenders.right(contenders.logits(model, data), data["labels"])
    assert torch.equal(right, training.exact_match(model, data)) and 0.4 < right.float().mean() < 0.6


# ------------------------------------------------------------ many few-shot learners


def trained(contender):
    """A model with random factors, routing and vectors, as if it had been trained."""
    model = contenders.build(64, contender, SHAPE[contender], 3, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for group in contenders.parameters(model).values():
            for parameter in group:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def few_examples(n_learners, n=3):
    """n examples for each of so many learners: (learners, n, tokens)."""
    of = tasks.make_split(1).held_out[:n_learners]
    data = training.encode(tasks.make_dataset(of, n, "few"), backbone.make_tokenizer())
    return run.by_task(data, n_learners, torch.arange(n_learners))


def learn(together, examples, part, steps=4):
    n = len(examples["labels"])
    rates = torch.linspace(0.01, 0.03, n)
    learners.train(together, examples, torch.arange(1, n + 1), part, rates, rates, steps, rows=2, seed=0)


@pytest.mark.parametrize("contender", [*MIXTURES, "LoRA"])
@torch.no_grad()
def test_a_learner_starts_as_a_task_that_the_library_adds(contender):
    model, batch = trained(contender), small_batch(rows=2)
    together = learners.Learners(model, 2)
    predicted = together.logits(batch, together.factors, together.own)
    added = mtp.add_tasks(model, 1)[0] if contender in MIXTURES else 0
    expected = contenders.logits(model, batch, task_ids=torch.tensor([added, added]))
    torch.testing.assert_close(predicted, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("contender", ["TensorPoly-II", "LoRA, vector", "LoRA, layer vectors"])
@pytest.mark.parametrize("part", ["own", "all"])
def test_learners_that_train_together_do_not_learn_from_each_other(contender, part):
    model, examples = trained(contender), few_examples(2)
    both = learners.Learners(model, 2)
    learn(both, examples, part)
    changed = {name: column.clone() for name, column in examples.items()}
    changed["labels"][1][changed["labels"][1] != -100] = 5
    again = learners.Learners(model, 2)
    learn(again, changed, part)
    for name in ("factors", "own"):
        a, b, start = (getattr(which, name).detach() for which in (both, again, learners.Learners(model, 2)))
        torch.testing.assert_close(a[0], b[0])
        moves = name == "own" or part == "all"
        assert torch.equal(a[1], b[1]) != moves and torch.equal(a, start) != moves


def test_training_one_learner_is_adam_with_clipping():
    model, examples = trained("LoRA"), few_examples(1)
    together = learners.Learners(model, 1)
    learn(together, examples, "all", steps=1)
    parameters = contenders.parameters(model)["factors"]
    optimizer = torch.optim.Adam(parameters, 0.01)
    rows = (torch.rand(2, generator=torch.Generator().manual_seed(0)) * 1).long()
    batch = {name: column[0, rows] for name, column in examples.items()}
    model(**batch).loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    expected = torch.cat([parameter.detach().flatten() for parameter in parameters])
    torch.testing.assert_close(together.factors.detach()[0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("contender", MIXTURES)
def test_the_control_keeps_its_routing_uniform_and_learns_its_factors(contender):
    together = learners.Learners(trained(contender), 2, uniform=True)
    start = together.factors.clone()
    learn(together, few_examples(2), "factors")
    for logits in learners._cut(together.own, together.own_shapes):
        weights = learners.normalized_sigmoid(logits)
        torch.testing.assert_close(weights, torch.full_like(weights, 1 / logits.shape[-1]))
    assert not torch.equal(together.factors, start)


# ------------------------------------------------------------ a run


def quick(contender, **changes):
    few_shot = tuple((part, 2, 0.05) for part in CONTENDERS[contender].parts)
    fields = {"few_shot": few_shot, "few_steps": 2, "n_test": 3, "curve_points": 2}
    return run.Run(
        64, "large", contender, SHAPE[contender], "24 tasks", 4, 1, 1, 0.05, 0.1, **fields | changes
    )


@pytest.fixture
def plain(monkeypatch):
    """Without compiling, and with few sentences."""
    monkeypatch.setattr(run.shutil, "which", lambda name: None)
    for name, setting in run.SETTINGS.items():
        monkeypatch.setitem(run.SETTINGS, name, dataclasses.replace(setting, n_examples=4))
    for name, value in {"N_TEST": 5, "N_OLD": 2, "N_CURVE": 1}.items():
        monkeypatch.setattr(run, name, value)


@pytest.mark.parametrize("contender", ["TensorPoly-I", "LoRA, vector", "LoRA, layer vectors", "private LoRA"])
def test_a_run_is_deterministic_and_its_record_tells_which_run_it_is(plain, contender):
    of_run = quick(contender)
    record = json.loads(json.dumps(run.execute(of_run)))
    run.trained.cache_clear()
    again = json.loads(json.dumps(run.execute(of_run)))
    assert record.pop("seconds") >= 0 and again.pop("seconds") >= 0
    assert record == again and run.run_of(record) == of_run
    assert len(record["train"]) == 24 and [step for step, _ in record["curve"]] == [2, 4]
    assert [len(trial["right"]) for trial in record["few_shot"]] == [8] * len(CONTENDERS[contender].parts)


@pytest.mark.parametrize("contender", ["TensorPoly-I", "LoRA, vector", "LoRA, layer vectors"])
def test_what_a_task_has_of_its_own_learns_at_a_rate_of_its_own(plain, monkeypatch, contender):
    seen, train = [], learners.train

    def learn(together, examples, shots, part, rates, own_rates, *rest):
        seen.append([rates.unique_consecutive().tolist(), own_rates.unique_consecutive().tolist()])
        train(together, examples, shots, part, rates, own_rates, *rest)

    monkeypatch.setattr(run.learners, "train", learn)
    few_shot = (("own", 2, 0.5), ("all", 2, 0.25), ("all", 2, 0.25, 0.75))
    of_run = quick(contender, few_shot=few_shot)
    record = json.loads(json.dumps(run.execute(of_run)))
    assert seen == [[[0.5], [0.5]], [[0.25], [pytest.approx(run.OWN_RATE), 0.75]]]
    assert [trial.get("own_rate") for trial in record["few_shot"]] == [None, None, 0.75]
    assert run.run_of(record) == of_run


def test_a_model_that_is_already_trained_is_transferred_as_it_was_then(plain, monkeypatch):
    run.trained.cache_clear()
    first = run.execute(quick("Poly", curve_points=0))
    run.execute(dataclasses.replace(quick("Poly", curve_points=0), seed=2))
    monkeypatch.setattr(run, "train", lambda *rest: pytest.fail("it was trained again"))
    again = run.execute(quick("Poly", curve_points=0, n_test=2, few_shot=(("own", 2, 0.05),)))
    assert again["train"] == first["train"]


def test_what_a_task_has_of_its_own_makes_no_old_task_forget(plain, monkeypatch):
    # Skills that the text names: then old sentences are right already, and something can be lost.
    monkeypatch.setitem(run.SETTINGS, "24 tasks", run.SETTINGS["skills named"])
    few_shot = tuple((part, 2, 1.0) for part in ("own", "all", "factors"))
    record = run.execute(quick("Poly", few_shot=few_shot, few_steps=10, forgetting=True))
    lost = {old["part"]: [old["before"] - right for right in old["right"]] for old in record["old"]}
    assert record["old"][0]["before"] > 0 and lost["own"] == [0] * 8
    assert min(lost["all"]) > 0 and min(lost["factors"]) > 0


@pytest.mark.parametrize("setting", run.SETTINGS)
def test_settings_are_what_they_say(setting):
    split = run.make_split(dataclasses.replace(quick("Poly"), setting=setting))
    wanted = run.SETTINGS[setting]
    tags = collections.Counter(task.tag for task in split.train)
    skills = {task.skills for task in split.train + split.held_out}
    assert len(split.train) == wanted.n_tasks and len(skills) == wanted.n_tasks + 8
    assert {2} == set(tags.values()) if wanted.all_shared else sum(split.shared) == 12
    assert not {task.tag for task in split.held_out} & set(tags)
    assert all(task.tag in tasks.VOCABULARY for task in split.train + split.held_out)


# ------------------------------------------------------------ the search


def accuracy(ratio):
    """0.9 at a ratio of 1, and less on both sides."""
    return 0.9 - abs(math.log10(ratio)) / 20


def invented(best_lr=0.05, best_few=0.01, best_own=0.1):
    """A stand-in for `execute`: best at given rates, whatever the shape; and the runs it was asked for."""
    asked = {}

    def record(of_run):
        asked[of_run.key] = of_run
        few_shot = []
        for part, n, rate, *own in of_run.few_shot:
            exact = accuracy(rate / best_few)
            if part == "all":
                exact += accuracy((*own, run.OWN_RATE)[0] / best_own) - 0.9
            trial = {"part": part, "shots": n, "rate": rate, "right": [search.TRIAL_TEST * exact]}
            few_shot.append(trial | ({"own_rate": own[0]} if own else {}))
        return {"train": [run.N_TEST * accuracy(of_run.lr / best_lr)], "few_shot": few_shot}

    return record, asked


@pytest.mark.parametrize(("width", "budget"), SHAPES)
@pytest.mark.parametrize("best_lr", [0.002, 0.05, 0.15])
def test_every_contender_gets_as_many_trials_and_no_best_value_lies_at_an_end(width, budget, best_lr):
    for contender in SHAPES[width, budget]:
        record, asked = invented(best_lr)
        found = search.Search(width, budget, contender, record).shape_and_rates()
        trials = {(r.shape, r.lr, r.own_lr) for r in asked.values()}
        assert len(asked) == len(search.SEEDS) * len(trials) and {r.split for r in asked.values()} == {0}
        least, most = search.TRIALS[width]
        assert least <= len(trials) <= most and found["closed"]
        assert found["lr"] == pytest.approx(best_lr)
        rates = sorted(lr for shape, lr, own in trials if (shape, own) == (found["shape"], found["own_lr"]))
        assert rates[0] < found["lr"] < rates[-1]


def test_a_search_goes_on_at_an_edge_and_stops_at_its_limit():
    def neighbours(point):
        return [(place,) for place in (point[0] - 1, point[0] + 1) if 0 <= place < 100]

    tried = []

    def evaluate(point):
        tried.append(point)
        return point[0]

    everything = [(i,) for i in range(100)]
    assert runs.climb([(50,)], neighbours, everything, evaluate, 5, 20) == ((68,), False)
    assert len(tried) == 20
    assert runs.climb([(95,)], neighbours, everything, evaluate, 5, 20) == ((99,), True)


@pytest.mark.parametrize("best", [1e-4, 0.1])
@pytest.mark.parametrize(("width", "parts"), [(64, ("own", "all", "factors")), (256, ("own", "all"))])
def test_few_shot_rates_lie_inside_of_those_that_were_tried(best, width, parts):
    record, asked = invented(best_few=best)
    found = search.Search(width, "large", "MHR", record).few_shot(300)
    shots = {64: run.SHOTS, 256: run.FEW_SHOTS}[width]
    assert set(found) == {(part, n) for part in parts for n in shots}
    for (part, shots), (rate, exact) in found.items():
        tried = {r for of_run in asked.values() for p, n, r in of_run.few_shot if (p, n) == (part, shots)}
        assert rate == best and min(tried) < rate < max(tried) and exact == pytest.approx(90)


@pytest.mark.parametrize(("best", "best_own"), [(1e-4, 0.1), (0.003, 1e-3), (0.1, 3.0)])
def test_rates_for_training_everything_are_searched_until_no_neighbour_is_better(best, best_own):
    record, asked = invented(best_few=best, best_own=best_own)
    found = search.Search(64, "large", "MHR", record).both_rates(300)
    tried = {of[1:] for of_run in asked.values() for of in of_run.few_shot if of[0] == "all"}
    assert set(found) == set(run.SHOTS)
    for shots, (rate, own, exact) in found.items():
        assert (rate, own) == (best, best_own) and exact == pytest.approx(90)
        rates, place = search.FEW_RATES, search.FEW_RATES.index
        for near in (rates[place(rate) - 1], rates[place(rate) + 1]):
            assert {(shots, near), (shots, near, own)} & tried
        for near in (rates[place(own) - 1], rates[place(own) + 1]):
            assert (shots, rate, near) in tried or near == run.OWN_RATE


@pytest.mark.parametrize("contender", ["LoRA", "Poly"])
def test_rates_for_sgd_are_searched_until_no_neighbour_is_better(contender):
    record, asked = invented(best_lr=1.0)
    found = search.Search(64, "large", contender, record).sgd()
    tried = {(of_run.lr, of_run.own_lr) for of_run in asked.values() if of_run.optimizer == "SGD"}
    assert found[0] == 1 and found[2] == pytest.approx(90)
    assert {(0.3, found[1]), (1, found[1]), (3, found[1])} <= tried
    assert len({own for _, own in tried}) == (1 if contender == "LoRA" else 3)


def test_sgd_is_torchs(plain):
    of_run = quick("Poly", optimizer="SGD", few_shot=(), curve_points=0)
    model, loss_of, _ = run.workbench(64, "Poly", of_run.shape, 24, "cpu")
    start = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    data = run.sentences(run.make_split(of_run).train, 4, "train 1", False, "cpu")
    run.train(dataclasses.replace(of_run, steps=1), model, loss_of, data)
    for parameter, before in ((model.get_parameter(name), before) for name, before in start.items()):
        own = any(parameter is p for p in contenders.parameters(model)["own"])
        rate = of_run.own_lr if own else of_run.lr
        torch.testing.assert_close(parameter, before - rate * parameter.grad)  # the first step: no momentum


# ------------------------------------------------------------ files of finished runs


def test_a_killed_run_leaves_a_torn_line_and_the_next_start_goes_on(tmp_path):
    path, done = tmp_path / "runs.jsonl", []

    def execute(of_run):
        done.append(of_run)
        return json.loads(json.dumps(dataclasses.asdict(of_run) | {"few_shot": [], "train": [1]}))

    first, second = (dataclasses.replace(quick("Poly", few_shot=()), seed=seed) for seed in (1, 2))
    runs.Records(path, run.run_of, execute)(first)
    whole = path.read_bytes()
    runs.Records(path, run.run_of, execute)(second)
    path.write_bytes(path.read_bytes()[: len(whole) + 20])  # killed while it wrote
    assert [record["seed"] for record in runs.read(path)] == [1]
    again = runs.Records(path, run.run_of, execute)
    assert again(first)["seed"] == 1 and again(second)["seed"] == 2
    assert [of_run.seed for of_run in done] == [1, 2, 2]
    assert [record["seed"] for record in runs.read(path)] == [1, 2]
    with pytest.raises(runs.NotRecorded, match="run the stage `search` to its end"):
        runs.Records(path, run.run_of)(dataclasses.replace(first, seed=3))


def test_final_runs_take_turns_over_the_contenders(tmp_path):
    for contender in SHAPES[64, "large"]:
        record, asked = invented()
        of_search = search.Search(64, "large", contender, record)
        of_search.few_shot(300), of_search.rate(300, "60 tasks")
        CONTENDERS[contender].has_own and of_search.both_rates(300)
        for of_run in asked.values():
            file = comparison.search_file(tmp_path, 64, "large", contender)
            runs.append(file, dataclasses.asdict(of_run) | record(of_run))
    usual = comparison.final_runs(tmp_path, 64, ("large", "24 tasks", 300), rules.PAIRS[:2])
    names = [name for name in CONTENDERS for _ in range(1 + CONTENDERS[name].has_own)]
    n = len(names)
    assert [(r.split, r.seed) for r in usual] == [(1, 1)] * n + [(2, 2)] * n
    assert [r.contender for r in usual[:n]] == names
    poly, both = usual[names.index("Poly") :][:2]
    assert {trial[:2] for trial in poly.few_shot} == {
        (part, shots) for part in ("own", "all", "factors") for shots in (2, 8, 32, 128)
    }
    assert {trial[:2] for trial in both.few_shot} == {("all", shots) for shots in (2, 8, 32, 128)}
    assert {len(trial) for trial in poly.few_shot} == {3} and {len(trial) for trial in both.few_shot} == {4}
    many = comparison.final_runs(tmp_path, 64, ("large", "60 tasks", 300), rules.PAIRS[:1])
    assert len(many) == n - 2 and not [r for r in many if CONTENDERS[r.contender].private]
    with pytest.raises(runs.NotRecorded):
        comparison.final_runs(tmp_path, 64, ("small", "24 tasks", 300), rules.PAIRS)


# ------------------------------------------------------------ statistics


def made_up_record(contender="Poly", split=1, right=50, **changes):
    """A final run that is right on half as many sentences where tasks share a tag."""
    shared = tasks.make_split(split).shared
    record = dataclasses.asdict(quick(contender, few_shot=())) | {"split": split, "seed": split}
    record |= {
        "train": [right // 2 if is_shared else right for is_shared in shared],
        "curve": [[2, 60], [4, 120]],
    }
    record["few_shot"] = [{"part": "own", "shots": 8, "rate": 0.1, "right": [30, 50]}]
    record["old"] = [{"part": "own", "shots": 8, "rate": 0.1, "before": 200, "right": [176, 152]}]
    return record | {"n_test": 100} | changes


def test_a_record_becomes_percentages_and_points():
    table = statistics.tidy([made_up_record()]).set_index("measure")["value"]
    assert dict(table) == {"train": 37.5, "own tag": 50, "shared tag": 25, "transfer": 40, "old": 15}
    named = statistics.tidy([made_up_record(setting="skills named")])
    assert set(named["measure"]) == {"train", "transfer", "old"}
    curve = statistics.curves([made_up_record()])
    assert dict(zip(curve["step"], curve["value"], strict=True)) == {2: 25, 4: 50}


def test_a_model_that_is_transferred_twice_counts_once_and_searched_rates_are_the_part_all():
    trial = {"part": "all", "shots": 8, "rate": 0.1, "right": [30, 50]}
    first = made_up_record(few_shot=[trial], old=[])
    second = made_up_record(few_shot=[trial | {"own_rate": 0.3, "right": [60, 80]}], old=[])
    table = statistics.tidy([first, second, made_up_record("LoRA", few_shot=[trial], old=[])])
    assert list(table["measure"]) == ["train", "own tag", "shared tag", "transfer", "transfer"] + [
        *("train", "own tag", "shared tag", "transfer")
    ]
    parts = table[table["measure"] == "transfer"].set_index(["contender", "part"])["value"]
    assert dict(parts) == {
        ("Poly", "all, own at 0.1"): 40,
        ("Poly", "all"): 70,
        ("LoRA", "all"): 40,
    }


def test_accuracies_are_means_of_splits_and_are_written_with_their_interval():
    table = pandas.DataFrame(
        {"contender": "Poly", "split": [1, 1, 2], "value": [10.0, 20.0, 45.0], "shots": 8}
    )
    found = statistics.accuracies(table, ["contender", "shots"]).loc["Poly", 8]
    assert (
        found["mean"] == 30 and found["splits"] == [15, 45] and 10 <= found["low"] < 30 < found["high"] <= 45
    )
    texts = statistics.texts(
        pandas.DataFrame({"mean": [30.04], "low": [9.96], "high": [45.0]}, index=["Poly"])
    )
    assert dict(texts) == {"Poly": "30.0 (10.0 to 45.0)"}


def test_a_run_that_failed_stands_out_in_its_block():
    made = [made_up_record(split=split, right=right) for split, right in ((1, 80), (2, 90), (3, 38), (4, 80))]
    failed = rules.failed(statistics.tidy(made + [made_up_record("MHR", right=20)]))
    assert list(failed["split"]) == [3] and list(failed["contender"]) == ["Poly"]


@pytest.mark.parametrize("draw", [results.lines, results.against])
def test_figures_show_every_contender_in_every_panel(draw):
    names = list(CONTENDERS)
    table = pandas.DataFrame({"mean": 50.0, "low": 40.0, "high": 60.0, "x": 64.0}, index=names)
    if draw is results.lines:
        table = pandas.concat({8: table, 32: table}).swaplevel()
    figure = draw({"one": table, "two": table[:4]}, "x", "y", "A title")
    assert len(figure.axes) == 2 and figure.axes[0].get_title() == "one"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    marks = [
        (line.get_color(), line.get_marker(), line.get_markerfacecolor()) for line in figure.axes[0].lines
    ]
    assert len({mark for mark in marks if mark[1] != "None"}) == len(names)  # they can be told apart


def test_a_chart_with_switches_draws_each_line_where_its_numbers_are():
    numbers = {"mean": [0.0, 100.0], "low": [0.0, 90.0], "high": [10.0, 100.0]}
    table = pandas.concat({name: pandas.DataFrame(numbers, index=[10, 20]) for name in CONTENDERS})
    drawn = switches.Switches(table, "step", "exact match (%)", ["Poly"], "chart")._repr_html_()
    points = re.findall(r'<polyline [^>]*points="(\S+),(\S+) (\S+),(\S+)"', drawn)
    assert len(points) == len(CONTENDERS) == drawn.count('type="checkbox"') and drawn.count(" checked>") == 1
    ((x0, y0, x1, y1),) = {tuple(map(float, line)) for line in points}
    assert x0 - switches.LEFT == pytest.approx((x1 - switches.LEFT) / 2, abs=0.1) and y0 > y1 + 200


# ------------------------------------------------------------ what is recorded


def test_recorded_final_runs_are_those_that_the_rules_ask_for():
    folder, recorded = comparison.RESULTS, 0
    for width, blocks in rules.BLOCKS.items():
        for block, splits in blocks.items():
            made = {
                run.run_of(record).key for record in runs.read(comparison.final_file(folder, width, *block))
            }
            if made:
                asked = comparison.final_runs(folder, width, block, rules.PAIRS[:splits])
                assert made <= {of_run.key for of_run in asked}
                recorded += len(made)
    found = sum(len(outcomes.final_records(folder, width)) for width in rules.BLOCKS)
    assert recorded == found == outcomes.progress(folder)["recorded"].sum() > 0


def test_tables_of_the_search_have_its_trials_and_its_choices():
    trials = outcomes.trials(comparison.RESULTS, 64, "large")
    chosen = outcomes.chosen(comparison.RESULTS, 64, "large")
    assert list(chosen.index) == list(SHAPES[64, "large"])
    for contender, row in chosen.iterrows():
        own = trials[trials["contender"] == contender]
        assert len(own) == row["trials"] >= search.TRIALS[64][0]
        best = own.loc[own["score"].idxmax()]
        assert (best["shape"], best["lr"]) == (row["shape"], row["rate"])
    better = outcomes.better_part(comparison.RESULTS)
    assert better("LoRA", "large", 300, 8) == "all" and better("Poly", "large", 300, 8) in ("own", "all")


def test_new_tasks_are_learned_by_the_part_that_was_better_on_the_development_split():
    block, better = outcomes.block(budget="small"), outcomes.better_part()
    found = outcomes.new_tasks(2, "small").groupby("contender")
    assert set(found.groups) == set(SHAPES[64, "small"])
    for contender, of in found:
        of_part = block[(block["contender"] == contender) & (block["measure"] == "transfer")]
        of_part = of_part[(of_part["shots"] == 2) & (of_part["part"] == better(contender, "small", 300, 2))]
        assert sorted(of["value"]) == sorted(of_part["value"]) and len(of) == 10


def test_interval_agrees_with_the_variance_of_a_hierarchical_mean():
    generator = numpy.random.default_rng(0)
    values = {split: 5 + generator.normal() + generator.normal(size=4) for split in range(20)}
    mean, low, high = statistics.interval(values, n=5_000)
    means = numpy.array([v.mean() for v in values.values()])
    # Drawing splits gives the variance of their means, drawing seeds that of each mean.
    within = numpy.mean([v.var() / 4 for v in values.values()])
    error = math.sqrt((means.var() + within) / 20)
    assert mean == pytest.approx(means.mean())
    assert [low, high] == pytest.approx([mean - 1.96 * error, mean + 1.96 * error], abs=0.1 * error)


def test_contenders_are_compared_within_each_run_and_not_between_means():
    values = pandas.DataFrame(
        {"split": [1, 2, 3] * 3, "seed": 1, "contender": ["a"] * 3 + ["b"] * 3 + ["c"] * 3}
    )
    values["value"] = [10.0, 50.0, 90.0, 8.0, 48.0, 88.0, 90.0, 50.0, 10.0]
    found = statistics.beside(values, ["a"], ["b", "c"])
    assert found.loc[("a", "b")].tolist() == [2.0, 2.0, 2.0]  # in each run, though the runs differ
    assert found["mean"]["a", "c"] == 0 and found["low"]["a", "c"] < -50
    assert statistics.texts(found)["a", "b"] == "2.0 (2.0 to 2.0)"


def test_interval_of_accuracies_stays_between_0_and_100():
    low, high = statistics.interval({1: [99.0, 100.0], 2: [100.0], 3: [13.0]})[1:]
    assert 13 <= low < high <= 100


def test_sign_flip_counts_the_patterns_of_signs():
    assert statistics.sign_flip({split: [1.0 + split] for split in range(10)}) == pytest.approx(2 / 2**10)
    # Of the eight sums of 3, 1 and -1 with other signs, six are 3 or more in size.
    assert statistics.sign_flip({1: [3.0], 2: [1.0], 3: [-1.0]}) == pytest.approx(6 / 8)
    assert statistics.sign_flip({1: [2.0, 4.0], 2: [1.0], 3: [-1.0]}) == pytest.approx(6 / 8)  # their means


def test_the_worst_splits_of_one_contender_are_left_out_for_all():
    values = {"a": [5, 1, 3, 2], "b": [0, 9, 9, 9]}  # for the splits 1 to 4
    table = pandas.DataFrame(
        {"contender": name, "split": split, "value": value}
        for name, of in values.items()
        for split, value in enumerate(of, 1)
    )
    worst, rest = statistics.without_worst(table, "a", n=2)
    assert worst == [1, 2] and statistics.accuracies(rest)["mean"].to_dict() == {"a": 4, "b": 4.5}
    worst, rest = statistics.without_worst(table, "b")
    assert worst == [0] and set(rest["split"]) == {2, 3, 4}


def test_holm_agrees_with_his_procedure_by_hand():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]


# ------------------------------------------------------------ rules


def test_the_plan_lists_the_primary_comparisons_as_the_code_has_them():
    plan = (records.RESULTS / "comparison_plan.md").read_text()
    listed = [
        line.removeprefix("- ") for line in plan.splitlines() if " – " in line and line.startswith("- ")
    ]
    assert listed == [str(comparison) for comparison in rules.PRIMARY]
    assert len(rules.PRIMARY) * 2 / 2 ** len(rules.PAIRS) < rules.LEVEL  # the rule can be met
    for value in (*search.TRIALS[64], *search.TRIALS[256], run.FEW_STEPS, run.FEW_ROWS, run.OWN_RATE):
        assert f"{value}" in plan


def test_verdicts_follow_the_rule():
    rows = []
    for split, _ in rules.PAIRS:
        for contender in CONTENDERS:
            for budget, steps in (("large", 300), ("large", 1200)):
                cell = {"width": 64, "setting": "24 tasks", "split": split, "seed": 0}
                cell |= {"contender": contender, "budget": budget, "steps": steps}
                value = {"Poly": 90, "TensorPoly-I": 70, "MHR": 80 + (-1) ** split}.get(contender, 80)
                rows.append(cell | {"measure": "train", "value": value})
                for part, more in (("own", 0), ("all", 100 if contender == "Poly" else -50)):
                    what = {"measure": "transfer", "part": part, "shots": 8}
                    rows.append(cell | what | {"value": value + more})
    table = rules.verdicts(pandas.DataFrame(rows), lambda contender, **cell: "own")
    table = table.set_index("comparison")["verdict"]
    of = {str(c): c for c in rules.PRIMARY}
    for comparison_text, verdict in table.items():
        c = of[comparison_text]
        wanted = {"Poly": "supported", "TensorPoly-I": "contradicted"}.get(c.a, "undecided")
        assert verdict == ("incomplete" if c.budget == "small" else wanted), comparison_text
