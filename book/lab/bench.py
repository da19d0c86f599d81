"""What an adapter costs in time and memory, as a ratio to PEFT's LoRA of the same rank.

    python -m lab.bench        # from the folder `book`: T5-small's shape, on the CPU; results/bench_cpu.json
    python -m lab.bench --device cuda --dtype bfloat16 --compile      # results/bench_cuda.json

All contenders live in one process and share the weights of one base model. They take turns: in a
round each does the same work once. A machine that is busy for a while slows all of a round, so the
ratio of two contenders within a round is steadier than the seconds of either.
"""

import argparse
import copy
import dataclasses
import inspect
import json
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy
import peft
import torch
from torch import nn
from tqdm import tqdm
from transformers import T5Config, T5ForConditionalGeneration

import minitensorpoly as mtp

from .experiment import RESULTS, provenance
from .methods import EQUAL_SIZE, TARGET_MODULES

REFERENCE = "PEFT LoRA"
CONTROL = "PEFT LoRA again"  # a second copy: how far apart two equal contenders come out
OURS = {name: options["method"] for name, options in EQUAL_SIZE.items()}  # all with the same rank here


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured: a T5, the adapters on all its linear layers, a batch, and where it runs."""

    width: int = 512  # features of the model; its feed-forward layers have four times as many
    layers: int = 6  # in the encoder, and again in the decoder
    vocabulary: int = 32128
    rank: int = 16
    experts: int = 8  # K of Poly and MHR, R of the tensor methods
    order: int = 2  # of the tensor methods
    n_tasks: int = 16
    rows: int = 16  # of the batch
    tokens: int = 64  # of each input
    new_tokens: int = 32  # of each target, in training and in generation
    device: str = "cpu"
    dtype: str = "float32"  # of the base model; adapters stay in float32
    compile: bool = False  # encoder and decoder
    mixed: bool = True  # a task for each row, as far as there are tasks; False: one task for all rows


def make_base(setting: Setting) -> T5ForConditionalGeneration:
    """A random T5 of the setting's shape, frozen, without dropout."""
    config = T5Config(
        vocab_size=setting.vocabulary,
        d_model=setting.width,
        d_ff=4 * setting.width,
        d_kv=64,
        num_heads=max(1, setting.width // 64),
        num_layers=setting.layers,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config).requires_grad_(False)
    return model.to(setting.device, getattr(torch, setting.dtype))


def make_contenders(setting: Setting) -> dict[str, nn.Module]:
    """{name: model}, all with the weights of one base; only merged layers have weights of their own."""
    base = make_base(setting)

    def fresh():
        return copy.deepcopy(base, {id(p): p for p in base.parameters()})

    def adapted(method):
        options = {"tensor_rank": setting.experts, "n_skills": setting.experts, "order": setting.order}
        own = {name: n for name, n in options.items() if name in mtp.METHODS[method].options}
        config = mtp.AdapterConfig(method, TARGET_MODULES, setting.n_tasks, setting.rank, **own)
        return mtp.adapt(fresh(), config)

    common = {"r": setting.rank, "target_modules": TARGET_MODULES}
    lora = peft.LoraConfig(**common, lora_alpha=setting.rank)
    poly = peft.PolyConfig(**common, n_tasks=setting.n_tasks, n_skills=setting.experts)
    models = {"base": fresh(), "merged": mtp.merge(adapted("tensorpoly-1"), task=0)}
    with warnings.catch_warnings():  # PEFT 0.21 uses an old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        for name, config in ((REFERENCE, lora), (CONTROL, lora), ("PEFT Poly", poly)):
            models[name] = peft.get_peft_model(fresh(), config).base_model
    models |= {name: adapted(method) for name, method in OURS.items()}
    if setting.compile:  # the contenders are of the same classes, so they share one cache of compiled code
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 4096
        for model in models.values():
            model.get_encoder().compile()
            model.get_decoder().compile()
    return models


def count_trained(model: nn.Module) -> int:
    """Trainable parameters; none in the base and in a merged model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def make_batch(setting: Setting) -> dict[str, torch.Tensor]:
    """Random input_ids and labels, and task_ids."""
    rows = torch.arange(setting.rows)
    batch = {
        "input_ids": torch.randint(2, setting.vocabulary, (setting.rows, setting.tokens)),
        "labels": torch.randint(2, setting.vocabulary, (setting.rows, setting.new_tokens)),
        "task_ids": rows % setting.n_tasks if setting.mixed else torch.zeros_like(rows),
    }
    return {name: values.to(setting.device) for name, values in batch.items()}


def training(model: nn.Module, batch: dict):
    """A function that does one training step: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], 1e-4)

    def step():
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def generation(model: nn.Module, batch: dict):
    """A function that writes as many tokens as the labels have, greedily."""
    model.eval()
    n = batch["labels"].shape[1]
    inputs = {name: values for name, values in batch.items() if name != "labels"}
    return lambda: model.generate(**inputs, do_sample=False, min_new_tokens=n, max_new_tokens=n)


WORKLOADS = {"training": training, "generation": generation}


def take_turns(actions: dict, rounds: int, device="cpu", warm_up=1, progress=None) -> dict:
    """Times actions in turn: every round calls each once, and each round begins with another one.

    Args:
        actions: {name: function without arguments}.
        rounds: how many are timed.
        device: a "cuda" device is waited for before the clock is read.
        warm_up: rounds before those, which are not timed.
        progress: title of a progress bar; None: no bar.

    Returns:
        {name: [seconds in each round]}.
    """
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    names, seconds = list(actions), {name: [] for name in actions}
    for i in tqdm(range(-warm_up, rounds), desc=progress, disable=progress is None):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            wait()
            start = time.perf_counter()
            actions[name]()
            wait()
            if i >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], reference: str = REFERENCE) -> dict[str, dict[str, float]]:
    """Each contender's time over the reference's in the same round: the median and the quartiles.

    Returns:
        {name: {"low": ..., "median": ..., "high": ...}}; half of the rounds lie from low to high.
    """
    found = {}
    for name, times in seconds.items():
        quartiles = numpy.quantile(numpy.divide(times, seconds[reference]), (0.25, 0.5, 0.75))
        found[name] = dict(zip(("low", "median", "high"), quartiles.tolist(), strict=True))
    return found


def memory(action, model: nn.Module, device: str = "cpu") -> int:
    """Bytes that one call of an action needs beside the model and what its optimizer keeps.

    On a GPU: its peak. On the CPU, where the process's memory tells more of the allocator: what the
    forward pass keeps for the backward pass, each storage once, the model's own parameters left out.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        return torch.cuda.max_memory_allocated() - before
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        action()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(size for place, size in kept.items() if place not in own)


def measure(setting: Setting, workload: str, rounds: int, models: dict, progress=None) -> list[dict]:
    """Measures contenders at one workload; one without trainable parameters takes no part in training.

    Args:
        setting: what is measured.
        workload: a key of `WORKLOADS`.
        rounds: how often each contender has its turn.
        models: from `make_contenders`, or some of them, `REFERENCE` included.
        progress: title of a progress bar; None: no bar.

    Returns:
        A record for each contender, with its memory where it is known; JSON can hold all of it.
    """
    batch, actions = make_batch(setting), {}
    for name, model in models.items():
        if workload != "training" or count_trained(model):
            with_tasks = "task_ids" in inspect.signature(model.forward).parameters
            inputs = {key: values for key, values in batch.items() if key != "task_ids" or with_tasks}
            actions[name] = WORKLOADS[workload](model, inputs)
    seconds = take_turns(actions, rounds, setting.device, 3 if setting.compile else 1, progress)
    found, records = ratios(seconds), []
    for name, action in actions.items():
        record = {"workload": workload, "contender": name, "setting": dataclasses.asdict(setting)}
        record |= {"trained": count_trained(models[name]), "ratio": found[name], "seconds": seconds[name]}
        known = workload == "training" or setting.device != "cpu"  # generation keeps nothing
        records.append(record | {"memory": memory(action, models[name], setting.device) if known else None})
    return records


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for field in dataclasses.fields(Setting)[:-1]:  # it measures with mixed tasks and with one
        kind = {"action": "store_true"} if field.type is bool else {"type": field.type}
        parser.add_argument("--" + field.name.replace("_", "-"), default=field.default, **kind)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="default: results/bench_DEVICE.json")
    arguments = vars(parser.parse_args())
    rounds, out = arguments.pop("rounds"), arguments.pop("out")
    setting = Setting(**arguments)
    where = provenance("lab.bench", setting.device)
    where["versions"]["peft"], where["threads"] = version("peft"), torch.get_num_threads()
    models, records = make_contenders(setting), []
    for workload in WORKLOADS:
        for mixed in (False, True):
            title = f"{workload}, {'a task for each row' if mixed else 'one task'}"
            now = dataclasses.replace(setting, mixed=mixed)
            measured = measure(now, workload, rounds, models, title)
            print({record["contender"]: round(record["ratio"]["median"], 2) for record in measured})
            records += measured
    out = out or RESULTS / f"bench_{torch.device(setting.device).type}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"provenance": where, "records": records}) + "\n")
    print(out)


if __name__ == "__main__":
    main()
