"""Factors are kept while `generate` runs and no longer; their derivatives are right."""

import copy

import pytest
import torch
from torch import nn
from transformers import LogitsProcessor, LogitsProcessorList

import minitensorpoly as mtp
from common import METHODS, ROUTED, adapted_linear, adapted_t5, make_batch, make_config, randomize
from minitensorpoly.factors import MatrixFactor, TensorFactor
from minitensorpoly.routing import Router

WRITING = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


@pytest.fixture
def built(monkeypatch):
    """The shape of the task ids of every mixture that is made."""
    counts, forward = [], Router.forward

    def counted(self, task_ids):
        counts.append(task_ids.shape)
        return forward(self, task_ids)

    monkeypatch.setattr(Router, "forward", counted)
    return counts


@pytest.fixture
def factors(monkeypatch):
    """Every factor that is built."""
    made = []
    for kind in (MatrixFactor, TensorFactor):
        forward = kind.forward
        monkeypatch.setattr(kind, "forward", lambda self, *a, f=forward: made.append(self) or f(self, *a))
    return made


def inputs(ids=(3, 0, 3, 1)):
    batch = make_batch(rows=4) | {"task_ids": torch.tensor(ids)}
    del batch["labels"]
    return batch


def written_by_merged_models(model, batch):
    texts = []
    for row, task in enumerate(batch["task_ids"].tolist()):
        merged = mtp.merge(copy.deepcopy(model), task=task)
        one = {name: batch[name][row : row + 1] for name in ("input_ids", "attention_mask")}
        texts.append(merged.generate(**one, **WRITING))
    return torch.cat(texts)


@pytest.mark.parametrize("method", METHODS)
def test_generate_builds_each_factor_once(method, factors):
    model = adapted_t5(method)
    model.generate(**inputs(), **WRITING)
    layers = mtp.adapted_layers(model).values()
    assert sorted(map(id, factors)) == sorted(id(factor) for layer in layers for factor in (layer.A, layer.B))


@pytest.mark.parametrize("method", METHODS)
def test_generate_in_training_mode_builds_anew_for_each_token(method, factors):
    model = adapted_t5(method).train()
    model.generate(**inputs(), **WRITING)
    assert len(factors) > 2 * 2 * len(mtp.adapted_layers(model))


def step_of_an_optimizer(model):
    optimizer = torch.optim.SGD(mtp.parameter_groups(model, lr=3.0))
    model(**make_batch(rows=4)).loss.backward()
    optimizer.step()


def step_in_place_of_the_numbers(model):
    for parameter in mtp.adapter_parameters(model).values():
        parameter.data.mul_(-1.5)


def other_state(model):
    model.load_state_dict(randomize(copy.deepcopy(model), seed=7, std=1.0).state_dict())


def new_task(model):
    mtp.add_tasks(model, 2)
    with torch.no_grad():
        for name, parameter in mtp.adapter_parameters(model).items():
            if name.endswith("logits"):
                parameter[-2:] = torch.tensor([4.0, -4.0]).view(2, 1, 1) * torch.randn_like(parameter[-2:])


def other_dtype(model):
    model.double()


CHANGES = [step_of_an_optimizer, step_in_place_of_the_numbers, other_state, new_task, other_dtype]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", ROUTED)
def test_nothing_of_a_generate_is_left_for_the_next(method, change):
    model, batch = randomize(adapted_t5(method), std=1.0), inputs()
    before = model.generate(**batch, **WRITING)
    change(model)
    batch["task_ids"] = torch.tensor((5, 6, 0, 6) if change is new_task else (3, 0, 3, 1))
    after = model.generate(**batch, **WRITING)
    assert torch.equal(after, written_by_merged_models(model, batch))
    if change is not other_dtype:
        assert not torch.equal(after, before)


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_model_keeps_nothing(method):
    model, batch = randomize(adapted_t5(method), std=1.0), inputs((2, 2, 2, 2))
    before = model.generate(**batch, **WRITING)
    del batch["task_ids"]
    assert torch.equal(mtp.merge(model, task=2).generate(**batch, **WRITING), before)


class AsksAnotherTask(LogitsProcessor):
    """Within a generation, scores of the same model for other tasks."""

    def __init__(self, model):
        self.model, self.seen = model, []

    def __call__(self, input_ids, scores):
        batch = make_batch(rows=4) | {"task_ids": torch.tensor([1, 1, 4, 0])}
        self.seen.append(self.model(**batch).logits)
        return scores


@pytest.mark.parametrize("method", ROUTED)
def test_a_call_within_a_generation_has_its_own_tasks(method):
    model, batch = randomize(adapted_t5(method), std=1.0), inputs()
    expected = model(**make_batch(rows=4) | {"task_ids": torch.tensor([1, 1, 4, 0])}).logits
    other = AsksAnotherTask(model)
    text = model.generate(**batch, **WRITING, logits_processor=LogitsProcessorList([other]))
    assert torch.equal(text, model.generate(**batch, **WRITING))
    assert len(other.seen) == 6
    for logits in other.seen:
        torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("ids, shape", [([2, 2, 2, 2], ()), ([3, 0, 3, 1], (4,)), (2, ())])
def test_one_task_for_all_rows_is_mixed_once(ids, shape, built):
    adapted_linear("poly")(torch.randn(4, 6, 12, dtype=torch.float64), task_ids=ids)
    assert built == [shape]


def test_ids_on_a_device_are_not_looked_at():
    model = adapted_linear("poly").to("meta")  # where a look would fail
    ids = torch.zeros(3, dtype=torch.long, device="meta")
    assert model(torch.empty(3, 12, dtype=torch.float64, device="meta"), task_ids=ids).shape == (3, 20)


@pytest.mark.parametrize("ids", [(1, 1, 1), (2, 0, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_first_and_second_derivatives_are_those_of_finite_differences(method, ids):
    torch.manual_seed(0)
    model = randomize(adapted_linear(method, alpha=3.0))
    parameters = mtp.adapter_parameters(model)
    x = torch.randn(3, 2, 12, dtype=torch.float64, requires_grad=True)

    def function(x, *values):
        arguments = (x,), {"task_ids": torch.tensor(ids)}
        return torch.func.functional_call(model, dict(zip(parameters, values, strict=True)), *arguments)

    values = [parameter.detach().clone().requires_grad_() for parameter in parameters.values()]
    assert torch.autograd.gradcheck(function, (x, *values), atol=1e-6)
    assert torch.autograd.gradgradcheck(function, (x, *values), atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("trained", ["routing", "A", "B", "the input alone"])
@pytest.mark.parametrize("method", ROUTED)
def test_only_what_is_trained_gets_a_gradient(method, trained):
    model = randomize(adapted_linear(method))
    x, ids = torch.randn(3, 12, dtype=torch.float64), torch.tensor([0, 2, 2])
    parameters = mtp.adapter_parameters(model)

    def gradients(names, x):
        return torch.autograd.grad(model(x, task_ids=ids).square().sum(), [parameters[n] for n in names])

    expected = dict(zip(parameters, gradients(parameters, x), strict=True))
    wanted = {"routing": "logits", "A": ".A.", "B": ".B.", "the input alone": "none"}[trained]
    for name, parameter in parameters.items():
        parameter.requires_grad_(wanted in name)
    x.requires_grad_()
    model(x, task_ids=ids).square().sum().backward()
    assert x.grad.abs().min() > 0
    for name, parameter in parameters.items():
        assert (parameter.grad is not None) == (wanted in name)
        if wanted in name:
            torch.testing.assert_close(parameter.grad, expected[name])


@pytest.mark.parametrize("method", METHODS)
def test_output_may_be_changed_in_place(method):
    model, x, ids = adapted_linear(method), torch.randn(3, 12, dtype=torch.float64), torch.tensor([0, 2, 2])
    outputs = model(x, task_ids=ids).relu(), model(x, task_ids=ids).relu_()
    parameters = list(mtp.adapter_parameters(model).values())
    expected, found = (torch.autograd.grad(output.square().sum(), parameters) for output in outputs)
    torch.testing.assert_close(found, expected)


class KeepsItsDtype(nn.Linear):
    """Answers in the dtype of its input under autocast as well, as some quantised layers do."""

    def forward(self, x):
        return super().forward(x).to(x.dtype)


@pytest.mark.parametrize("method", METHODS)
def test_base_layer_may_answer_in_float32_under_autocast(method):
    model = randomize(mtp.adapt(nn.Sequential(KeepsItsDtype(12, 20)), make_config(method, "0")))
    x, ids = torch.randn(3, 5, 12), torch.tensor([0, 2, 2])
    parameters = list(mtp.adapter_parameters(model).values())
    expected = torch.autograd.grad(model(x, task_ids=ids).square().mean(), parameters)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x, task_ids=ids).square().mean()
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        assert (ours - theirs).norm() <= 0.05 * theirs.norm()


@pytest.mark.parametrize("method", METHODS)
def test_transforms_of_torch_func_give_the_same_gradients(method):
    model, x, ids = adapted_linear(method), torch.randn(3, 12, dtype=torch.float64), torch.tensor([0, 2, 2])
    parameters = mtp.adapter_parameters(model)

    def loss(values):
        return torch.func.functional_call(model, values, (x,), {"task_ids": ids}).square().sum()

    gradients = torch.func.grad(loss)({name: p.detach() for name, p in parameters.items()})
    loss(parameters).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(gradients[name], parameter.grad)


class Asks(LogitsProcessor):
    """Does something after each token of a generation."""

    def __init__(self, action):
        self.action = action

    def __call__(self, input_ids, scores):
        self.action()
        return scores


def generate_and(model, action):
    return model.generate(**inputs(), **WRITING, logits_processor=LogitsProcessorList([Asks(action)]))


@pytest.mark.parametrize("method", METHODS)
def test_what_happens_within_a_generation_does_not_change_it(method):
    model = randomize(adapted_t5(method), std=1.0)
    expected, other = model.generate(**inputs(), **WRITING), inputs((4, 1, 1, 0))
    written = []

    def learn():
        with torch.enable_grad():
            model(**make_batch(rows=4)).loss.backward()

    assert torch.equal(
        generate_and(model, lambda: written.append(model.generate(**other, **WRITING))), expected
    )
    assert torch.equal(written[-1], model.generate(**other, **WRITING)) and len(written) == 6
    assert torch.equal(generate_and(model, learn), expected)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_of_a_generation_that_fails(method):
    model = randomize(adapted_t5(method), std=1.0)

    def fail():
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        generate_and(model, fail)
    assert model.adaptation.call == mtp.routing.Call()


def test_layer_with_rows_that_do_not_follow_the_batch_is_refused_in_a_generation_too():
    model = adapted_linear("poly").eval()
    with torch.no_grad(), model.adaptation.calling([0, 1, 2, 3], kept={}):
        model[0](torch.randn(4, 1, 12, dtype=torch.float64))
        with pytest.raises(ValueError, match=r"task_ids has 4 entries, but layer '0' sees .*\(6, 2, 12\)"):
            model[0](torch.randn(6, 2, 12, dtype=torch.float64))


def test_kept_factors_are_those_of_the_dtype():
    model = adapted_linear("poly", dtype=torch.float32).eval()
    with torch.no_grad(), model.adaptation.calling([0, 1], kept={}):
        for dtype in (torch.float32, torch.bfloat16):
            model[0].base.to(dtype)
            assert model[0](torch.randn(2, 12, dtype=dtype)).dtype == dtype
