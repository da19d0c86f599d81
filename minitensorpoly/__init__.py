"""Mixtures of latent experts with tensor products (TensorPoly), in under 600 lines of PyTorch."""

from .config import METHODS, AdapterConfig
from .factors import leaf_size, tensor_product
from .model import (
    adapt,
    adapted_layers,
    adapter_parameters,
    add_tasks,
    export_lora,
    load,
    merge,
    parameter_groups,
    routing_weights,
    save,
    train_only,
)

__version__ = "0.1.0"
