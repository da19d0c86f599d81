"""The tensor product, the leaves, and the factor of each method against a slow construction."""

import functools
import math

import pytest
import torch
from common import METHODS, ROUTED, TENSOR, adapted_linear, make_config
from torch import nn

import minitensorpoly as mtp

ORDERS = range(1, 9)


@pytest.mark.parametrize("n", ORDERS)
def test_tensor_product_equals_kron(n):
    leaves = [torch.randn(2 + i % 2, dtype=torch.float64) for i in range(n)]
    expected = functools.reduce(torch.kron, leaves)
    torch.testing.assert_close(mtp.tensor_product(leaves), expected, rtol=1e-14, atol=0)


def test_tensor_product_works_over_leading_axes():
    leaves = [torch.randn(3, 1, 2), torch.randn(3, 4, 5), torch.randn(4, 3)]
    product = mtp.tensor_product(leaves)
    assert product.shape == (3, 4, 30)
    one = torch.kron(torch.kron(leaves[0][2, 0], leaves[1][2, 3]), leaves[2][3])
    torch.testing.assert_close(product[2, 3], one)


@pytest.mark.parametrize("dim, order, size", [(243, 5, 3), (3125, 5, 5), (7776, 5, 6), (16807, 5, 7)])
def test_leaf_size_of_an_exact_power_is_its_root(dim, order, size):
    assert mtp.leaf_size(dim, order) == size


@pytest.mark.parametrize("order", ORDERS)
def test_leaf_size_is_the_smallest_that_covers(order):
    for dim in [*range(1, 300), 4096, 5120, 59049, 10**6, 3**12 - 1, 3**12, 3**12 + 1]:
        size = mtp.leaf_size(dim, order)
        assert size**order >= dim and (size == 1 or (size - 1) ** order < dim)


def slow_factor(factor, method, weights):
    """The factor of one task, (rank, dim), from the table of methods, with loops and `torch.kron`."""

    def product(leaves):  # one row's leaves, (order, leaf_size)
        return functools.reduce(torch.kron, leaves)[: factor.dim]

    def entangled(r, w):
        return sum(w[k] * product(leaves[:, k, r]) for k in range(leaves.shape[1]))

    if method in TENSOR:
        leaves = factor.leaves
        order, experts, rank, _ = leaves.shape
        if method == "tensorpoly-2":
            mixed = [sum(weights[n, k] * leaves[n, k] for k in range(experts)) for n in range(order)]
            return torch.stack([product([leaf[r] for leaf in mixed]) for r in range(rank)])
        return torch.stack(
            [entangled(r, torch.ones(experts) if weights is None else weights[0]) for r in range(rank)]
        )
    if weights is None:
        return factor.matrices[0]
    blocks = factor.matrices.chunk(len(weights), dim=-1)
    return torch.cat(
        [sum(w[k] * block[k] for k in range(len(w))) for w, block in zip(weights, blocks, strict=True)], -1
    )


@pytest.mark.parametrize(
    "method, order", [(m, n) for m in METHODS for n in (ORDERS if m in TENSOR else [None])]
)
def test_output_equals_a_slow_construction(method, order):
    dims = (12, 20) if method == "mhr" else (13, 21)
    model = adapted_linear(method, *dims, order=order, alpha=3.0)
    layer, base = model[0], model[0].base
    x, ids = torch.randn(4, 6, dims[0], dtype=torch.float64), torch.tensor([2, 0, 4, 2])
    with torch.no_grad():
        y = model(x, task_ids=ids)
        for i, t in enumerate(ids):
            weights = layer.router and torch.sigmoid(layer.router.logits[t])
            if weights is not None:
                weights = weights / weights.sum(-1, keepdim=True)
            A, B = (slow_factor(f, method, weights) for f in (layer.A, layer.B))
            expected = base(x[i]) + 3.0 / 4 * x[i] @ A.T @ B
            torch.testing.assert_close(y[i], expected, rtol=1e-10, atol=1e-12)


def test_tensorpoly_1_of_order_1_is_poly():
    one = adapted_linear("tensorpoly-1", order=1)
    poly = adapted_linear("poly", n_skills=3)
    with torch.no_grad():
        poly[0].router.logits.copy_(one[0].router.logits)
        for a, b in ((one[0].A, poly[0].A), (one[0].B, poly[0].B)):
            b.matrices.copy_(a.leaves[0])
    x, ids = torch.randn(5, 12, dtype=torch.float64), torch.arange(5)
    torch.testing.assert_close(one(x, task_ids=ids), poly(x, task_ids=ids), rtol=1e-13, atol=0)


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("tensor_rank", [1, 8])
@pytest.mark.parametrize("method", METHODS)
def test_entries_of_A_start_with_the_variance_of_lora(method, tensor_rank, order):
    if method not in TENSOR and (order, tensor_rank) != (1, 1):
        pytest.skip("no tensor product")
    torch.manual_seed(0)
    variances = []
    for _ in range(20):
        model = nn.Sequential(nn.Linear(256, 4))
        config = make_config(method, "0", rank=64, n_tasks=1, n_heads=4, tensor_rank=tensor_rank, order=order)
        A, _ = mtp.adapt(model, config)[0].lora(task=0)
        variances.append(A.var())
    kaiming = nn.init.kaiming_uniform_(torch.empty(4000, 256), a=math.sqrt(5)).var()
    assert torch.stack(variances).mean().item() == pytest.approx(kaiming.item(), rel=0.1)


@pytest.mark.parametrize("method", METHODS)
def test_parameters_follow_their_formula(method):
    d, o, r, T, K, H, R, N = 64, 100, 3, 7, 5, 4, 6, 3
    config = make_config(method, "0", rank=r, n_tasks=T, n_skills=K, n_heads=H, tensor_rank=R, order=N)
    model = mtp.adapt(nn.Sequential(nn.Linear(d, o)), config)
    sizes = {name: p.numel() for name, p in mtp.adapter_parameters(model).items()}
    routing = sizes.pop("0.router.logits", 0)
    leaves = N * R * r * (4 + 5)  # 4**3 = 64, 5**3 >= 100
    factors = {"lora": r * (d + o), "poly": K * r * (d + o), "mhr": K * r * (d + o)}
    experts = {"poly": T * K, "mhr": T * H * K, "tensorpoly-1": T * R, "tensorpoly-2": T * N * R}
    assert sum(sizes.values()) == factors.get(method, leaves)
    assert routing == experts.get(method, 0)
    assert (method in ROUTED) == (routing > 0)
