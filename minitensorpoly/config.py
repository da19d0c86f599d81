"""What an adapter is made of: the six methods as a table, and `AdapterConfig`, validated in one place."""

import dataclasses
import re
from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from .factors import MatrixFactor, TensorFactor


class Method(NamedTuple):
    """One row of the table of methods: which factor, and how its experts are routed."""

    factor: type[nn.Module]
    n_experts: str | int  # what is mixed: the option that counts the experts, or a number
    n_splits: str | int  # in how many places a task mixes them
    routed: bool  # whether a task has weights of its own for them
    options: tuple  # the options of an AdapterConfig that not every method has


_TENSOR = ("order", "tensor_rank", "normalize")
METHODS = {
    "lora": Method(MatrixFactor, 1, 1, False, ()),
    "tlora": Method(TensorFactor, "tensor_rank", 1, False, _TENSOR),
    "poly": Method(MatrixFactor, "n_skills", 1, True, ("n_skills",)),
    "mhr": Method(MatrixFactor, "n_skills", "n_heads", True, ("n_skills", "n_heads")),
    "tensorpoly-1": Method(TensorFactor, "tensor_rank", 1, True, _TENSOR),
    "tensorpoly-2": Method(TensorFactor, "tensor_rank", "order", True, _TENSOR),
}


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """An adapter's method and sizes. Options that a method does not have must be left at their defaults.

    Args:
        method: one of `lora`, `tlora`, `poly`, `mhr`, `tensorpoly-1`, `tensorpoly-2`.
        target_modules: regular expression; every module whose whole name matches is adapted.
        n_tasks: T, how many tasks there are; their ids are 0 … T - 1.
        rank: r, rank of the update B A.
        alpha: the update is scaled by alpha / rank; None: by 1.
        dropout: probability of dropping an entry of the adapter's input in training.
        order: N, leaves in a tensor product (tensor methods).
        tensor_rank: R, simple tensors in an entangled tensor (tensor methods).
        normalize: layer normalisation of pairs of leaves, as in the authors' code (tensor methods).
        n_skills: K, LoRA modules that are mixed (poly, mhr).
        n_heads: H, blocks that are routed on their own (mhr).

    Raises:
        ValueError: an argument is out of range, or is not one of the method's options.
        TypeError: an argument has another type.

    >>> AdapterConfig("tensorpoly-2", target_modules=r".*\\.(q|v)", order=3, tensor_rank=4).routing_shape
    (1, 3, 4)
    """

    method: str
    target_modules: str
    n_tasks: int = 1
    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    order: int = 2
    tensor_rank: int = 8
    normalize: bool = False
    n_skills: int = 8
    n_heads: int = 8

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; the methods are {', '.join(METHODS)}")
        for name, default in [(field.name, field.default) for field in dataclasses.fields(self)]:
            value, owners = getattr(self, name), [m for m, row in METHODS.items() if name in row.options]
            if owners and self.method not in owners and value != default:
                raise ValueError(f"{self.method} has no {name}={value!r}; only {', '.join(owners)} have")
        for name in ("n_tasks", "rank", "order", "tensor_rank", "n_skills", "n_heads"):
            check(name, getattr(self, name), int, lambda n: n >= 1, "an integer of at least 1")
        check("normalize", self.normalize, bool, lambda _: True, "True or False")
        check("dropout", self.dropout, (int, float), lambda p: 0 <= p < 1, "a number from 0 to below 1")
        if self.alpha is not None:
            check("alpha", self.alpha, (int, float), lambda a: 0 < a < float("inf"), "a number above 0")
        check("target_modules", self.target_modules, str, _compiles, "a regular expression, in a string")

    @property
    def scale(self) -> float:
        """What the update B A x is multiplied by: alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def routed(self) -> bool:
        """Whether tasks differ: False for `lora` and `tlora`."""
        return METHODS[self.method].routed

    @property
    def routing_shape(self) -> tuple[int, int, int]:
        """(tasks, splits, experts): the shape of the routing logits Z."""
        row = METHODS[self.method]
        counts = (getattr(self, n) if isinstance(n, str) else n for n in (row.n_splits, row.n_experts))
        return self.n_tasks, *counts

    def make_factor(self, dim: int) -> nn.Module:
        """One factor, A or B, for a side of a layer with `dim` features."""
        row, (_, splits, experts) = METHODS[self.method], self.routing_shape
        shape = {name: getattr(self, name) for name in ("order", "normalize") if name in row.options}
        return row.factor(dim, self.rank, n_experts=experts, n_splits=splits, **shape)


def check(name: str, value, kind, fits: Callable, in_words: str) -> None:
    """Raises TypeError or ValueError, with a sentence, unless a value is of a kind and fits."""
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise TypeError(f"{name}={value!r} must be {in_words}, not of type {type(value).__name__}")
    if not fits(value):
        raise ValueError(f"{name}={value!r} must be {in_words}")


def _compiles(pattern):
    try:
        return bool(re.compile(pattern))
    except re.error:
        return False
