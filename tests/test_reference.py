"""Outputs and gradients recorded from the authors' own layers, in float64."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import minitensorpoly as mtp

CASES = json.loads((Path(__file__).parent / "reference_cases.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_layer_equals_the_authors_layer(case):
    recorded = {name: torch.tensor(v, dtype=torch.float64) for name, v in case.items() if isinstance(v, list)}
    method = case["method"].replace("_", "-")
    options = {
        "poly": {"n_skills": case["tensor_rank"]},
        "mhr": {"n_skills": case["tensor_rank"], "n_heads": case["n_heads"]},
    }.get(method, {k: case[k] for k in ("order", "tensor_rank")} | {"normalize": case["layer_norm"]})
    config = mtp.AdapterConfig(method, "0", n_tasks=case["n_tasks"], rank=case["rank"], alpha=1, **options)
    model = nn.Sequential(nn.Linear(case["in_features"], case["out_features"], dtype=torch.float64))
    layer = mtp.adapt(model, config)[0]

    # The authors' A has the axes (heads, skills, in/heads, rank), their B (heads, skills, rank, out/heads).
    axes = {"A": (1, 3, 0, 2), "B": (1, 2, 0, 3)}

    def as_ours(name):
        value = recorded[name]
        return value if "leaves" in name else value.permute(axes[name[-1]]).flatten(2)

    parameters = {"logits": layer.router.logits}
    for side in "AB":
        factor = getattr(layer, side)
        name = f"leaves_{side}" if f"leaves_{side}" in recorded else side
        parameters[name] = factor.leaves if "leaves" in name else factor.matrices
    with torch.no_grad():
        layer.base.weight.copy_(recorded["weight"])
        layer.base.bias.copy_(recorded["bias"])
        for name, parameter in parameters.items():
            parameter.copy_(recorded[name] if name == "logits" else as_ours(name))

    y = model(recorded["x"], task_ids=recorded["task_ids"].long())
    y.pow(2).sum().backward()
    torch.testing.assert_close(y, recorded["y"], rtol=0, atol=1e-10)
    for name, parameter in parameters.items():
        expected = recorded["grad_logits"] if name == "logits" else as_ours(f"grad_{name}")
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-10)
