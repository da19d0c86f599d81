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

from .config import AdapterConfig, check_integer
from .layer import AdaptedLinear, is_transposed, linear_features
from .routing import Router, TaskContext, read_task_ids

FORMAT_VERSION = 1  # of the files that `save` writes


@dataclasses.dataclass
class Adaptation:
    """What `adapt` leaves on a model, as `model.adaptation`."""

    config: AdapterConfig
    context: TaskContext
    trainable: frozenset  # names of the base parameters that are trainable again without the adapter


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
        TypeError: config is not an AdapterConfig.
        ValueError: no module matches, a matching module cannot be adapted, the model is adapted
            already, or n_heads divides not every dimension. The model is left as it was.
    """
    if not isinstance(config, AdapterConfig):
        raise TypeError(f"config={config!r} must be an AdapterConfig, not {type(config).__name__}")
    if any(isinstance(module, AdaptedLinear) for module in model.modules()):
        raise ValueError("the model is adapted already: merge() a task into it, or take a fresh base model")
    context, routers, layers = TaskContext(), {None: None}, {}
    for name, linear in _matching_layers(model, config.target_modules).items():
        group = _routing_group(name, config)
        if group not in routers:
            routers[group] = Router(*config.routing_shape, config.noise_temperature)
        try:
            layer = AdaptedLinear(linear, config, context, routers[group])
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
        layers[id(linear)] = layer.train(linear.training)
    model.__class__ = _with_task_ids(type(model))  # the last step that may fail, the first that changes
    # A tied weight counts under each of its names: merge() may untie it.
    trainable = frozenset(n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad)
    model.requires_grad_(False)
    _replace(model, layers)
    model.adaptation = Adaptation(config, context, trainable)
    return model


def _matching_layers(model, pattern):
    """{name: linear layer} of the modules whose whole name matches."""
    matches = {name: m for name, m in model.named_modules() if name and re.fullmatch(pattern, name)}
    for name, module in matches.items():
        parent = model.get_submodule(name.rpartition(".")[0])
        if linear_features(module) is None:
            kind = type(module).__name__
            raise ValueError(f"target_modules={pattern!r} matches {name!r}, a {kind}; only linear layers fit")
        if isinstance(parent, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
            kind = type(parent).__name__
            raise ValueError(f"layer {name!r}: {kind} uses its weight without calling it, past any adapter")
    if not matches:
        nearest = ", ".join(map(repr, _nearest_names(model, pattern))) or "none: it has no linear layers"
        raise ValueError(f"target_modules={pattern!r} matches no module; the nearest names are {nearest}")
    return matches


def _nearest_names(model, pattern):
    """Four linear layers whose names end most like a word of the pattern, one for each ending."""
    linear = {n.rpartition(".")[2]: n for n, m in reversed(list(model.named_modules())) if linear_features(m)}
    words = re.findall(r"\w+", pattern) or [""]
    likeness = {end: max(difflib.SequenceMatcher(None, w, end).ratio() for w in words) for end in linear}
    return [linear[end] for end in sorted(linear, key=likeness.get, reverse=True)[:4]]


def _routing_group(name, config):
    """Which layers share their routing with this one: those of the same group; None: no routing."""
    if not config.routed:
        return None
    match = re.fullmatch(config.share_routing or "(.*)", name)
    if match is None:
        raise ValueError(f"share_routing={config.share_routing!r} does not match the adapted layer {name!r}")
    return match[1] or ""


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
        return _call(base.generate, self, task_ids, args, kwargs, factors={})

    signature = inspect.signature(base.forward)
    task_ids = inspect.Parameter("task_ids", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = sorted([*signature.parameters.values(), task_ids], key=lambda p: p.kind)  # **kwargs last
    forward.__signature__ = signature.replace(parameters=parameters)
    members = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    members |= {"forward": forward} | ({"generate": generate} if hasattr(base, "generate") else {})
    return type(base.__name__, (base,), members)


def _call(method, model, task_ids, args, kwargs, factors=None):
    """Calls a method of the base model with the task ids, and perhaps a place for factors, in the context."""
    config, context = model.adaptation.config, model.adaptation.context
    if getattr(model, "_is_replica", False):  # its threads would overwrite each other's task ids
        raise ValueError("nn.DataParallel is not supported: launch with torchrun or accelerate")
    outer = call = context.call
    if task_ids is not None:
        grouped = config.noise_temperature is None or not model.training
        call = read_task_ids(task_ids, config.n_tasks, (args, kwargs), grouped)
    if config.routed and call.tasks is None:  # and this is no call from inside `generate`
        raise ValueError(f"task_ids is missing: {config.method} needs task_ids=..., one id per row")
    context.call = own = call if factors is None else dataclasses.replace(call, factors=factors)
    try:
        output = method(model, *args, **kwargs)
        if task_ids is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            context.restore_in_backward(output)
        return output
    finally:
        context.call = outer
        if factors is not None:
            own.factors = None  # whoever still holds this call finds nothing out of date


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """{name: adapted layer}.

    Raises:
        ValueError: the model is not adapted.
    """
    if not hasattr(model, "adaptation"):
        raise ValueError(f"this {type(model).__name__} is not adapted; call adapt(model, config) first")
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """{name: parameter} of all factors and routers, each once, a shared router under its first name."""
    prefixes = tuple(f"{name}.{part}." for name in adapted_layers(model) for part in ("A", "B", "router"))
    return {name: p for name, p in model.named_parameters() if name.startswith(prefixes)}


def _routing_logits(model):
    return [p for name, p in adapter_parameters(model).items() if name.endswith(".router.logits")]


def parameter_groups(model: nn.Module, lr: float, router_lr: float | None = None) -> list[dict]:
    """Groups for any torch optimizer: every trainable parameter in exactly one.

    Args:
        model: an adapted model.
        lr: learning rate of the factors, and of anything else in the model that is trainable.
        router_lr: learning rate of the routing logits; None: lr.

    Returns:
        [{"params": ..., "lr": lr}, {"params": ..., "lr": router_lr}], without an empty group.
    """
    routing = {id(parameter) for parameter in _routing_logits(model)}
    groups = [{"params": [], "lr": lr}, {"params": [], "lr": lr if router_lr is None else router_lr}]
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in routing]["params"].append(parameter)
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
    parameters = _routing_logits(model) if part == "routing" else adapter_parameters(model).values()
    if not parameters:
        raise ValueError(f"part='routing': {model.adaptation.config.method} has no routing; train 'all'")
    model.requires_grad_(False)
    for parameter in parameters:
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
    check_integer("n", n, at_least=1)
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
    tensors = {name: parameter.detach() for name, parameter in adapter_parameters(model).items()}
    description = {"format_version": FORMAT_VERSION, "config": dataclasses.asdict(model.adaptation.config)}
    _write(folder, ("adapter.safetensors", "adapter.json"), tensors, description)


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
            description = (opened.metadata() or {}).get("description")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or not a safetensors file: {error}") from None
    adapt(model, _read_config(description, file))
    parameters = adapter_parameters(model)
    ours, theirs = ({name: list(t.shape) for name, t in d.items()} for d in (parameters, tensors))
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            _remove_adapter(model)
            shapes = f"{theirs.get(name)} in the file and {ours.get(name)} in the model"
            raise ValueError(f"{file} does not fit the model: the shape of {name} is {shapes}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    return model


def _read_config(description, file):
    """The AdapterConfig that `save` wrote, as JSON."""
    try:
        description = json.loads(description)
        version, config = int(description["format_version"]), description["config"]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"{file} is not an adapter that minitensorpoly.save wrote") from None
    if version > FORMAT_VERSION:
        raise ValueError(f"{file} has format version {version}; this library reads up to {FORMAT_VERSION}")
    unknown = set(config) - {field.name for field in dataclasses.fields(AdapterConfig)}
    if unknown:
        raise ValueError(f"{file} has options that this library does not know: {', '.join(sorted(unknown))}")
    return AdapterConfig(**config)


def _write(folder, names, tensors, description):
    """Writes a safetensors file and its JSON, each put in place in one step when it is complete."""
    from safetensors.torch import save_file

    files = [Path(folder) / name for name in names]
    unfinished = [file.with_name(file.name + ".unfinished") for file in files]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt", "description": json.dumps(description)}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, unfinished[0], metadata)
    unfinished[1].write_text(json.dumps(description, indent=2) + "\n")
    for source, target in zip(unfinished, files, strict=True):
        os.replace(source, target)


def export_lora(model: nn.Module, task: int | None = None, *, folder: str | os.PathLike) -> None:
    """Writes one task's adapter as a LoRA that `peft.PeftModel.from_pretrained(base, folder)` loads.

    Args:
        model: an adapted model.
        task: which task; may be left out for a method without routing.
        folder: gets `adapter_model.safetensors` and `adapter_config.json`.

    Raises:
        TypeError, ValueError: task is missing, not an integer, or out of range.
    """
    layers, config = adapted_layers(model), model.adaptation.config
    _check_task(config, task)
    tensors = {}
    for name, layer in layers.items():
        A, B = layer.lora(task)
        prefix = f"base_model.model.{name}"
        tensors |= {f"{prefix}.lora_A.weight": A, f"{prefix}.lora_B.weight": B}
    description = {
        "peft_type": "LORA",
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None),
        "target_modules": config.target_modules,
        "r": config.rank,
        "lora_alpha": config.scale * config.rank,
        "fan_in_fan_out": any(is_transposed(layer.base) for layer in layers.values()),
        "inference_mode": True,
    }
    _write(folder, ("adapter_model.safetensors", "adapter_config.json"), tensors, description)


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
            dtype = layer.weight.dtype
            raise ValueError(f"layer {name!r}: merge() needs floating-point weights, not {dtype}")
    for layer in layers.values():
        A, B = layer.lora(task)
        update = layer.scale * B @ A  # (out, in)
        update = update.mT if is_transposed(layer.base) else update
        layer.base.weight = nn.Parameter((layer.weight + update).to(layer.weight.dtype))
    _remove_adapter(model)
    return model


def _check_task(config, task):
    if task is not None:
        check_integer("task", task, at_least=0, below=config.n_tasks)
    elif config.routed:
        raise ValueError(f"task is missing: {config.method} has an update for each task; say which")


def _remove_adapter(model):
    """Puts the base layers back, and everything else that `adapt` changed."""
    trainable = model.adaptation.trainable
    _replace(model, {id(layer): layer.base for layer in adapted_layers(model).values()})
    model.__class__ = type(model).__base__
    del model.adaptation
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(name in trainable)
