"""Mixtures of latent experts with tensor products (TensorPoly), in about 500 lines of PyTorch.

Read the files in this order; each needs only those before it:

    factors.py   parameters -> the factor A or B of a task: matrices, or leaves of tensor products
    config.py    the six methods as a table; AdapterConfig
    routing.py   task ids -> weights of the experts; how the ids reach the layers
    layer.py     AdaptedLinear: base linear layer + two factors + router
    model.py     what is done to a whole model: adapt, train, add tasks, save, load, export, merge
"""

# isort: skip_file
from .config import METHODS, AdapterConfig
from .factors import leaf_size, tensor_product
from .model import adapt, adapted_layers, adapter_parameters, add_tasks, check_rows, export_lora, load, merge
from .model import parameter_groups, routing_weights, save, task_ids, train_only

__version__ = "0.1.0"
