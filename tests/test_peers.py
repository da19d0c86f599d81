"""The baselines against PEFT's, with the same parameters."""

import peft
import pytest
import torch
from peft.tuners.poly.router import PolyRouter

import minitensorpoly as mtp
from common import T5_LAYERS, adapted_t5, make_batch, make_config, make_t5, randomize
from lab import methods


def copy_poly(model, other):
    """Copies the parameters of an adapted model into PEFT's Poly."""
    for name, layer in mtp.adapted_layers(model).items():
        theirs = other.get_submodule(f"base_model.model.{name}")
        heads = layer.A.n_splits
        with torch.no_grad():
            for value, target in ((layer.A.matrices, "poly_lora_A"), (layer.B.matrices, "poly_lora_B")):
                # PEFT's A has the axes (heads, skills, dim/heads, rank), its B the last two swapped.
                blocks = value.unflatten(-1, (heads, -1)).permute(2, 0, 3, 1)
                blocks = blocks if target == "poly_lora_A" else blocks.mT
                getattr(theirs, target)["default"].copy_(blocks)
            logits = layer.router.logits.flatten(1)  # (tasks, heads * skills)
            theirs.poly_router["default"].module_logits.copy_(logits)


def without_noise(other):
    """Keeps PEFT's routers in evaluation: in training they draw noise, whatever the configuration."""
    for module in other.modules():
        if isinstance(module, PolyRouter):
            module.eval()


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("method, heads", [("poly", 1), ("mhr", 4)])
def test_poly_and_mhr_equal_pefts_poly(method, heads, training):
    model = adapted_t5(method, alpha=1.0).train(training)
    config = peft.PolyConfig(r=4, n_tasks=5, n_skills=3, n_splits=heads, target_modules=T5_LAYERS)
    other = peft.get_peft_model(make_t5(), config).train(training)
    without_noise(other)
    copy_poly(model, other)
    batch = make_batch()
    ours, theirs = model(**batch), other.base_model(**batch)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
    ours.loss.backward()
    theirs.loss.backward()
    for name, layer in mtp.adapted_layers(model).items():
        their_layer = other.get_submodule(f"base_model.model.{name}")
        pairs = [
            (layer.router.logits, their_layer.poly_router["default"].module_logits.grad),
            (layer.A.matrices, their_layer.poly_lora_A["default"].grad.permute(1, 3, 0, 2)),
            (layer.B.matrices, their_layer.poly_lora_B["default"].grad.permute(1, 2, 0, 3)),
        ]
        for parameter, expected in pairs:
            gradient = expected.reshape(parameter.shape)
            assert gradient.abs().max() > 0
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_lora_equals_pefts_lora(training):
    model = adapted_t5("lora", alpha=8.0).train(training)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=T5_LAYERS)
    other = peft.get_peft_model(make_t5(), config).train(training)
    for name, layer in mtp.adapted_layers(model).items():
        theirs = other.get_submodule(f"base_model.model.{name}")
        with torch.no_grad():
            theirs.lora_A["default"].weight.copy_(layer.A.matrices[0])
            theirs.lora_B["default"].weight.copy_(layer.B.matrices[0].T)
    batch = make_batch()
    ours = model(**batch)
    del batch["task_ids"]
    theirs = other(**batch)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
    ours.loss.backward()
    theirs.loss.backward()
    for name, layer in mtp.adapted_layers(model).items():
        theirs = other.get_submodule(f"base_model.model.{name}")
        for ours, expected in (
            (layer.A.matrices.grad[0], theirs.lora_A["default"].weight.grad),
            (layer.B.matrices.grad[0].T, theirs.lora_B["default"].weight.grad),
        ):
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_noise_draws_from_the_relaxed_bernoulli_distribution(temperature):
    model = methods.add_noise(randomize(mtp.adapt(make_t5(), make_config("poly")), std=1.0), temperature)
    router = next(iter(mtp.adapted_layers(model).values())).router.train()
    torch.manual_seed(0)
    ids = torch.zeros(20_000, dtype=torch.long)
    ours = router(ids)
    logits = router.logits[0].detach().expand(len(ids), -1, -1)
    samples = torch.distributions.RelaxedBernoulli(torch.tensor(temperature), logits=logits).sample()
    theirs = samples / samples.sum(-1, keepdim=True)
    quantiles = torch.linspace(0.1, 0.9, 9)
    assert (ours.detach().quantile(quantiles, 0) - theirs.quantile(quantiles, 0)).abs().max() < 0.02
    ours, theirs = (torch.corrcoef(w[:, 0].detach().T) for w in (ours, theirs))
    assert (ours - theirs).abs().max() < 0.03  # each expert draws on its own
    assert torch.equal(router.eval()(ids[:2]), router.weights[[0, 0]])  # none in evaluation


@pytest.mark.parametrize("method, heads", [("poly", 1), ("mhr", 4)])
def test_noise_at_temperature_1_is_distributed_as_pefts(method, heads):
    model = methods.add_noise(adapted_t5(method), 1.0)
    config = peft.PolyConfig(r=4, n_tasks=5, n_skills=3, n_splits=heads, target_modules=T5_LAYERS)
    other = peft.get_peft_model(make_t5(), config)
    copy_poly(model, other)
    name, layer = next(iter(mtp.adapted_layers(model).items()))
    their_router = other.get_submodule(f"base_model.model.{name}").poly_router["default"].train()
    torch.manual_seed(0)
    for task in (0, 4):
        ids = torch.full((10_000,), task)
        with torch.no_grad():
            ours, theirs = layer.router.train()(ids), their_router(ids, input_ids=None)
        quantiles = torch.linspace(0.1, 0.9, 9)
        difference = ours.quantile(quantiles, 0) - theirs.view_as(ours).quantile(quantiles, 0)
        assert difference.abs().max() < 0.03
        assert ours.std(0).min() > 0.1  # a fresh sample for each row
