"""Plans: parameters and memory of models that are too large to load, computed from their configurations.

The models are built on PyTorch's meta device, where a tensor has a shape and no numbers. What is counted is
exact: the parameters of the real modules, after the real `minitensorpoly.adapt`.
"""

import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

import minitensorpoly as mtp

from .. import methods
from .choosers import linear_layers

# Sizes of T5 version 1.1, on which T0 is built (Sanh et al. 2022): what differs between its models.
T5_SIZES = {
    "T0-3B": {"d_model": 2048, "d_ff": 5120, "num_heads": 32},
    "T0-11B": {"d_model": 4096, "d_ff": 10240, "num_heads": 64},
}
BYTES = {"weights": 4, "gradients": 4, "AdamW": 8}  # of a trained float32 number; AdamW keeps two moments


def empty_t5(name: str, layers: int = 24) -> T5ForConditionalGeneration:
    """A T0 model in bfloat16, on the meta device.

    Args:
        name: a key of `T5_SIZES`.
        layers: of the encoder, and again of the decoder.
    """
    config = T5Config(
        **T5_SIZES[name],
        vocab_size=32128,
        d_kv=64,
        num_layers=layers,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
        # T5Config ties all embeddings; from version 1.1 on the last layer has a weight of its own.
        model.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
    return model.to(torch.bfloat16)


def memory(trained: int, base: int, gpus: int = 1) -> float:
    """Gigabytes (1e9 bytes) of each GPU for a frozen bfloat16 base and what trains beside it in float32.

    Args:
        trained: parameters that are trained, with gradients and AdamW's moments.
        base: frozen parameters.
        gpus: how many share all of it, as with FSDP.
    """
    return (2 * base + sum(BYTES.values()) * trained) / gpus / 1e9


def plan(name: str, adapter: str, n_tasks: int, **changes) -> dict[str, int]:
    """Parameters of a T0 model with an adapter on every linear layer of its blocks.

    Args:
        name: a key of `T5_SIZES`.
        adapter: a key of `methods.ADAPTERS`.
        n_tasks: number of tasks.
        changes: options of `AdapterConfig` that replace those of the adapter.

    Returns:
        {"base": ..., "layers": ..., "factors": ..., "routing": ...}: parameters, and adapted layers.
    """
    model = empty_t5(name)
    base = model.num_parameters()
    methods.adapt(model, adapter, n_tasks, target_modules=linear_layers(model), **changes)
    layers = len(mtp.adapted_layers(model))
    return {"base": base, "layers": layers} | methods.count_parameters(model)
