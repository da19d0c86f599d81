"""The experiment on real texts: one model, thirty customers, a few rows of each, and then new customers.

    python -m lab.real.experiment minilm --data FOLDER --model FOLDER     # results/customers_minilm/
    python -m lab.real.experiment smollm2 --device cuda                    # on a GPU, from the hub

Run it in the folder `book`. `results/customers_plan.md` has the questions and the rules, `customers.py` the
tasks. The pretrained model is frozen. Its lower half reads every text once; an adapter in the upper half, and
one linear head for all customers, choose A or B. Every finished run is a line of JSON, and no run that is
found there is done again.
"""

import argparse
import copy
import dataclasses
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import minitensorpoly as mtp

from .. import methods
from ..english.search import OWN_RATES, RATES
from ..records import RESULTS, provenance
from ..runs import Records, append, climb, line, rates_inside, work
from . import customers
from .choosers import linear_layers

BATCH, MAX_TOKENS = 16, 40
STEPS, FEW_STEPS, FEW_ROWS = 300, 30, 8  # of training; of few-shot transfer; rows in its batches
ROWS = (16, 64)  # of a customer that is trained on: two blocks of final runs, transfer in the first
SHOTS = (8, 32)  # rows of a new customer
N_TEST, N_OLD = 50, 4  # validation rows of a customer; for what a training customer loses
HEAD_RATE, OWN_RATE = 0.003, 0.1  # of the head; of routing and vectors while everything is trained
SPLITS = (1, 2, 3)  # of the final runs, each with a seed of its own
TRIALS = 10, 14  # of shapes and rates: for every contender, and at most while the best is at an edge
FEW_START = {"own": (0.1, 0.3, 1.0), "all": (1e-3, 3e-3, 1e-2)}
FEW_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Base:
    """A pretrained model, and the layers in which thirty private LoRAs of rank 1 have the budget together."""

    hub: str
    private: str


BASES = {
    "minilm": Base(
        "sentence-transformers/all-MiniLM-L6-v2", r".*(query|value|layer\.2\.attention\.self\.key)"
    ),
    "smollm2": Base("HuggingFaceTB/SmolLM2-135M-Instruct", r".*\.(q_proj|k_proj|v_proj)"),
}
BUDGET = 8  # rank of the LoRA that has as many factors
_MATRICES = ("n_skills=2", "n_skills=4", "n_skills=8")
_PRODUCTS = ("tensor_rank=4", "tensor_rank=8", "tensor_rank=16")
# {contender: shapes}; the rank of a shape follows from the budget.
SHAPES = {
    "LoRA": ("",),
    "LoRA, vector": ("",),
    "private LoRA": ("",),
    "Poly": _MATRICES,
    "MHR": _MATRICES,
    "TensorPoly-I": _PRODUCTS,
    "TensorPoly-II": _PRODUCTS,
}
VECTOR = "LoRA, vector"


@dataclasses.dataclass(frozen=True)
class Run:
    """One multi-task training, and the transfers from it.

    Args:
        base: a key of `BASES`.
        contender: a key of `SHAPES`.
        shape: one of its shapes.
        rows: of each training customer.
        split: number of the split.
        seed: of the adapter's start, the rows and their order.
        lr: learning rate of the factors.
        own_lr: learning rate of what each customer has of its own, routing or a vector.
        few_shot: (part, shots, learning rate) of each transfer to every new customer.
        forgetting: whether to see what the training customers lose by a transfer that trains everything.
    """

    base: str
    contender: str
    shape: str
    rows: int
    split: int
    seed: int
    lr: float
    own_lr: float
    few_shot: tuple = ()
    forgetting: bool = False

    @property
    def key(self) -> str:
        """All fields, as JSON: what tells runs apart."""
        return json.dumps(vars(self), sort_keys=True)


def run_of(record: dict) -> Run:
    """The run that a record is of."""
    return Run(**{field.name: record[field.name] for field in dataclasses.fields(Run)})


class Reader(nn.Module):
    """The upper half of a model with an adapter, and a head that makes two numbers of the mean state.

    Args:
        model: the upper half, adapted.
        n_customers: of those that have a vector.
        vector: whether each customer has a trained vector, which is added to the first token's state.
    """

    def __init__(self, model: nn.Module, n_customers: int, vector: bool):
        super().__init__()
        self.model, width = model, model.config.hidden_size
        self.head = nn.Linear(width, 2)
        self.vectors = nn.Parameter(torch.zeros(n_customers, width)) if vector else None

    def forward(self, states: Tensor, attention_mask: Tensor, task_ids: Tensor) -> Tensor:
        """(rows, tokens, width), (rows, tokens), (rows,) -> logits (rows, 2)"""
        if self.vectors is not None:
            states = torch.cat([states[:, :1] + self.vectors[task_ids][:, None], states[:, 1:]], 1)
        out = self.model(inputs_embeds=states, attention_mask=attention_mask, task_ids=task_ids)
        mask = attention_mask[..., None].to(states.dtype)
        return self.head((out.last_hidden_state * mask).sum(1) / mask.sum(1))

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """What is trainable: {"factors": ..., "own": routing or vectors, "head": ...}."""
        found = {"factors": [], "own": [], "head": [*self.head.parameters()]}
        for name, parameter in mtp.adapter_parameters(self.model).items():
            if parameter.requires_grad:
                found["own" if name.endswith("router.logits") else "factors"].append(parameter)
        if self.vectors is not None:
            found["own"].append(self.vectors)
        return found

    def add_customers(self, n: int) -> None:
        """Adds customers: their routing, or their vectors, are the mean of the others'."""
        mtp.add_tasks(self.model, n)
        if self.vectors is not None:
            old = self.vectors.detach()
            self.vectors = nn.Parameter(torch.cat([old, old.mean(0, keepdim=True).expand(n, -1)]))


class _Passed(nn.Module):
    """In place of the embeddings of an upper half: what it is given is what comes out."""

    def forward(self, *, inputs_embeds, **others):
        return inputs_embeds


@functools.lru_cache(maxsize=1)
def pretrained(folder: str):
    """The frozen model in float32, its upper half, which shares the weights, and its tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).requires_grad_(False).eval()
    return model, upper_half(model), tokenizer


def upper_half(model: nn.Module) -> nn.Module:
    """The upper half of a model's blocks, called with the lower half's states as `inputs_embeds`."""
    upper = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    blocks = upper.encoder if hasattr(upper, "encoder") else upper
    name = "layer" if hasattr(blocks, "layer") else "layers"
    setattr(blocks, name, getattr(blocks, name)[half(model) :])
    if hasattr(upper, "embeddings"):  # a BERT, which adds places to what it is given
        upper.embeddings = _Passed()
    return upper


def half(model) -> int:
    """The number of blocks below."""
    return model.config.num_hidden_layers // 2


@functools.lru_cache(maxsize=1)
def texts(data: str | None):
    """The rows of both data sets."""
    return customers.load(data)


def make_reader(run: Run, folder: str, device: str) -> Reader:
    """The pretrained model with a contender's adapter at its start."""
    torch.manual_seed(run.seed)
    _, base, _ = pretrained(folder)
    model = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    n, layers = len(customers.make_split(run.split).train), linear_layers(model)
    if run.contender == methods.PRIVATE:
        methods.adapt(model, methods.PRIVATE, n, target_modules=BASES[run.base].private)
    else:
        method = "LoRA" if run.contender == VECTOR else run.contender
        options = {k: int(v) for k, v in (part.split("=") for part in run.shape.split())}
        rank = methods.equal_rank(base, method, BUDGET, layers, **options)
        methods.adapt(model, method, n, target_modules=layers, rank=rank, **options)
    return Reader(model, n, run.contender == VECTOR).to(device).eval()  # without dropout


@torch.no_grad()
def encode(pairs: list[tuple], task_ids: list[int], folder: str, device: str) -> dict[str, Tensor]:
    """(text, label) and whose each is, as tensors: what the lower half makes of each text, and its mask."""
    model, _, tokenizer = pretrained(folder)
    model, parts = model.to(device), []
    of_all = tokenizer(
        [text for text, _ in pairs],
        truncation=True,
        max_length=MAX_TOKENS,
        padding="max_length",
        padding_side="right",
        return_tensors="pt",
    ).to(device)
    for rows in torch.arange(len(pairs), device=device).split(200):
        batch = {name: of_all[name][rows] for name in ("input_ids", "attention_mask")}
        parts.append(model(**batch, output_hidden_states=True).hidden_states[half(model)])
    return {
        "states": torch.cat(parts),
        "attention_mask": of_all["attention_mask"],
        "labels": torch.tensor([label for _, label in pairs], device=device),
        "task_ids": torch.tensor(task_ids),  # on the host: see minitensorpoly.routing
    }


@functools.lru_cache(maxsize=32)  # the trials of a search read the same rows
def rows_of(seed: int, which, split: str, n: int, first_id: int, folder, data, device) -> dict[str, Tensor]:
    """n rows of each customer of a tuple, one customer after the other, whose ids count from first_id."""
    all_of = texts(data)
    pairs, ids = [], []
    for i, customer in enumerate(which):
        pairs += customers.examples(all_of, customer, split, n, seed)
        ids += [first_id + i] * n
    return encode(pairs, ids, folder, device)


def select(data: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Rows of data, as long as their longest text."""
    batch = {name: column[rows.to(column.device)] for name, column in data.items()}
    longest = int(batch["attention_mask"].sum(1).max())
    return {name: column[:, :longest] if column.dim() > 1 else column for name, column in batch.items()}


def learn(reader: Reader, data: dict[str, Tensor], rates: dict[str, float], steps: int, rows: int, seed: int):
    """Trains the groups that have a rate, by Adam with warm-up, linear decay and clipping."""
    groups = {name: group for name, group in reader.groups().items() if group}
    chosen = [{"params": groups[name], "lr": lr} for name, lr in rates.items() if name in groups]
    for name, group in groups.items():
        for parameter in group:
            parameter.requires_grad_(name in rates)
    optimizer = torch.optim.Adam(chosen)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, max(1, steps // 15), steps)
    draw, n = torch.Generator().manual_seed(seed), len(data["labels"])
    for _ in range(steps):
        batch = select(data, torch.randint(n, (rows,), generator=draw) if n > rows else torch.arange(n))
        labels = batch.pop("labels")
        F.cross_entropy(reader(**batch), labels).backward()
        for group in chosen:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for group in groups.values():
        for parameter in group:
            parameter.requires_grad_(True)


@torch.no_grad()
def right(reader: Reader, data: dict[str, Tensor], n: int) -> list[int]:
    """Rows that are right, of each customer's n."""
    lengths, found = data["attention_mask"].sum(1), torch.zeros(len(data["labels"]), dtype=torch.long)
    for rows in lengths.cpu().argsort().split(200):  # like with like
        batch = select(data, rows)
        labels = batch.pop("labels")
        found[rows] = (reader(**batch).argmax(1) == labels).long().cpu()
    return found.view(-1, n).sum(1).tolist()


def parts_of(contender: str) -> tuple[str, ...]:
    """What few-shot transfer may train: what the new customer has of its own, or everything."""
    return ("all",) if contender in ("LoRA", methods.PRIVATE) else ("own", "all")


def execute(run: Run, folder: str, data: str | None, device: str) -> dict:
    """Trains, evaluates and transfers one run.

    Args:
        run: what to do.
        folder: of the pretrained model, or its name on the hub.
        data: folder of the data sets; None: the hub.
        device: cpu or cuda.

    Returns:
        JSON: the run's fields; numbers of its parameters; rows that are right, of each customer: `train`, of
        `N_TEST`; `transfers`, for each entry of few_shot, and with `forgetting` what it does to N_OLD rows of
        each training customer: `old`, beside `before`.
    """
    start, split = time.process_time(), customers.make_split(run.split)
    reader = make_reader(run, folder, device)
    common = folder, data, device
    n_train = len(split.train)
    train = rows_of(run.seed, split.train, "train", run.rows, 0, *common)
    test = rows_of(run.seed, split.train, "validation", N_TEST, 0, *common)
    rates = {"factors": run.lr, "own": run.own_lr, "head": HEAD_RATE}
    learn(reader, train, rates, STEPS, BATCH, run.seed)
    counts = {name: sum(p.numel() for p in group) for name, group in reader.groups().items()}
    record = dataclasses.asdict(run) | {"parameters": counts, "train": right(reader, test, N_TEST)}
    record["transfers"] = []
    old = select(test, torch.arange(n_train * N_TEST).view(n_train, -1)[:, :N_OLD].flatten())
    before = sum(right(reader, old, N_OLD)) if run.forgetting else 0
    private = run.contender == methods.PRIVATE
    new_id = 0 if private else n_train  # a new private LoRA is the first of an adapter of its own
    new = [
        (
            rows_of(run.seed, (customer,), "train", max(SHOTS), new_id, *common),
            rows_of(run.seed, (customer,), "validation", N_TEST, new_id, *common),
        )
        for customer in (split.known + split.new if run.few_shot else ())
    ]
    for part, shots, rate in run.few_shot:
        forgets = run.forgetting and part == "all" and not private
        trial = {"part": part, "shots": shots, "rate": rate, "right": []}
        trial |= {"before": before if forgets else 0, "old": []}
        for few, mine in new:
            if private:
                learner = make_reader(run, folder, device)
                learner.head.load_state_dict(reader.head.state_dict())
            else:
                learner = copy.deepcopy(reader, {id(p): p for p in pretrained(folder)[1].parameters()})
                learner.add_customers(1)
            few = select(few, _balanced(few["labels"], shots))  # its first rows
            rates = {"own": rate} if part == "own" else {"factors": rate, "own": OWN_RATE, "head": HEAD_RATE}
            if private:
                del rates["head"]  # it is everyone's, and what others answer must not change
            learn(learner, few, rates, FEW_STEPS, FEW_ROWS, run.seed)
            trial["right"] += right(learner, mine, N_TEST)
            if forgets:
                trial["old"].append(sum(right(learner, old, N_OLD)))
        record["transfers"].append(trial)
    return record | {"seconds": round(time.process_time() - start, 1)}


def _balanced(labels, n):
    """Places of the first n rows, as many of each label."""
    return torch.cat([(labels.cpu() == label).nonzero()[:, 0][: n // 2] for label in (0, 1)])


@dataclasses.dataclass(frozen=True)
class Search:
    """The search of one contender, on the development split; record: Run -> its record."""

    base: str
    contender: str
    record: Callable

    def _run(self, **changes) -> dict:
        return self.record(Run(self.base, self.contender, split=0, seed=1, **changes))

    def shape_and_rates(self) -> dict:
        """The shape, and the rates of factors and of what customers have of their own, with the fewest rows.

        A trial is judged by the accuracy on validation rows of the training customers.

        Returns:
            {"shape": ..., "lr": ..., "own_lr": ..., "closed": whether all neighbours of the best were tried}
        """
        shapes, has_own = SHAPES[self.contender], "own" in parts_of(self.contender)
        extent = len(shapes), len(RATES), len(OWN_RATES) if has_own else 1

        def neighbours(point):
            moved = [(*point[:a], point[a] + s, *point[a + 1 :]) for a in range(3) for s in (-1, 1)]
            return [p for p in moved if all(0 <= x < n for x, n in zip(p, extent, strict=True))]

        def settings(point):
            shape, lr, own = point
            return {"shape": shapes[shape], "lr": RATES[lr], "own_lr": OWN_RATES[own] if has_own else 0.0}

        def evaluate(point):
            return sum(self._run(rows=ROWS[0], **settings(point))["train"])

        own = OWN_RATES.index(0.1) if has_own else 0
        start = [(len(shapes) // 2, RATES.index(lr), own) for lr in (0.001, 0.005, 0.02)]
        everything = [
            (s, lr, o) for s in range(extent[0]) for lr in range(extent[1]) for o in range(extent[2])
        ]
        best, closed = climb(start, neighbours, everything, evaluate, *TRIALS)
        return settings(best) | {"closed": closed}

    def rate(self, rows: int) -> float:
        """The rate of the factors for another number of rows; shape and the other rate stay."""
        found = self.shape_and_rates()
        if rows == ROWS[0]:
            return found["lr"]
        middle = RATES.index(found["lr"])

        def evaluate(point):
            changes = {"shape": found["shape"], "own_lr": found["own_lr"], "lr": RATES[point[0]]}
            return sum(self._run(rows=rows, **changes)["train"])

        return RATES[line(len(RATES), (middle - 1, middle, middle + 1), evaluate)]

    def few_shot(self) -> dict[tuple[str, int], tuple[float, float]]:
        """{(part, shots): (rate, accuracy in percent)}, after training with the fewest rows.

        The rates of a part are tried for all numbers of shots, until for none the best one is at an end.
        """
        found = {k: v for k, v in self.shape_and_rates().items() if k != "closed"}
        best = {}

        def evaluate(part, rates):
            trials = tuple((part, shots, rate) for rate in rates for shots in SHOTS)
            return {
                (trial["shots"], trial["rate"]): 100 * sum(trial["right"]) / (N_TEST * len(trial["right"]))
                for trial in self._run(rows=ROWS[0], few_shot=trials, **found)["transfers"]
            }

        for part in parts_of(self.contender):
            chosen = rates_inside(FEW_RATES, FEW_START[part], SHOTS, functools.partial(evaluate, part))
            best |= {(part, shots): rate_and_score for shots, rate_and_score in chosen.items()}
        return best


def search_one(file: Path, base: str, contender: str, *where) -> None:
    """The whole search of a contender, or what is left of it."""
    search = Search(base, contender, Records(file, run_of, functools.partial(_execute, where)))
    search.few_shot()
    for rows in ROWS:
        search.rate(rows)


def final_runs(base: str, contender: str, record) -> list[Run]:
    """The final runs of a contender, block after block.

    Args:
        record: Run -> its record, of the finished search.
    """
    search = Search(base, contender, record)
    found = search.shape_and_rates()
    few_shot = tuple((part, n, rate) for (part, n), (rate, _) in search.few_shot().items())
    common = {"shape": found["shape"], "own_lr": found["own_lr"]}
    transfer = {"few_shot": few_shot, "forgetting": True}
    return [
        Run(
            base,
            contender,
            rows=rows,
            split=split,
            seed=split,
            lr=search.rate(rows),
            **common | (transfer if rows == ROWS[0] else {}),
        )
        for rows in ROWS
        for split in SPLITS
    ]


def final_one(file: Path, run: Run, *where) -> None:
    """One final run, unless it is recorded."""
    Records(file, run_of, functools.partial(_execute, where))(run)


def _execute(where, run):
    return execute(run, *where)


def search_file(folder: Path, contender: str) -> Path:
    """Where the trials of a contender are recorded."""
    return folder / f"search_{contender}.jsonl".replace(" ", "_").replace(",", "")


def main():
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", choices=BASES)
    parser.add_argument("--model", help="folder of the pretrained model (default: the hub)")
    parser.add_argument("--data", help="folder of the data sets, see customers.py (default: the hub)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--results", type=Path, help="folder of the finished runs (default: in results/)")
    arguments = parser.parse_args()
    folder = arguments.results or RESULTS / f"customers_{arguments.base}"
    where = (arguments.model or BASES[arguments.base].hub, arguments.data, arguments.device)
    command = f"python -m lab.real.experiment {arguments.base} --device {arguments.device}"
    append(folder / "provenance.jsonl", provenance("", arguments.device) | {"command": command})
    searches = [(search_one, search_file(folder, name), arguments.base, name, *where) for name in SHAPES]
    work(searches, arguments.workers, "search")
    runs = [
        run
        for name in SHAPES
        for run in final_runs(arguments.base, name, Records(search_file(folder, name), run_of))
    ]
    runs.sort(key=lambda run: (run.split, run.rows))  # contenders take turns
    work([(final_one, folder / "final.jsonl", run, *where) for run in runs], arguments.workers, "final")


if __name__ == "__main__":
    main()
