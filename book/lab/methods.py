"""The adapters that are compared, by the names that tables and figures use."""

import copy
import math

import torch

import minitensorpoly as mtp

TARGET_MODULES = r".*\.(q|k|v|o|wi|wo)"  # all 32 linear layers of the backbone

# At width 64 a matrix of 64 rows and rank 8 has as many parameters as 8 matrices of rank 1, and as
# tensor rank 8 and rank 4 at order 2: these adapters are of equal size there.
EQUAL_SIZE = {
    "LoRA": {"method": "lora", "rank": 8},
    "TLoRA": {"method": "tlora", "rank": 4, "tensor_rank": 8, "order": 2},
    "Poly": {"method": "poly", "rank": 1, "n_skills": 8},
    "MHR": {"method": "mhr", "rank": 1, "n_skills": 8, "n_heads": 8},
    "TensorPoly-I": {"method": "tensorpoly-1", "rank": 4, "tensor_rank": 8, "order": 2},
    "TensorPoly-II": {"method": "tensorpoly-2", "rank": 4, "tensor_rank": 8, "order": 2},
}
PRIVATE = "private LoRA"
# A LoRA of rank 1 for each task: Poly with one skill per task, and routing that is fixed, not learned.
ADAPTERS = EQUAL_SIZE | {PRIVATE: {"method": "poly", "rank": 1}}


def adapt(model, name: str, n_tasks: int, **changes):
    """Adapts a backbone, in place, by one of the named adapters.

    Args:
        model: the backbone.
        name: a key of `ADAPTERS`.
        n_tasks: number of training tasks.
        changes: options of `AdapterConfig` that replace or complete those of the adapter.

    Returns:
        The same model.
    """
    options = {"target_modules": TARGET_MODULES} | ADAPTERS[name] | changes
    if name == PRIVATE:
        options["n_skills"] = n_tasks
    mtp.adapt(model, mtp.AdapterConfig(n_tasks=n_tasks, **options))
    if name == PRIVATE:
        _make_private(model, n_tasks)
    return model


@torch.no_grad()
def _make_private(model, n_tasks):
    for layer in mtp.adapted_layers(model).values():
        own = torch.eye(n_tasks, dtype=torch.bool)[:, None]  # (tasks, 1, skills)
        layer.router.logits.copy_(torch.where(own, math.inf, -math.inf))  # weights of exactly 1 and 0
        layer.router.logits.requires_grad_(False)
        layer.A.fill_(variance=n_tasks / (3 * layer.in_features), weight=1.0)  # each skill alone as a LoRA


class NoisyRouter(mtp.routing.Router):
    """In training, weights from relaxed-Bernoulli samples in place of sigmoids (Ponti et al. 2023).

    A sample is a sigmoid of the logits plus logistic noise, over the temperature: a fresh one for each row
    of a batch of several tasks.
    """

    def forward(self, task_ids):
        if not self.training:
            return super().forward(task_ids)
        logits = self.logits[task_ids]
        uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        return mtp.routing.normalized_sigmoid((logits + torch.logit(uniform)) / self.temperature)


def add_noise(model, temperature: float):
    """Makes the routing of an adapted model noisy in training; returns the same model."""
    for layer in mtp.adapted_layers(model).values():
        layer.router.__class__, layer.router.temperature = NoisyRouter, temperature
    return model


def count_parameters(model) -> dict[str, int]:
    """Trainable parameters of an adapted model: {"factors": ..., "routing": ...}."""
    counts = {"factors": 0, "routing": 0}
    for name, parameter in mtp.adapter_parameters(model).items():
        if parameter.requires_grad:
            counts["routing" if name.endswith("router.logits") else "factors"] += parameter.numel()
    return counts


def equal_rank(model, name: str, budget: int, target_modules: str = TARGET_MODULES, **changes) -> int:
    """The rank at which an adapter has about as many factors as a LoRA of a given rank.

    Args:
        model: the model that would be adapted; it stays as it is.
        name: a key of `EQUAL_SIZE`.
        budget: rank of that LoRA.
        target_modules: which layers are adapted, by both.
        changes: other options of the adapter, the number of skills for instance.

    Returns:
        The nearest rank, 1 at least: the number of factors is proportional to the rank.
    """
    where = {"target_modules": target_modules}
    empty = copy.deepcopy(model).to("meta")  # shapes without numbers
    lora = count_parameters(adapt(copy.deepcopy(empty), "LoRA", 1, **where, rank=budget))["factors"]
    one = count_parameters(adapt(empty, name, 1, **where, **changes, rank=1))["factors"]
    return max(1, round(lora / one))
