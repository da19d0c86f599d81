"""The baselines against PEFT's, with the same parameters."""

import peft
import pytest
import torch
from common import T5_LAYERS, adapted_t5, make_batch, make_config, make_t5, randomize

import minitensorpoly as mtp


def copy_poly(model, other):
    """Copies the parameters of an adapted model into PEFT's Poly."""
    for name, layer in mtp.adapted_layers(model).items():
        theirs = other.get_submodule(f"base_model.model.{name}")
        heads = layer.A.n_splits
        with torch.no_grad():
            for value, target in ((layer.A.matrices, "poly_lora_A"), (layer.B.matrices, "poly_lora_B")):
                blocks = value.unflatten(-1, (heads, -1)).permute(
                    2, 0, 3, 1
                )  # (heads, skills, dim/heads, rank)
                blocks = blocks if target == "poly_lora_A" else blocks.mT
                getattr(theirs, target)["default"].copy_(blocks)
            logits = layer.router.logits.flatten(1)  # (tasks, heads * skills)
            theirs.poly_router["default"].module_logits.copy_(logits)


@pytest.mark.parametrize("method, heads", [("poly", 1), ("mhr", 4)])
def test_poly_and_mhr_equal_pefts_poly(method, heads):
    model = adapted_t5(method, alpha=1.0)
    config = peft.PolyConfig(r=4, n_tasks=5, n_skills=3, n_splits=heads, target_modules=T5_LAYERS)
    other = peft.get_peft_model(make_t5(), config).eval()
    copy_poly(model, other)
    batch = make_batch()
    ours, theirs = model(**batch), other.base_model(**batch)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
    ours.loss.backward()
    theirs.loss.backward()
    for name, layer in mtp.adapted_layers(model).items():
        router = other.get_submodule(f"base_model.model.{name}").poly_router["default"]
        gradient = router.module_logits.grad.view_as(layer.router.logits)
        torch.testing.assert_close(layer.router.logits.grad, gradient, rtol=1e-3, atol=1e-6)


def test_lora_equals_pefts_lora():
    model = adapted_t5("lora", alpha=8.0)
    other = peft.get_peft_model(
        make_t5(), peft.LoraConfig(r=4, lora_alpha=8, target_modules=T5_LAYERS)
    ).eval()
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
        gradient = other.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.grad
        torch.testing.assert_close(layer.A.matrices.grad[0], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_noise_draws_from_the_relaxed_bernoulli_distribution(temperature):
    model = randomize(mtp.adapt(make_t5(), make_config("poly", noise_temperature=temperature)), std=1.0)
    router = next(iter(mtp.adapted_layers(model).values())).router.train()
    torch.manual_seed(0)
    ids = torch.zeros(20_000, dtype=torch.long)
    ours = router(ids)
    logits = router.logits[0].detach().expand(len(ids), -1, -1)
    samples = torch.distributions.RelaxedBernoulli(torch.tensor(temperature), logits=logits).sample()
    theirs = samples / samples.sum(-1, keepdim=True)
    quantiles = torch.linspace(0.1, 0.9, 9)
    assert (ours.detach().quantile(quantiles, 0) - theirs.quantile(quantiles, 0)).abs().max() < 0.02
    assert torch.equal(router.eval()(ids[:2]), router.weights[[0, 0]])  # none in evaluation
