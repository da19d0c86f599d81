"""What the tests share: the methods, small adapters of each, and tiny models of real classes."""

import torch
from torch import nn
from transformers import T5Config
from transformers import T5ForConditionalGeneration as T5

import minitensorpoly as mtp

METHODS = tuple(mtp.METHODS)
ROUTED = tuple(name for name, method in mtp.METHODS.items() if method.routed)
TENSOR = tuple(name for name, method in mtp.METHODS.items() if "order" in method.options)
T5_LAYERS = r".*\.(q|k|v|o|wi|wo)"
N_TASKS = 5


def make_config(method, target_modules=T5_LAYERS, n_tasks=N_TASKS, rank=4, **options):
    """A small adapter; the options that the method does not have are left out."""
    small = {"tensor_rank": 3, "n_skills": 3, "n_heads": 4} | options
    kept = {
        k: v
        for k, v in small.items()
        if k not in ("tensor_rank", "n_skills", "n_heads", "order", "normalize")
        or k in mtp.METHODS[method].options
    }
    return mtp.AdapterConfig(method, target_modules, n_tasks=n_tasks, rank=rank, **kept)


def make_t5(seed=0, **changes):
    """A random T5 of 32 features without dropout, frozen, in evaluation mode."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    config = T5Config(**sizes | {"dropout_rate": 0.0, "decoder_start_token_id": 0} | changes)
    return T5(config).requires_grad_(False).eval()


def make_batch(rows=4, seed=0):
    """input_ids, attention_mask and labels for `make_t5`, and a task id for each row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 64, (rows, 7), generator=generator)
    labels = torch.randint(2, 64, (rows, 5), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "task_ids": torch.randint(N_TASKS, (rows,), generator=generator),
    }


@torch.no_grad()
def randomize(model, seed=1, std=0.3):
    """Draws every adapter parameter at random, as if trained: at the start the update is zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in mtp.adapter_parameters(model).values():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model


def adapted_t5(method, seed=0, **options):
    """A tiny T5 with a random adapter, its base not equal to what the adapter makes of it."""
    return randomize(mtp.adapt(make_t5(seed), make_config(method, **options)))


def adapted_linear(method, in_features=12, out_features=20, dtype=torch.float64, **options):
    """A model of one linear layer, adapted at random."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(in_features, out_features, dtype=dtype))
    return randomize(mtp.adapt(model, make_config(method, target_modules="0", **options)))


def enable_checkpointing(model, use_reentrant):
    """The layers' activations are computed once more in the backward pass."""
    options = {"use_reentrant": use_reentrant}
    if hasattr(model, "activation_checkpointing_enable"):  # older versions of transformers have another name
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)
