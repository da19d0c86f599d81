"""The library alone: nothing but torch, safetensors and pytest has to be installed for these tests.

So they run where the book does not: on the lowest versions that pyproject.toml allows, and on every Python.
"""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

import minitensorpoly as mtp

METHODS = tuple(mtp.METHODS)
N_TASKS = 3

each_method = pytest.mark.parametrize("method", METHODS)


class Model(nn.Module):
    """Two linear layers, which may be computed once more in the backward pass."""

    def __init__(self, checkpointed=False):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer, self.checkpointed = nn.Linear(16, 24), nn.Linear(24, 16), checkpointed

    def forward(self, x):
        if self.checkpointed:
            hidden = checkpoint(self.inner, x, use_reentrant=False)
            return checkpoint(self.outer, hidden.tanh(), use_reentrant=False)
        return self.outer(self.inner(x).tanh())


def make_config(method):
    sizes = {"tensor_rank": 3, "n_skills": 3, "n_heads": 4}
    options = {name: size for name, size in sizes.items() if name in mtp.METHODS[method].options}
    return mtp.AdapterConfig(method, "inner|outer", n_tasks=N_TASKS, rank=4, **options)


def make_batch(rows=12):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 5, 16, generator=generator), torch.arange(rows) % N_TASKS


def train(model, steps=5):
    """Teaches each task to answer with a constant of its own; returns the losses."""
    x, ids = make_batch()
    optimizer, losses = torch.optim.Adam(mtp.parameter_groups(model, lr=0.03, router_lr=0.1)), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x, task_ids=ids) - ids[:, None, None]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def trained(method):
    model = mtp.adapt(Model(), make_config(method))
    train(model)
    return model


@each_method
def test_adapted_model_equals_base_at_start_bit_for_bit(method):
    x, ids = make_batch()
    assert torch.equal(mtp.adapt(Model(), make_config(method))(x, task_ids=ids), Model()(x))


@each_method
def test_training_lowers_the_loss_and_leaves_the_base_as_it_was(method):
    model = mtp.adapt(Model(), make_config(method))
    before = copy.deepcopy(mtp.adapter_parameters(model))
    losses = train(model)
    assert losses[-1] < losses[0]
    assert all(not torch.equal(p, before[name]) for name, p in mtp.adapter_parameters(model).items())
    assert torch.equal(model.inner.base.weight, Model().inner.weight)


@each_method
def test_gradients_are_the_same_with_checkpoints(method):
    gradients = []
    for checkpointed in (False, True):
        model = trained(method)
        model.zero_grad()
        model.checkpointed = checkpointed
        x, ids = make_batch()
        model(x.requires_grad_(), task_ids=ids).square().sum().backward()
        gradients.append({name: p.grad for name, p in mtp.adapter_parameters(model).items()})
    torch.testing.assert_close(gradients[0], gradients[1])


@each_method
def test_a_saved_adapter_is_loaded_into_a_fresh_base(method, tmp_path):
    model, (x, ids) = trained(method), make_batch()
    mtp.save(model, tmp_path / "adapter")
    assert torch.equal(mtp.load(Model(), tmp_path / "adapter")(x, task_ids=ids), model(x, task_ids=ids))


@each_method
def test_a_new_task_leaves_the_known_ones_as_they_were(method):
    model, (x, ids) = trained(method), make_batch()
    before = model(x, task_ids=ids)
    mtp.add_tasks(model, 1)
    torch.testing.assert_close(model(x, task_ids=ids), before)
    assert model(x, task_ids=torch.full_like(ids, N_TASKS)).isfinite().all()


@each_method
def test_a_merged_task_is_a_plain_model_that_computes_the_same(method):
    model, (x, _) = trained(method), make_batch()
    before = model(x, task_ids=torch.full((len(x),), 1))
    assert not torch.allclose(before, Model()(x), atol=1e-3)
    mtp.merge(model, task=1)
    assert type(model) is Model and type(model.inner) is nn.Linear
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-5)


@each_method
def test_an_exported_task_is_a_lora_of_the_same_update(method, tmp_path):
    model = trained(method)
    mtp.export_lora(model, task=2, folder=tmp_path / "lora")
    factors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    mtp.merge(model, task=2)
    for name in ("inner", "outer"):
        A, B = (factors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        update = getattr(model, name).weight - getattr(Model(), name).weight
        torch.testing.assert_close(B @ A, update, atol=1e-6, rtol=1e-4)
