"""What an adapter costs in time and memory, as a ratio to PEFT's LoRA of the same rank.

    python -m lab.cost.bench cpu                      # a profile: results/cost_cpu.json and scaling_cpu.json
    python -m lab.cost.bench gpu                      # the same on a GPU, at the shape of T0-3B
    python -m lab.cost.bench custom --width 768 --layers 12 --dtype bfloat16      # a setting of your own

All contenders live in one process and share the weights of one base model. They take turns: in a
round each does the same work once. A machine that is busy for a while slows all of a round, so the
ratio of two contenders within a round is steadier than the seconds of either.

The costs are those of a whole T5. How they grow is measured on a stack of linear layers with nothing
between them: there an adapter has nowhere to hide.
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
from types import SimpleNamespace

import numpy
import pandas
import peft
import torch
from torch import nn
from tqdm import tqdm
from transformers import T5Config, T5ForConditionalGeneration

import minitensorpoly as mtp

from ..methods import EQUAL_SIZE
from ..real.plans import T5_SIZES
from ..records import RESULTS, provenance

REFERENCE = "PEFT LoRA"
CONTROL = "PEFT LoRA again"  # a second copy: how far apart two equal contenders come out
OURS = {name: options["method"] for name, options in EQUAL_SIZE.items()}  # all with the same rank here
TARGET_MODULES = r"\d+|.*\.(q|k|v|o|wi|wi_0|wi_1|wo)"  # every layer of a stack, or of a T5's blocks


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured: a model, the adapters on all its linear layers, a batch, and where it runs."""

    model: str = "T5"  # or "stack": linear layers alone
    width: int = 512  # features of the model
    feed_forward: int = 2048  # inner features of a T5's feed-forward layers
    gated: bool = False  # whether those are gated, as in T5 version 1.1
    layers: int = 6  # in the encoder, and again in the decoder; or in the stack
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
    compile: bool = False  # encoder and decoder, or the stack
    mixed: bool = True  # a task for each row, as far as there are tasks; False: one task for all rows


class Stack(nn.Sequential):
    """Linear layers of equal width, one after the other, called like a T5 that is trained."""

    def __init__(self, width: int, layers: int):
        super().__init__(*(nn.Linear(width, width, bias=False) for _ in range(layers)))

    def forward(self, inputs):
        return SimpleNamespace(loss=super().forward(inputs).square().mean())


def make_base(setting: Setting) -> nn.Module:
    """A random model of the setting's shape, frozen, without dropout."""
    if setting.model == "stack":
        model = Stack(setting.width, setting.layers)
    else:
        config = T5Config(
            vocab_size=setting.vocabulary,
            d_model=setting.width,
            d_ff=setting.feed_forward,
            d_kv=64,
            num_heads=max(1, setting.width // 64),
            num_layers=setting.layers,
            feed_forward_proj="gated-gelu" if setting.gated else "relu",
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
        with torch.device(setting.device):  # billions of random numbers are drawn where they are needed
            model = T5ForConditionalGeneration(config)
    return model.requires_grad_(False).to(setting.device, getattr(torch, setting.dtype))


def make_contenders(setting: Setting) -> dict[str, nn.Module]:
    """{name: model}, all with the weights of one base; only merged layers have weights of their own.

    A stack is measured in training alone, in which base and merged model take no part.
    """
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
    models = {}
    if setting.model != "stack":
        models = {"base": fresh(), "merged": mtp.merge(adapted("tensorpoly-1"), task=0)}
    with warnings.catch_warnings():  # PEFT 0.21 uses an old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        for name, config in ((REFERENCE, lora), (CONTROL, lora), ("PEFT Poly", poly)):
            models[name] = peft.get_peft_model(fresh(), config).base_model
    models |= {name: adapted(method) for name, method in OURS.items()}
    if setting.compile:  # the contenders are of the same classes, so they share one cache of compiled code
        torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 4096
        for model in models.values():
            parts = [model] if setting.model == "stack" else [model.get_encoder(), model.get_decoder()]
            for part in parts:
                part.compile()
    return models


def count_trained(model: nn.Module) -> int:
    """Trainable parameters; none in the base and in a merged model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def make_batch(setting: Setting) -> dict[str, torch.Tensor]:
    """Random inputs and task_ids."""
    rows = torch.arange(setting.rows)
    batch = {"task_ids": rows % setting.n_tasks if setting.mixed else torch.zeros_like(rows)}
    if setting.model == "stack":
        shape = setting.rows, setting.tokens, setting.width
        batch["inputs"] = torch.randn(shape, dtype=getattr(torch, setting.dtype))
    else:
        for name, tokens in (("input_ids", setting.tokens), ("labels", setting.new_tokens)):
            batch[name] = torch.randint(2, setting.vocabulary, (setting.rows, tokens))
    # Ids on the host tell the library whether all rows have one task, without waiting for a device.
    return {name: t if name == "task_ids" else t.to(setting.device) for name, t in batch.items()}


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


def memory(model: nn.Module, batch: dict, device: str = "cpu") -> int:
    """Bytes that a training step needs beside the model and what its optimizer keeps.

    On a GPU: the step's peak. On the CPU, where the process's memory tells more of the allocator: what
    the forward pass keeps for the backward pass, each storage once, the model's own parameters left out.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        training(model, batch)()
        return torch.cuda.max_memory_allocated() - before
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(**batch)  # alive until all is counted, or storages would take each other's place
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    del output
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
        A record for each contender, with the memory of a training step; JSON can hold all of it.
    """
    batch, actions, inputs = make_batch(setting), {}, {}
    for name, model in models.items():
        if workload != "training" or count_trained(model):
            with_tasks = "task_ids" in inspect.signature(model.forward).parameters or "Poly" in name
            inputs[name] = {key: values for key, values in batch.items() if key != "task_ids" or with_tasks}
            actions[name] = WORKLOADS[workload](model, inputs[name])
    seconds = take_turns(actions, rounds, setting.device, 3 if setting.compile else 1, progress)
    found, records = ratios(seconds), []
    for name in actions:
        record = {"workload": workload, "contender": name, "setting": dataclasses.asdict(setting)}
        record |= {"trained": count_trained(models[name]), "ratio": found[name], "seconds": seconds[name]}
        if workload == "training":
            record["memory"] = memory(models[name], inputs[name], setting.device)
        records.append(record)
    return records


SMALL = Setting()  # the shape of T5-small
T0 = T5_SIZES["T0-3B"]
T0_3B = Setting(width=T0["d_model"], feed_forward=T0["d_ff"], gated=True, layers=24, rows=8, tokens=256)
ON_GPU = {"device": "cuda", "dtype": "bfloat16"}
STACK = Setting(model="stack", layers=2, rows=16, tokens=16)
GROWTH = {  # the options of a stack that grow, one at a time
    "width": (256, 512, 1024, 2048, 4096, 8192),
    "experts": (1, 2, 4, 8, 16, 32),
    "order": (1, 2, 3, 4, 6, 8),
    "n_tasks": (8, 64, 512, 4096),
}
TINY = {"width": 64, "feed_forward": 128, "layers": 1, "vocabulary": 50, "rank": 4, "tokens": 6}
FEW_ROWS = dataclasses.replace(SMALL, rows=4)
REHEARSED = dataclasses.replace(SMALL, **TINY, new_tokens=3)
PROFILES = {  # settings whose cost is measured, each with its rounds; a stack, and the rounds of its growth
    "cpu": ([(SMALL, 5), (FEW_ROWS, 5)], (STACK, GROWTH, 11)),
    "gpu": (
        [(dataclasses.replace(now, **ON_GPU), 20) for now in (T0_3B, SMALL, FEW_ROWS)]
        + [(dataclasses.replace(T0_3B, **ON_GPU, compile=True), 20)],
        (dataclasses.replace(STACK, **ON_GPU, tokens=256), GROWTH, 20),
    ),
    "rehearsal": (
        [(REHEARSED, 1), (dataclasses.replace(REHEARSED, gated=True, dtype="bfloat16"), 1)],
        (dataclasses.replace(STACK, **TINY), {name: values[:2] for name, values in GROWTH.items()}, 1),
    ),
}


def measure_cost(setting: Setting, rounds: int) -> list[dict]:
    """Records of all contenders, at both workloads, with batches of one task and of many."""
    models, records = make_contenders(setting), []
    for workload in WORKLOADS:
        for mixed in (True, False):
            now = dataclasses.replace(setting, mixed=mixed)
            title = f"{workload}, {'a task for each row' if mixed else 'one task'}"
            records += measure(now, workload, rounds, models, title)
    return records


def measure_growth(setting: Setting, growth: dict, rounds: int) -> list[dict]:
    """Records of training steps of a stack, in which one option after the other takes its values."""
    records = []
    for option, values in growth.items():
        for value in values:
            now = dataclasses.replace(setting, **{option: value})
            found = measure(now, "training", rounds, make_contenders(now), f"{option} {value}")
            records += [record | {"option": option, "value": value} for record in found]
    return records


def table(records: list[dict]) -> pandas.DataFrame:
    """A row for each record: its setting, workload and contender, and what it costs.

    Columns low, median and high are those of its time as a ratio to the reference, and memory is a ratio
    to the reference's in the same measurement.
    """
    rows = []
    for record in records:
        row = (
            record["setting"] | record["ratio"] | {k: record[k] for k in ("workload", "contender", "trained")}
        )
        row |= {key: record[key] for key in ("option", "value") if key in record}
        rows.append(row | {"memory": record.get("memory")})
    found = pandas.DataFrame(rows)
    keys = [*records[0]["setting"], "workload"]
    of_reference = found["memory"].where(found["contender"] == REFERENCE)
    reference = of_reference.groupby([found[key] for key in keys]).transform("max")
    return found.assign(memory=found["memory"] / reference)


def write(file: Path, where: dict, records: list) -> None:
    """Writes records with their provenance."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"provenance": where, "records": records}) + "\n")
    print(file)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("profile", choices=[*PROFILES, "custom"])
    for field in dataclasses.fields(Setting)[:-1]:  # it measures with mixed tasks and with one
        kind = {"action": "store_true"} if field.type is bool else {"type": field.type}
        parser.add_argument("--" + field.name.replace("_", "-"), default=field.default, **kind)
    parser.add_argument("--rounds", type=int, help="default: the profile's, or 20")
    parser.add_argument("--only", choices=["cost", "growth"], help="one of a profile's two parts")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    arguments = vars(parser.parse_args())
    profile, rounds, only, folder = (arguments.pop(k) for k in ("profile", "rounds", "only", "folder"))
    own = Setting(**arguments)
    if profile != "custom" and own != Setting():
        parser.error(f"the profile {profile} has settings of its own; for yours take custom")
    settings, growth = PROFILES.get(profile, ([(own, 20)], None))
    where = provenance("lab.cost.bench", settings[0][0].device)
    where["versions"]["peft"], where["threads"] = version("peft"), torch.get_num_threads()
    if growth and only != "cost":
        write(folder / f"scaling_{profile}.json", where, measure_growth(*growth[:2], rounds or growth[2]))
    records = []
    for setting, usual in settings if only != "growth" else []:
        records += measure_cost(setting, rounds or usual)
        write(folder / f"cost_{profile}.json", where, records)


if __name__ == "__main__":
    main()
