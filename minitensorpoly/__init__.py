"""Mixtures of latent experts with tensor products (TensorPoly), in about 500 lines of PyTorch."""

from .config import METHODS, AdapterConfig
from .factors import leaf_size, tensor_product
from .model import adapt, adapted_layers, adapter_parameters, add_tasks, parameter_groups, train_only
from .model import export_lora, load, merge, routing_weights, save

__version__ = "0.1.0"
