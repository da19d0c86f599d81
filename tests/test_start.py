"""Where an adapter starts, and what trains."""

import pytest
import torch

import minitensorpoly as mtp
from common import METHODS, ROUTED, TENSOR, adapted_t5, make_batch, make_config, make_t5, randomize

VARIANTS = [(m, {}) for m in METHODS if m not in TENSOR] + [
    (m, {"order": n, "normalize": normalize})
    for m in TENSOR
    for n in range(1, 9)
    for normalize in (False, True)
]


@pytest.mark.parametrize("method, options", VARIANTS, ids=str)
def test_adapted_model_equals_base_at_start_bit_for_bit(method, options):
    batch = make_batch()
    ids = batch.pop("task_ids")
    base = make_t5()(**batch).logits
    adapted = mtp.adapt(make_t5(), make_config(method, **options))(**batch, task_ids=ids).logits
    assert torch.equal(adapted, base)


@pytest.mark.parametrize("method, options", VARIANTS, ids=str)
def test_every_adapter_parameter_gets_a_gradient_within_two_steps(method, options):
    model = mtp.adapt(make_t5(), make_config(method, **options))
    base = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.Adam(mtp.parameter_groups(model, lr=0.01))
    batch = make_batch(rows=16)
    assert set(batch["task_ids"].tolist()) == set(range(5))
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    for name, parameter in mtp.adapter_parameters(model).items():
        axes = tuple(range(1, parameter.dim()))
        assert parameter.grad.abs().amax(axes).min() > 0, name  # every matrix, order and task
    for name, parameter in model.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name]) and parameter.grad is None


@pytest.mark.parametrize("method", METHODS)
def test_parameter_groups_hold_every_trainable_parameter_once(method):
    model = mtp.adapt(make_t5(), make_config(method))
    model.lm_head.weight.requires_grad_(True)  # a head of the user's own
    groups = mtp.parameter_groups(model, lr=0.1, router_lr=0.2)
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert rates[id(parameter)] == (0.2 if name.endswith("router.logits") else 0.1)
    assert len(groups) == (2 if method in ROUTED else 1)
    assert {g["lr"] for g in mtp.parameter_groups(model, lr=0.1)} == {0.1}


@pytest.mark.parametrize("method", METHODS)
def test_train_only_trains_that_part_alone(method):
    model = adapted_t5(method)
    mtp.train_only(model, "all")
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == set(mtp.adapter_parameters(model))
    if method in ROUTED:
        mtp.train_only(model, "routing")
        trainable = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trainable == {name for name in mtp.adapter_parameters(model) if name.endswith("logits")}


@pytest.mark.parametrize("method", ROUTED)
def test_routing_weights_of_every_layer_sum_to_one(method):
    model = adapted_t5(method)
    weights = mtp.routing_weights(model)
    assert set(weights) == set(mtp.adapted_layers(model))
    for name, w in weights.items():
        assert (
            w.shape
            == mtp.adapted_layers(model)[name].router.logits.shape
            == model.adaptation.config.routing_shape
        )
        torch.testing.assert_close(w.sum(-1), torch.ones(w.shape[:-1]))


@pytest.mark.parametrize("method", METHODS)
def test_dropout_acts_on_the_adapters_input_in_training_only(method):
    batch = make_batch()
    plain, model = adapted_t5(method), adapted_t5(method, dropout=0.5)
    expected = plain(**batch).logits
    assert torch.equal(model(**batch).logits, expected)
    model.train()
    assert not torch.allclose(model(**batch).logits, expected)
    randomize(model, std=0.0)  # an update of zero: whatever dropout does, the base's own path is untouched
    del batch["task_ids"]
    base = make_t5()(**batch).logits
    assert torch.equal(model(**batch, task_ids=torch.zeros(4, dtype=torch.long)).logits, base)


@pytest.mark.parametrize("method", ROUTED)
@pytest.mark.parametrize(
    "optimizer", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.SGD, torch.optim.RMSprop]
)
def test_a_new_tasks_training_moves_no_known_task_whatever_the_weight_decay(method, optimizer):
    model = randomize(mtp.adapt(make_t5(), make_config(method))).eval()
    batch, known = make_batch(rows=2), [0, 1]
    with torch.no_grad():
        before = model(**batch | {"task_ids": known}).logits
    (new,) = mtp.add_tasks(model, 1)
    mtp.train_only(model, "routing")
    with torch.no_grad():
        start = model(**batch | {"task_ids": new}).logits
    optimizer = optimizer(mtp.parameter_groups(model, lr=0.1, router_lr=0.3), weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch | {"task_ids": new}).loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert torch.equal(model(**batch | {"task_ids": known}).logits, before)
        assert not torch.equal(model(**batch | {"task_ids": new}).logits, start)
