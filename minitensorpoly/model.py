"""What is done to a whole model: adapt, train, inspect, add tasks, save, load, export, merge."""

import dataclasses
import difflib
import functools
import inspect
import json
import os
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import AdapterConfig
from .layer import AdaptedLinear, is_transposed, linear_features
from .routing import Router, TaskContext, check_task_ids

FORMAT_VERSION = 1  # of the files that `save` writes


@dataclasses.dataclass
class Adaptation:
    """What `adapt` leaves on a model, as `model.adaptation`."""

    config: AdapterConfig
    context: TaskContext
    trainable: frozenset  # names of the base parameters that `merge` makes trainable again


def adapt(model: nn.Module, config: AdapterConfig) -> nn.Module:
    """Adds adapters to a model, in place: freezes it and wraps its matching linear layers.

    Afterwards the model computes what it did before, bit for bit, and its call and its `generate`
    take `task_ids=`: (batch,) integers, the task of each example.

    Args:
        model: any module with `nn.Linear` or `Conv1D` layers.
        config: the adapter.

    Returns:
        The same model.

    Raises:
        ValueError: no module matches, a matching module cannot be adapted, the model is adapted
            already, or n_heads divides not every dimension. The model is left as it was.
    """
    if any(isinstance(module, AdaptedLinear) for module in model.modules()):
        raise ValueError("the model is adapted already; merge() a task into it or start from a fresh base model")
    context, routers, layers = TaskContext(), {}, {}
    for name, linear in _matching_layers(model, config.target_modules).items():
        router = None
        if config.routed:
            group = _routing_group(name, config.share_routing)
            if group not in routers:
                routers[group] = Router(*config.routing_shape, config.noise_temperature)
            router = routers[group]
        try:
            layers[id(linear)] = AdaptedLinear(linear, config, context, router).train(linear.training)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
    trainable = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    for linear_parameter in model.parameters():
        linear_parameter.requires_grad_(False)
    _replace(model, layers)
    model.adaptation = Adaptation(config, context, trainable)
    model.__class__ = _with_task_ids(type(model))
    return model


def _matching_layers(model, pattern):
    """{name: linear layer} of the modules whose whole name matches."""
    matches = {name: m for name, m in model.named_modules() if name and re.fullmatch(pattern, name)}
    for name, module in matches.items():
        parent = model.get_submodule(name.rpartition(".")[0])
        if linear_features(module) is None:
            raise ValueError(
                f"target_modules={pattern!r} matches {name!r}, a {type(module).__name__}; "
                "only linear layers (nn.Linear, Conv1D) can be adapted, so narrow the pattern"
            )
        if isinstance(parent, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
            raise ValueError(
                f"layer {name!r}: {type(parent).__name__} reads the weights of its linear layers without "
                "calling them, so an adapter there would have no effect; leave it out of target_modules"
            )
    if not matches:
        linear = {n.rpartition(".")[2]: n for n, m in model.named_modules() if n and linear_features(m)}
        nearest = difflib.get_close_matches(pattern, linear.values(), n=4, cutoff=0)
        raise ValueError(
            f"target_modules={pattern!r} matches no module; the nearest names are "
            + (", ".join(map(repr, nearest)) or "none: the model has no linear layers")
        )
    return matches


def _routing_group(name, pattern):
    """What the layer's name says of whom it shares its routing with; without a pattern, its name."""
    if pattern is None:
        return name
    match = re.fullmatch(pattern, name)
    if match is None:
        raise ValueError(f"share_routing={pattern!r} does not match layer {name!r}; it must match every adapted layer")
    return match[1]


def _replace(model, replacements):
    """Puts replacements[id(module)] wherever that module stands, under all of its names."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) in replacements:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, replacements[id(module)])


@functools.cache
def _with_task_ids(base: type) -> type:
    """The class of a model, with task_ids= in its call, and in `generate` where it has one.

    A subclass of the same name, given to the instance, as `torch.distributed.fsdp.fully_shard` does:
    it survives deepcopy, and shows task_ids in the signature, by which Trainer keeps the column.
    """

    def forward(self, *args, task_ids=None, **kwargs):
        return _call(base.forward, self, task_ids, args, kwargs)

    def generate(self, *args, task_ids=None, **kwargs):
        return _call(base.generate, self, task_ids, args, kwargs)

    signature = inspect.signature(base.forward)
    task_ids = inspect.Parameter("task_ids", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = [*signature.parameters.values(), task_ids]
    parameters.sort(key=lambda p: p.kind)  # **kwargs stays last
    forward.__signature__ = signature.replace(parameters=parameters)
    methods = {"forward": forward} | ({"generate": generate} if hasattr(base, "generate") else {})
    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (base,), methods | names)


def _call(method, model, task_ids, args, kwargs):
    """Calls a method of the base model with the task ids in the context."""
    config, context = model.adaptation.config, model.adaptation.context
    if getattr(model, "_is_replica", False):
        raise ValueError("nn.DataParallel is not supported; launch with torchrun or accelerate, one process per GPU")
    if task_ids is None:
        if config.routed and context.task_ids is None:  # not inside of `generate`, which has set them
            raise ValueError(
                f"task_ids is missing: method {config.method!r} needs task_ids=..., one id per row of the batch"
            )
        return method(model, *args, **kwargs)
    outer = context.task_ids
    context.task_ids = check_task_ids(task_ids, config.n_tasks, (args, kwargs))
    try:
        output = method(model, *args, **kwargs)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            context.restore_in_backward(output)
        return output
    finally:
        context.task_ids = outer


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """{name: adapted layer}.

    Raises:
        ValueError: the model is not adapted.
    """
    if not hasattr(model, "adaptation"):
        raise ValueError(f"the model, a {type(model).__name__}, is not adapted; call adapt(model, config) first")
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """{name: parameter} of all factors and routers, each once, shared routers under their first name."""
    layers = tuple(f"{name}.{part}." for name in adapted_layers(model) for part in ("A", "B", "router"))
    return {name: p for name, p in model.named_parameters() if name.startswith(layers)}


def parameter_groups(model: nn.Module, lr: float, router_lr: float | None = None) -> list[dict]:
    """Groups for any torch optimizer: every trainable parameter in exactly one.

    Args:
        model: an adapted model.
        lr: learning rate of the factors, and of anything else in the model that is trainable.
        router_lr: learning rate of the routing logits; None: lr.

    Returns:
        [{"params": ..., "lr": lr}, {"params": ..., "lr": router_lr}], without an empty group.
    """
    routing = {id(p) for name, p in adapter_parameters(model).items() if name.endswith("router.logits")}
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) not in routing], "lr": lr},
        {"params": [p for p in trainable if id(p) in routing], "lr": lr if router_lr is None else router_lr},
    ]
    return [group for group in groups if group["params"]]


def train_only(model: nn.Module, part: str) -> None:
    """Makes a part of the adapter trainable, and freezes everything else in the model.

    Args:
        model: an adapted model.
        part: "routing" for the routing logits, "all" for factors and routing.

    Raises:
        ValueError: unknown part, or "routing" of a method without routing.
    """
    if part not in ("routing", "all"):
        raise ValueError(f"part={part!r} must be 'routing' or 'all'")
    parameters = adapter_parameters(model)
    if part == "routing":
        parameters = {name: p for name, p in parameters.items() if name.endswith("router.logits")}
        if not parameters:
            raise ValueError(f"method {model.adaptation.config.method!r} has no routing; train 'all'")
    model.requires_grad_(False)
    for parameter in parameters.values():
        parameter.requires_grad_(True)


def add_tasks(model: nn.Module, n: int) -> range:
    """Adds n tasks; their routing starts at the mean of the known tasks', which keep theirs.

    The routing logits become new parameters: make the optimizer anew afterwards.

    Returns:
        The ids of the new tasks.

    Raises:
        TypeError, ValueError: n is not an integer of at least 1.
    """
    layers, config = adapted_layers(model), model.adaptation.config
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n={n!r} must be an integer, the number of tasks to add")
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    for router in {layer.router for layer in layers.values()} - {None}:
        router.add_tasks(n)
    model.adaptation.config = dataclasses.replace(config, n_tasks=config.n_tasks + n)
    return range(config.n_tasks, config.n_tasks + n)


def routing_weights(model: nn.Module) -> dict[str, Tensor]:
    """{layer name: routing weights (tasks, splits, experts)}; empty for a method without routing."""
    layers = adapted_layers(model).items()
    return {name: layer.router.weights.detach() for name, layer in layers if layer.router is not None}


def save(model: nn.Module, folder: str | os.PathLike) -> None:
    """Saves the adapter alone: `adapter.safetensors`, and `adapter.json` to read its configuration.

    `adapter.safetensors` is complete in itself. It takes the place of an older one in one step, when
    it is complete, so an interrupted save leaves the old adapter readable.
    """
    description = {"format_version": FORMAT_VERSION, "config": dataclasses.asdict(model.adaptation.config)}
    tensors = {name: p.detach().cpu() for name, p in adapter_parameters(model).items()}
    _write(folder, "adapter", tensors, description, {"minitensorpoly": json.dumps(description)})


def load(model: nn.Module, folder: str | os.PathLike) -> nn.Module:
    """Adapts a base model as a saved adapter says, and gives it the saved parameters.

    Args:
        model: the base model, not adapted.
        folder: where `save` put the adapter.

    Returns:
        The same model.

    Raises:
        FileNotFoundError: there is no adapter in the folder.
        ValueError: the file is truncated, not an adapter, of a newer format, or does not fit the
            model. The model is left as it was.
    """
    from safetensors import SafetensorError, safe_open

    file = Path(folder) / "adapter.safetensors"
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist; give the folder that save() wrote")
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or not a safetensors file: {error}") from None
    config = _read_config(metadata.get("minitensorpoly"), file)
    if file.with_suffix(".json").exists():
        _read_config(file.with_suffix(".json").read_text(), file.with_suffix(".json"))
    adapt(model, config)
    parameters = adapter_parameters(model)
    try:
        for name in sorted(parameters.keys() | tensors.keys()):
            ours, saved = (list(d[name].shape) if name in d else "absent" for d in (parameters, tensors))
            if ours != saved:
                raise ValueError(f"{file} does not fit the model: {name} is {saved} in the file, {ours} in the model")
    except ValueError:
        _remove_adapter(model)
        raise
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    return model


def _read_config(text, file):
    """The AdapterConfig in the JSON that `save` wrote."""
    try:
        description = json.loads(text)
        version, config = description["format_version"], description["config"]
    except (TypeError, KeyError, json.JSONDecodeError):
        raise ValueError(f"{file} is not an adapter that minitensorpoly.save wrote") from None
    if version > FORMAT_VERSION:
        raise ValueError(f"{file} has format version {version}; this version of minitensorpoly reads {FORMAT_VERSION}")
    return AdapterConfig(**config)


def _write(folder, name, tensors, description, metadata):
    """Writes `name`.safetensors and its JSON, each put in place in one step when it is complete."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(tensors, folder / f"{name}.new", {"format": "pt"} | metadata)
    os.replace(folder / f"{name}.new", folder / f"{name}.safetensors")
    config = folder / f"{name.replace('model', 'config')}.json"
    config.with_suffix(".new").write_text(json.dumps(description, indent=2) + "\n")
    os.replace(config.with_suffix(".new"), config)


def export_lora(model: nn.Module, folder: str | os.PathLike, task: int | None = None) -> None:
    """Writes one task's adapter as a LoRA that `peft.PeftModel.from_pretrained(base, folder)` loads.

    Args:
        model: an adapted model.
        folder: gets `adapter_model.safetensors` and `adapter_config.json`.
        task: which task; may be left out for a method without routing.

    Raises:
        TypeError, ValueError: task is missing, not an integer, or out of range.
    """
    layers, config = adapted_layers(model), model.adaptation.config
    _check_task(config, task)
    tensors = {}
    for name, layer in layers.items():
        A, B = layer.lora(task)
        tensors[f"base_model.model.{name}.lora_A.weight"] = A.cpu()
        tensors[f"base_model.model.{name}.lora_B.weight"] = B.mT.cpu()
    description = {
        "peft_type": "LORA",
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None),
        "target_modules": config.target_modules,
        "r": config.rank,
        "lora_alpha": config.scale * config.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(is_transposed(layer.base) for layer in layers.values()),
        "inference_mode": True,
    }
    _write(folder, "adapter_model", tensors, description, {})


@torch.no_grad()
def merge(model: nn.Module, task: int | None = None) -> nn.Module:
    """Adds one task's update to the base weights and takes the adapter off: a plain model again.

    A weight that the layer shares with another module (a tied embedding) is copied first, so the
    other module keeps the old one.

    Args:
        model: an adapted model.
        task: which task; may be left out for a method without routing.

    Returns:
        The same model.

    Raises:
        TypeError, ValueError: task is missing, not an integer, or out of range; or a base weight is
            quantised. The model is left as it was.
    """
    layers = adapted_layers(model)
    _check_task(model.adaptation.config, task)
    for name, layer in layers.items():
        if not layer.weight.is_floating_point():
            raise ValueError(f"layer {name!r} has weights of {layer.weight.dtype}; merge() needs floating-point weights")
    for layer in layers.values():
        A, B = layer.lora(task)
        update = layer.scale * (A.mT @ B if is_transposed(layer.base) else B.mT @ A)
        layer.base.weight = nn.Parameter((layer.weight + update).to(layer.weight.dtype), requires_grad=False)
    _remove_adapter(model)
    return model


def _check_task(config, task):
    if task is None and not config.routed:
        return
    if task is None:
        raise ValueError(f"task is missing: method {config.method!r} has an update per task, so say which")
    if isinstance(task, bool) or not isinstance(task, int):
        raise TypeError(f"task={task!r} must be an integer")
    if not 0 <= task < config.n_tasks:
        raise ValueError(f"task={task} must be 0 to {config.n_tasks - 1}")


def _remove_adapter(model):
    """Puts the base layers back, and everything else that `adapt` changed."""
    trainable = model.adaptation.trainable
    _replace(model, {id(layer): layer.base for layer in adapted_layers(model).values()})
    model.__class__ = type(model).__base__
    del model.adaptation
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
