"""What is compared: adapters of equal size, each in several shapes, some of them told the task by vectors.

Everything that a contender trains is one of two kinds. *Factors* serve all tasks: the matrices or leaves.
What a task has of its *own* serves that task alone: its row of routing logits, or its trained vectors.
"""

import dataclasses
import functools

import torch
from torch import Tensor, nn

import minitensorpoly as mtp

from .. import methods
from .backbone import load_backbone

LETTERS = {"N": "order", "R": "tensor_rank", "K": "n_skills", "H": "n_heads", "r": "rank"}
ALL_LAYERS = "q|k|v|o|wi|wo"  # the 32 linear layers of the backbone


@dataclasses.dataclass(frozen=True)
class Contender:
    """One side of the comparison.

    Args:
        method: of `minitensorpoly`.
        vector: whether each task has a trained vector, which is added to the embedding of the first word.
        layer_vectors: whether each task has a trained vector of r numbers in each layer, added to A x.
        private: whether each task has a LoRA of its own, and nothing is shared.
    """

    method: str
    vector: bool = False
    layer_vectors: bool = False
    private: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """What few-shot transfer may train.

        "own": what the new task has of its own. "all": that and the factors. "factors": the factors,
        while routing stays uniform.
        """
        if mtp.METHODS[self.method].routed and not self.private:
            return ("own", "all", "factors")
        return ("own", "all") if self.vector or self.layer_vectors else ("all",)

    @property
    def has_own(self) -> bool:
        """Whether a new task has something of its own beside the factors."""
        return "own" in self.parts


CONTENDERS = {
    "LoRA": Contender("lora"),
    "TLoRA": Contender("tlora"),
    "LoRA, vector": Contender("lora", vector=True),
    "TLoRA, vector": Contender("tlora", vector=True),
    "LoRA, layer vectors": Contender("lora", layer_vectors=True),
    "private LoRA": Contender("poly", private=True),
    "private LoRA, 3 times": Contender("poly", private=True),
    "Poly": Contender("poly"),
    "MHR": Contender("mhr"),
    "TensorPoly-I": Contender("tensorpoly-1"),
    "TensorPoly-I, N=4": Contender("tensorpoly-1"),
    "TensorPoly-II": Contender("tensorpoly-2"),
}

# The factors of a LoRA of rank r are 4,608 r at width 64, and 18,432 r at width 256.
BUDGETS = {(64, "large"): 36_864, (64, "small"): 9_216, (256, "large"): 147_456}

_MATRICES = {8: ("K=8 r=1", "K=4 r=2", "K=2 r=4"), 2: ("K=2 r=1",)}
_PRODUCTS = {  # R times r, at order 2 and at order 4
    32: ("N=2 R=32 r=1", "N=2 R=16 r=2", "N=2 R=8 r=4", "N=2 R=4 r=8", "N=2 R=2 r=16"),
    45: ("N=4 R=45 r=1", "N=4 R=15 r=3", "N=4 R=9 r=5", "N=4 R=5 r=9", "N=4 R=3 r=15"),
    8: ("N=2 R=8 r=1", "N=2 R=4 r=2", "N=2 R=2 r=4"),
    12: ("N=4 R=6 r=2", "N=4 R=4 r=3", "N=4 R=3 r=4"),
    64: ("N=2 R=32 r=2", "N=2 R=16 r=4", "N=2 R=8 r=8", "N=2 R=4 r=16"),
    140: ("N=4 R=35 r=4", "N=4 R=20 r=7", "N=4 R=14 r=10", "N=4 R=10 r=14"),
}
# 24 LoRAs of rank 1 have three times the large budget on all layers, and the budget itself on a third.
_THIRDS = ("r=1 on=q|v", "r=1 on=wi|wo", "r=1 on=k|o")


def _shapes(matrices, order_2, order_4):
    """{contender: rows of shapes}: a row goes from the least rank to the greatest, a row an order."""
    dense, poly = f"r={matrices}", _MATRICES[matrices]
    two, four = _PRODUCTS[order_2], _PRODUCTS[order_4]
    return {
        "LoRA": ((dense,),),
        "TLoRA": (two,),
        "LoRA, vector": ((dense,),),
        "TLoRA, vector": (two,),
        "LoRA, layer vectors": ((dense,),),
        "private LoRA": (_THIRDS,),
        "private LoRA, 3 times": (("r=1",),),
        "Poly": (poly,),
        "MHR": (tuple(f"{shape} H=8" for shape in poly),),
        "TensorPoly-I": (two,),
        "TensorPoly-I, N=4": (four,),
        "TensorPoly-II": (two, four),
    }


SHAPES = {
    (64, "large"): _shapes(8, 32, 45),
    (64, "small"): _shapes(2, 8, 12),
    (256, "large"): _shapes(8, 64, 140),
}
for _name in ("TLoRA", "private LoRA", "private LoRA, 3 times"):
    del SHAPES[64, "small"][_name]
# A run of width 256 takes several times as long: fewer contenders there, all of them told the task.
for _name in (
    "LoRA",
    "TLoRA",
    "TLoRA, vector",
    "private LoRA",
    "private LoRA, 3 times",
    "TensorPoly-II",
):
    del SHAPES[256, "large"][_name]


def options(contender: str, shape: str) -> dict:
    """The options of `AdapterConfig` that a shape stands for, written in the book's letters.

    >>> options("Poly", "K=4 r=2")
    {'method': 'poly', 'target_modules': '(.*\\\\.)?(q|k|v|o|wi|wo)', 'n_skills': 4, 'rank': 2}
    """
    values = dict(part.split("=") for part in shape.split())
    layers = values.pop("on", ALL_LAYERS)
    sizes = {LETTERS[letter]: int(value) for letter, value in values.items()}
    return {"method": CONTENDERS[contender].method, "target_modules": rf"(.*\.)?({layers})"} | sizes


def build(width: int, contender: str, shape: str, n_tasks: int, seed: int) -> nn.Module:
    """The backbone with a contender's adapter at its start, which changes nothing yet.

    A contender with a vector has a parameter `task_vectors` (tasks, width), which starts at zero. One with
    vectors in its layers has one of (tasks, layers, r), and its layers add each row's to A x.
    """
    torch.manual_seed(seed)
    model, config = load_backbone(width)[0], options(contender, shape)
    if CONTENDERS[contender].private:
        methods.adapt(model, methods.PRIVATE, n_tasks, **config)
    else:
        mtp.adapt(model, mtp.AdapterConfig(n_tasks=n_tasks, **config))
    if CONTENDERS[contender].vector:
        model.task_vectors = nn.Parameter(torch.zeros(n_tasks, width))
    if CONTENDERS[contender].layer_vectors:
        layers = mtp.adapted_layers(model).values()
        model.task_vectors = nn.Parameter(torch.zeros(n_tasks, len(layers), config["rank"]))
        for number, layer in enumerate(layers):
            layer.register_forward_hook(functools.partial(_add_vector, model.task_vectors, number))
    return model


def _add_vector(vectors, number, layer, inputs, output):
    """B (A x + v) in place of B A x, with the vector v of each row's task."""
    ids = layer.adaptation.task_ids_of(inputs[0], layer.name)
    own = vectors[ids.expand(len(output)), number] @ layer.B() * layer.adaptation.config.scale  # (rows, out)
    return output + own[:, None]


def parameters(model) -> dict[str, list[nn.Parameter]]:
    """What is trainable: {"factors": ..., "own": routing logits, or vectors}."""
    groups = {"factors": [], "own": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = name.endswith("router.logits") or name == "task_vectors"
            groups["own" if own else "factors"].append(parameter)
    return groups


def logits(model, batch: dict[str, Tensor], vectors: Tensor | None = None, **task_ids) -> Tensor:
    """What the model predicts for every token of the targets, each after the right ones before it.

    Args:
        model: a T5.
        batch: input_ids, attention_mask and labels, all (rows, tokens).
        vectors: (rows, width), added to the embedding of each row's first word; None: nothing is added.
        task_ids: perhaps task_ids=(rows,), for an adapted model.

    Returns:
        (rows, tokens, words)
    """
    inputs = {name: batch[name] for name in ("attention_mask", "labels")} | task_ids
    if vectors is None:
        return model(input_ids=batch["input_ids"], use_cache=False, **inputs).logits
    first, rest = model.get_input_embeddings()(batch["input_ids"]).split(
        [1, batch["input_ids"].shape[1] - 1], 1
    )
    return model(
        inputs_embeds=torch.cat([first + vectors[:, None], rest], 1), use_cache=False, **inputs
    ).logits


def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether greedy decoding would write the whole target, for each row.

    It would if and only if, after every right beginning, the likeliest next word is the right one.

    Args:
        logits: (rows, tokens, words), predicted after the right words before.
        labels: (rows, tokens), -100 where there is nothing to write.

    Returns:
        (rows,) booleans.
    """
    return ((logits.argmax(-1) == labels) | (labels == -100)).all(1)
