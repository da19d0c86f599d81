"""What is done to a whole model: adapt, train, inspect, check, add tasks, save, load, export, merge."""

import contextlib
import dataclasses
import functools
import inspect
import json
import os
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import AdapterConfig, check
from .layer import AdaptedLinear, is_transposed, linear_features
from .routing import Adaptation, Router

FORMAT_VERSION = 1  # of the files that `save` writes
_LOGITS = ".router.logits"  # how the name of routing logits ends


def adapt(model: nn.Module, config: AdapterConfig) -> nn.Module:
    """Adds adapters to a model, in place: freezes it and wraps its matching linear layers.

    Afterwards the model computes what it did before, bit for bit, and its call and its `generate`
    take `task_ids=`: (batch,) integers, the task of each example, or one integer for all. Layers must see
    rows first, as inputs of shape (batch, ...); `check_rows` tells of a model whether they do.

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
    base = getattr(model, "_orig_mod", model)  # of one that torch.compile has wrapped
    if not isinstance(config, AdapterConfig):
        raise TypeError(f"config={config!r} must be an AdapterConfig, not {type(config).__name__}")
    if any(isinstance(module, AdaptedLinear) for module in base.modules()):
        raise ValueError("the model is adapted already: merge() a task into it, or take a fresh base model")
    # A tied weight counts under each of its names: merge() may untie it.
    trainable = {name for name, p in base.named_parameters(remove_duplicate=False) if p.requires_grad}
    adaptation, layers, adapted_class = Adaptation(config, trainable), {}, _with_task_ids(type(base))
    for name, linear in _matching_layers(base, config.target_modules).items():
        router = Router(*config.routing_shape) if config.routed else None
        try:
            layers[id(linear)] = AdaptedLinear(linear, adaptation, router, name)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
    base.requires_grad_(False)
    _replace(base, layers)
    base.__class__, base.adaptation = adapted_class, adaptation
    return model


def _matching_layers(model, pattern):
    """{name: linear layer} of the modules whose whole name matches."""
    modules = dict(model.named_modules())
    matches = {name: module for name, module in modules.items() if name and re.fullmatch(pattern, name)}
    for name, module in matches.items():
        kind, parent = type(module).__name__, type(modules[name.rpartition(".")[0]])
        if linear_features(module) is None:
            raise ValueError(f"target_modules={pattern!r} matches {name!r}, a {kind}; only linear layers fit")
        if issubclass(parent, (nn.MultiheadAttention, nn.TransformerEncoderLayer)):
            raise ValueError(f"layer {name!r}: {parent.__name__} uses its weight without calling it")
    if not matches:
        linear = [name for name, module in modules.items() if linear_features(module)]
        ends = ", ".join({name.rpartition(".")[2]: f"'{name}'" for name in linear}.values()) or "none"
        raise ValueError(f"target_modules={pattern!r} matches no module; linear layers are {ends}")
    return matches


def _replace(model, replacements):
    """Puts replacements[id(module)] wherever that module stands, under all of its names."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) in replacements:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, replacements[id(module)])


@functools.cache
def _with_task_ids(base: type) -> type:
    """The class of a model, with task_ids= in its call, and in `generate` where it has one.

    A subclass of the same name, given to the instance, as `torch.distributed.fsdp.fully_shard` does. The
    call takes the ids even where an instance has a `forward` of its own, as accelerate gives it one;
    `forward` shows them in its signature, by which Trainer keeps the column.
    """

    def __call__(self, *args, task_ids=None, **kwargs):
        return _call(base.__call__, self, task_ids, args, kwargs)

    def forward(self, *args, task_ids=None, **kwargs):
        if task_ids is None:  # or taken by __call__
            return base.forward(self, *args, **kwargs)
        return _call(base.forward, self, task_ids, args, kwargs)

    def generate(self, *args, task_ids=None, **kwargs):
        return _call(base.generate, self, task_ids, args, kwargs, kept={})

    def save_pretrained(self, folder, *args, **kwargs):
        base.save_pretrained(self, folder, *args, **kwargs)  # loads as the base: its names are its own
        save(self, folder)

    def __reduce_ex__(self, protocol):
        return _empty, (base,), *base.__reduce_ex__(self, protocol)[2:]

    signature = inspect.signature(base.forward)
    task_ids = inspect.Parameter("task_ids", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters = sorted([*signature.parameters.values(), task_ids], key=lambda p: p.kind)  # **kwargs last
    forward.__signature__ = signature.replace(parameters=parameters)
    members = {"__call__": __call__, "forward": forward, "__reduce_ex__": __reduce_ex__}
    members |= {f.__name__: f for f in (generate, save_pretrained) if hasattr(base, f.__name__)}
    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (base,), members | names)


def _empty(base):
    """What pickle fills with the attributes of an adapted model."""
    return object.__new__(_with_task_ids(base))


def _call(method, model, ids, args, kwargs, kept=None):
    """Calls a method of the base model, and tells the layers its task ids."""
    if getattr(model, "_is_replica", False):  # its layers would compute with the weights of the first device
        raise ValueError("nn.DataParallel is not supported: launch with torchrun or accelerate")
    if not hasattr(model, "adaptation"):  # merged since a wrapper has taken hold of this method
        return method(model, *args, **kwargs)
    with model.adaptation.calling(ids, (args, kwargs), kept):
        output = method(model, *args, **kwargs)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            model.adaptation.restore_in_backward(output)
        return output


def task_ids(model: nn.Module, ids):
    """A context in which all calls of a model, its parts and its layers have these task ids.

    For parts that the model's own call does not reach, `with task_ids(model, ids): model.get_encoder()(x)`,
    and for callers that cannot pass ids on: pipelines, a layer alone.

    Args:
        model: an adapted model, or one of its adapted layers.
        ids: (batch,) integers, or one for all rows.

    Raises:
        TypeError, ValueError: the model is not adapted; ids are not integers from 0 to n_tasks - 1.
    """
    return _adapted(model).adaptation.calling(ids)


@torch.no_grad()
def check_rows(model: nn.Module, task_ids, **batch) -> None:
    """Checks that adapted layers see rows of the batch: turned round, it must turn round their inputs.

    Args:
        model: an adapted model, in evaluation mode.
        task_ids: (batch,) task ids.
        batch: what the model is called with; tensors of as many rows are turned round. Rows must differ.

    Raises:
        ValueError: an adapted layer, which is named, does not see the batch's rows one after the other. Leave
            it out of target_modules.
    """
    n, ids, seen = len(task_ids), torch.as_tensor(task_ids), []
    turned = {k: v.flip(0) if isinstance(v, Tensor) and len(v) == n else v for k, v in batch.items()}
    with contextlib.ExitStack() as hooks:
        for layer in adapted_layers(model).values():
            hooks.enter_context(layer.register_forward_pre_hook(lambda m, x: seen.append((m.name, x[0]))))
        model(**batch, task_ids=ids)
        model(**turned, task_ids=ids.flip(0))
    for (name, x), (_, y) in zip(seen[: len(seen) // 2], seen[len(seen) // 2 :], strict=True):
        rounding, fits = torch.finfo(x.dtype).eps ** 0.5 * x.abs().max().item(), x.shape == y.shape
        if not fits or not torch.allclose(
            x.unflatten(0, (n, -1)).flip(0), y.unflatten(0, (n, -1)), 0, rounding
        ):
            raise ValueError(f"layer {name!r} does not see the rows of the batch one after the other")


def _adapted(model):
    """The adapted model itself, or an adapted layer, not what torch.compile has wrapped round it."""
    model = getattr(model, "_orig_mod", model)
    if not hasattr(model, "adaptation"):
        raise ValueError(f"this {type(model).__name__} is not adapted; call adapt(model, config) first")
    return model


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """{name: adapted layer}.

    Raises:
        ValueError: the model is not adapted.
    """
    return {name: m for name, m in _adapted(model).named_modules() if isinstance(m, AdaptedLinear)}


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """{name: parameter} of all factors and routers, each once."""
    parts = tuple(f"{name}.{part}." for name in adapted_layers(model) for part in ("A", "B", "router"))
    return {name: p for name, p in _adapted(model).named_parameters() if name.startswith(parts)}


def _saved_parameters(model):
    """{name: parameter} of the adapter, and of all else that is or has been trainable beside it."""
    own, named, adaptation = adapter_parameters(model), _adapted(model).named_parameters, model.adaptation
    adaptation.trained |= {name for name, p in named() if p.requires_grad and name not in own}
    return {name: p for name, p in named() if name in adaptation.trained or name in own}


def parameter_groups(model: nn.Module, lr: float, router_lr: float | None = None) -> list[dict]:
    """Groups for any torch optimizer: every trainable parameter in exactly one.

    Routing has no weight decay, which would change tasks that are not trained: AdamW decays what it holds.

    With Adam or AdamW and a pretrained model begin at an lr of 0.001 to 0.005 for LoRA, TLoRA, Poly and MHR,
    and 0.01 for the TensorPolys, whose leaves are larger at the start, with a router_lr of 0.1 to 0.3; then
    search. Chapter 11 of the book has what searches found.

    Args:
        model: an adapted model.
        lr: learning rate of the factors, and of anything else in the model that is trainable.
        router_lr: learning rate of the routing logits; None: lr.

    Returns:
        [{"params": ..., "lr": lr}, {"params": ..., "lr": router_lr, "weight_decay": 0.0}], without an empty
        group.
    """
    routing = {id(p) for name, p in adapter_parameters(model).items() if name.endswith(_LOGITS)}
    groups = [{"params": [], "lr": lr}, {"params": [], "lr": lr if router_lr is None else router_lr}]
    groups[1]["weight_decay"] = 0.0
    for parameter in [p for p in model.parameters() if p.requires_grad]:
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
    chosen = {name for name in adapter_parameters(model) if part == "all" or name.endswith(_LOGITS)}
    if not chosen:
        raise ValueError(f"part={part!r}: {model.adaptation.config.method} has no routing; train 'all'")
    _saved_parameters(model)  # a trained head is frozen now, and saved nevertheless
    for name, parameter in _adapted(model).named_parameters():
        parameter.requires_grad_(name in chosen)


def add_tasks(model: nn.Module, n: int) -> range:
    """Adds n tasks; their routing starts at the mean of the known tasks', which keep theirs.

    The routing logits become new parameters: make the optimizer anew afterwards.

    Returns:
        The ids of the new tasks.

    Raises:
        TypeError, ValueError: n is not an integer of at least 1.
    """
    check("n", n, int, lambda n: n >= 1, "an integer of at least 1")
    adaptation = _adapted(model).adaptation
    for router in {layer.router for layer in adapted_layers(model).values()} - {None}:
        known = router.logits.detach()
        logits = torch.cat([known, known.mean(0, keepdim=True).expand(n, -1, -1)])
        router.logits = nn.Parameter(logits, router.logits.requires_grad)
    first = adaptation.config.n_tasks
    adaptation.config = dataclasses.replace(adaptation.config, n_tasks=first + n)
    return range(first, first + n)


def routing_weights(model: nn.Module) -> dict[str, Tensor]:
    """{layer name: routing weights (tasks, splits, experts)}; empty for a method without routing."""
    return {name: m.router.weights.detach() for name, m in adapted_layers(model).items() if m.router}


def save(model: nn.Module, folder: str | os.PathLike) -> None:
    """Saves the adapter: `adapter.safetensors`, and `adapter.json` to read its configuration.

    With it goes whatever else is or has been trainable: the head of a classifier. `adapter.safetensors` is
    complete in itself. It takes the place of an older one in one step, when it is complete, so an
    interrupted save leaves the old adapter readable.
    """
    parameters, config = _saved_parameters(model), dataclasses.asdict(_adapted(model).adaptation.config)
    description = {"format_version": FORMAT_VERSION, "config": config}
    _write(folder, "adapter.safetensors", parameters, "adapter.json", description)


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
    try:
        with safe_open(file, "pt") as opened:
            description = json.loads(opened.metadata()["description"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no dict)
        if description["format_version"] > FORMAT_VERSION:
            raise ValueError(f"its format version is {description['format_version']}, above {FORMAT_VERSION}")
        options = {name: value for name, value in description["config"].items() if value is not None}
        adapt(model, AdapterConfig(**options))
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{file} is not an adapter for this model: {error}") from error
    parameters, needed = dict(_adapted(model).named_parameters()), adapter_parameters(model)
    for name in needed | tensors:
        ours, theirs = (list(d[name].shape) if name in d else None for d in (parameters, tensors))
        if ours != theirs or parameters[name].is_meta:
            _remove_adapter(model)
            shapes = f"{theirs} in the file, and {ours} in the model (or on the meta device)"
            raise ValueError(f"{file} does not fit the model: the shape of {name} is {shapes}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].requires_grad_(True).copy_(tensor)
    return model


def _write(folder, file, tensors, json_file, description):
    """Writes a safetensors file and its JSON, each put in place in one step when it is complete."""
    from safetensors.torch import save_file

    folder, text = Path(folder), json.dumps(description, indent=2)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / f"{file}.unfinished", {"format": "pt", "description": text})
    (folder / f"{json_file}.unfinished").write_text(text + "\n")
    for name in (file, json_file):
        os.replace(folder / f"{name}.unfinished", folder / name)


# PEFT's names for what a model of transformers is for, by the end of its class's name
_TASK_TYPES = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForSequenceClassification": "SEQ_CLS"}
_TASK_TYPES |= {"ForTokenClassification": "TOKEN_CLS", "ForQuestionAnswering": "QUESTION_ANS"}


def export_lora(model: nn.Module, task: int | None, folder: str | os.PathLike) -> None:
    """Writes one task's adapter as a LoRA that `peft.PeftModel.from_pretrained(base, folder)` loads.

    Args:
        model: an adapted model.
        task: which task; None for a method without routing.
        folder: gets `adapter_model.safetensors` and `adapter_config.json`.

    Raises:
        TypeError, ValueError: task is missing, not an integer, or out of range; or a trained parameter stands
            where PEFT keeps none.
    """
    model, layers = _adapted(model), adapted_layers(model)
    config, tensors, kind = model.adaptation.config, {}, type(model).__name__
    _check_task(config, task)
    for name, layer in layers.items():
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = layer.lora(task)
    trained = _saved_parameters(model).keys() - adapter_parameters(model).keys()
    heads = sorted({name.rpartition(".")[0] for name in trained})  # or other modules
    for name in heads:
        head = model.get_submodule(name)
        if any(isinstance(module, AdaptedLinear) for module in head.modules()):
            raise ValueError(f"PEFT cannot keep trained parameters of {name!r} beside an adapter in it")
        tensors |= {f"{name}.{key}": value for key, value in head.state_dict().items()}
    description = {
        "peft_type": "LORA",
        "task_type": next((_TASK_TYPES[end] for end in _TASK_TYPES if kind.endswith(end)), None),
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None),
        "target_modules": list(layers),
        "modules_to_save": heads or None,
        "r": config.rank,
        "lora_alpha": config.scale * config.rank,
        "fan_in_fan_out": any(is_transposed(layer.base) for layer in layers.values()),
        "inference_mode": True,
    }
    tensors = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    _write(folder, "adapter_model.safetensors", tensors, "adapter_config.json", description)


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
        TypeError, ValueError: task is missing, not an integer, or out of range; or a layer does not compute
            x Wᵀ + b of a floating-point W that it keeps. The model is left as it was.
    """
    _check_task(_adapted(model).adaptation.config, task)
    weights = {layer: layer.merged_weight(task) for layer in adapted_layers(model).values()}
    for layer, weight in weights.items():
        layer.weight = nn.Parameter(weight)
    _remove_adapter(model)
    return model


def _check_task(config, task):
    if task is not None:
        check("task", task, int, lambda t: 0 <= t < config.n_tasks, f"an id from 0 to {config.n_tasks - 1}")
    elif config.routed:
        raise ValueError(f"task is missing: {config.method} has an update for each task; say which")


def _remove_adapter(model):
    """Puts the base layers back, and everything else that `adapt` changed."""
    model, trainable = _adapted(model), model.adaptation.trainable
    _replace(model, {id(layer): layer.base for layer in adapted_layers(model).values()})
    model.__class__ = type(model).__base__
    del model.adaptation
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(name in trainable)
