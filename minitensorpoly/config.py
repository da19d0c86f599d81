"""What an adapter is made of: the six methods as a table, and `AdapterConfig`, validated in one place."""

import dataclasses
import math
import re
from typing import NamedTuple

from torch import nn

from .factors import MatrixFactor, TensorFactor


class Method(NamedTuple):
    """One row of the table of methods: which factor, and how its experts are routed."""

    factor: type[nn.Module]
    n_experts: str | int  # what is mixed: the option that counts the experts, or a number
    n_splits: str | int  # in how many places a task mixes them
    routed: bool  # whether a task has weights of its own for them
    options: dict  # the options that this method has beyond those of all, with their defaults


_TENSOR = {"order": 2, "tensor_rank": 8, "normalize": False}
_ROUTING = {"share_routing": None, "noise_temperature": None}
_MHR = {"n_skills": 8, "n_heads": 8}
METHODS = {
    "lora": Method(MatrixFactor, 1, 1, False, {}),
    "tlora": Method(TensorFactor, "tensor_rank", 1, False, _TENSOR),
    "poly": Method(MatrixFactor, "n_skills", 1, True, _ROUTING | {"n_skills": 8}),
    "mhr": Method(MatrixFactor, "n_skills", "n_heads", True, _ROUTING | _MHR),
    "tensorpoly-1": Method(TensorFactor, "tensor_rank", 1, True, _ROUTING | _TENSOR),
    "tensorpoly-2": Method(TensorFactor, "tensor_rank", "order", True, _ROUTING | _TENSOR),
}


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """An adapter's method and sizes. Options that a method does not have must be left at None.

    Args:
        method: one of `lora`, `tlora`, `poly`, `mhr`, `tensorpoly-1`, `tensorpoly-2`.
        target_modules: regular expression; every module whose whole name matches is adapted.
        n_tasks: T, how many tasks there are; their ids are 0 … T - 1.
        rank: r, rank of the update B A.
        alpha: the update is scaled by alpha / rank; None: by 1.
        dropout: probability of dropping an entry of the adapter's input in training.
        order: N, leaves in a tensor product (tensor methods; default 2).
        tensor_rank: R, simple tensors in an entangled tensor (tensor methods; default 8).
        normalize: layer normalisation of pairs of leaves, as in the authors' code, which the
            paper does not mention (tensor methods; default False).
        n_skills: K, LoRA modules that are mixed (poly, mhr; default 8).
        n_heads: H, blocks that are routed on their own (mhr; default 8).
        share_routing: regular expression with one group, matched against the whole name of each
            adapted layer; layers for which the group reads the same share their routing.
            None: each layer routes on its own (routed methods).
        noise_temperature: temperature of relaxed-Bernoulli noise on the routing in training, as
            in Poly (Ponti et al. 2023); None: no noise (routed methods).

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
    order: int | None = None
    tensor_rank: int | None = None
    normalize: bool | None = None
    n_skills: int | None = None
    n_heads: int | None = None
    share_routing: str | None = None
    noise_temperature: float | None = None

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; the methods are {', '.join(METHODS)}")
        options = METHODS[self.method].options
        for name in _TENSOR | _MHR | _ROUTING:
            value, owners = getattr(self, name), [m for m in METHODS if name in METHODS[m].options]
            if value is not None and self.method not in owners:
                have = f"only {', '.join(owners)} have"
                raise ValueError(f"{name}={value!r}: {self.method} has no {name}; {have}")
            if value is None:
                object.__setattr__(self, name, options.get(name))
        counts = [name for name in ("order", "tensor_rank", "n_skills", "n_heads") if name in options]
        for name in ("n_tasks", "rank", *counts):
            check_integer(name, getattr(self, name), at_least=1)
        if "normalize" in options and not isinstance(self.normalize, bool):
            raise TypeError(f"normalize={self.normalize!r} must be True or False")
        _check_number("dropout", self.dropout, lambda p: 0 <= p < 1, "at least 0 and below 1")
        for name in ("alpha", "noise_temperature"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), lambda number: number > 0, "above 0")
        _check_pattern("target_modules", self.target_modules)
        if self.share_routing is not None and _check_pattern("share_routing", self.share_routing).groups != 1:
            example = r"for instance '(encoder|decoder)\..*'"
            raise ValueError(f"share_routing={self.share_routing!r} must have exactly one group, {example}")

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


def check_integer(name: str, value, at_least: int, below: int | None = None) -> None:
    """Raises TypeError or ValueError, with a sentence, unless at_least <= value < below."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r} must be an integer, not {type(value).__name__}")
    if value < at_least or (below is not None and value >= below):
        limit = f" and below {below}" if below else ""
        raise ValueError(f"{name}={value} must be at least {at_least}{limit}")


def _check_number(name, value, fits, wanted):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r} must be a number, not {type(value).__name__}")
    if not math.isfinite(value) or not fits(value):
        raise ValueError(f"{name}={value} must be {wanted}")


def _check_pattern(name, value):
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} must be a regular expression as a string")
    try:
        return re.compile(value)
    except re.error as error:
        raise ValueError(f"{name}={value!r} is not a regular expression: {error}") from None
