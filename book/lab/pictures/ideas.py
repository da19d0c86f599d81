"""Pictures that carry an idea: each function draws it with matplotlib and returns the figure."""

import matplotlib
import matplotlib.pyplot as plt
import numpy
from matplotlib.patches import Rectangle

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#BBBBBB"


def _empty_axes(axes):
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _ink(color) -> str:
    """Black or white, whichever stands out more on a colour, by the luminance that WCAG defines."""
    rgb = numpy.array(matplotlib.colors.to_rgb(color))
    linear = numpy.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


def _block(axes, x, y, width, height, color, text="", **options):
    axes.add_patch(Rectangle((x, y), width, height, fc=color, ec="white", lw=1.5, **options))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=_ink(color))


def low_rank_update(out_features: int, in_features: int, rank: int):
    """W + B A as rectangles, drawn to scale."""
    figure, axes = plt.subplots(figsize=(7.2, 2.6))
    o, d, gap = out_features, in_features, 0.35 * in_features
    x = d + gap
    _block(axes, 0, 0, d, o, GREY, "W")
    _block(axes, x, 0, rank, o, ORANGE)
    _block(axes, x + rank + 0.15 * d, o - rank, d, rank, BLUE)
    axes.text(d + gap / 2, o / 2, "+", ha="center", va="center", fontsize=16)
    axes.text(x + rank / 2, -0.05 * o, "B", ha="center", va="top")
    axes.text(x + rank + 0.65 * d, 0.95 * o - rank, "A", ha="center", va="top")
    right = x + rank + 1.15 * d
    axes.text(right + gap / 2, o / 2, "=", ha="center", va="center", fontsize=16)
    _block(axes, right + gap, 0, d, o, "#667788", "W + BA")
    numbers = [
        (d / 2, f"{o * d:,} numbers, frozen"),
        (x + rank + 0.6 * d, f"{rank * (d + o):,} numbers, trained"),
    ]
    for where, text in numbers:
        axes.text(where, 1.06 * o, text, ha="center", va="bottom", fontsize=9)
    axes.set_xlim(-0.05 * d, right + gap + 1.05 * d)
    axes.set_ylim(-0.25 * o, 1.25 * o)
    axes.set_aspect("equal")
    _empty_axes(axes)
    return figure


def _grid(axes, values, limit, title=""):
    """A matrix as coloured squares, orange below zero and blue above."""
    values = numpy.atleast_2d(numpy.asarray(values))
    axes.imshow(values, cmap="PuOr", vmin=-limit, vmax=limit)
    rows, columns = values.shape
    axes.set_xticks(numpy.arange(-0.5, columns), minor=True)
    axes.set_yticks(numpy.arange(-0.5, rows), minor=True)
    axes.grid(which="minor", color="white", lw=1)
    axes.tick_params(which="both", length=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9, loc="center")


def growing_product(leaves):
    """The tensor product of three leaves as a grid that grows with each of them.

    Args:
        leaves: three vectors.
    """
    first, second, third = (numpy.asarray(leaf) for leaf in leaves)
    pair = numpy.outer(first, second)
    whole = numpy.outer(pair.ravel(), third)
    limit = max(abs(pair).max(), abs(whole).max(), abs(first).max())
    shapes = [first[:, None], second[None], pair, third[None], whole]
    names = ["leaf 1", "⊗ leaf 2", "=", "⊗ leaf 3", "="]
    counts = [len(first), len(second), pair.size, len(third), whole.size]
    figure, grid = plt.subplots(1, 5, figsize=(7.2, 3.4), width_ratios=[1, 3, 3, 3, 3])
    for axes, values, name, count in zip(grid, shapes, names, counts, strict=True):
        _grid(axes, values, limit, f"{name}\n{count} numbers")
    figure.suptitle(
        f"{counts[0] + counts[1] + counts[3]} numbers describe {whole.size}",
        x=0.02,
        ha="left",
        fontsize="medium",
    )
    return figure


def entangled_sum(left, right):
    """A sum of R outer products as R grids and their sum.

    Args:
        left: (R, rows) leaves of the first order.
        right: (R, columns) leaves of the second order.
    """
    products = [numpy.outer(a, b) for a, b in zip(numpy.asarray(left), numpy.asarray(right), strict=True)]
    total, limit = sum(products), numpy.abs(sum(products)).max()
    figure, grid = plt.subplots(1, len(products) + 1, figsize=(7.2, 2.3))
    for k, (axes, values) in enumerate(zip(grid, [*products, total], strict=True)):
        last = k == len(products)
        rank = numpy.linalg.matrix_rank(values)
        name = "= an entangled tensor" if last else f"{'+ ' if k else ''}simple tensor {k + 1}"
        _grid(axes, values, limit, f"{name}\nrank {rank}")
    return figure


def tensor_factor(dim: int, rank: int, order: int, tensor_rank: int, leaf_size: int):
    """A factor of LoRA, one row of which is opened to show the leaves that make it."""
    figure, axes = plt.subplots(figsize=(7.2, 2.9))
    height = 3.0
    for row in range(rank):
        color = BLUE if row == 1 else GREY
        _block(axes, 0, height * (rank - 1 - row), dim, 0.85 * height, color)
    axes.text(0, height * rank + 1, f"A: {rank} rows of {dim} numbers", fontsize=9)
    y, x0, cell = height * (rank - 2) + 0.42 * height, 1.12 * dim, 0.5 * dim / leaf_size
    axes.annotate("", (x0, y), (dim + 1, y), arrowprops={"arrowstyle": "->", "color": BLUE})
    for k in range(tensor_rank):
        top = y + (tensor_rank / 2 - 0.5 - k) * 1.5 * height
        for n in range(order):
            x = x0 + 4 + n * (0.5 * dim + 8)
            for i in range(leaf_size):
                _block(
                    axes,
                    x + i * cell,
                    top - 0.5 * height,
                    cell,
                    height,
                    BLUE,
                    alpha=0.55 + 0.45 * (i % 2),
                )
            if n:
                axes.text(x - 4, top, "⊗", ha="center", va="center")
        if k:
            axes.text(x0 - 1, top, "+", ha="right", va="center", fontsize=12)
    end = x0 + 4 + order * (0.5 * dim + 8)
    count = f"{tensor_rank} × {order} leaves of {leaf_size}: {tensor_rank * order * leaf_size} numbers"
    axes.text(
        x0 + 4,
        y + (tensor_rank / 2) * 1.5 * height + 1.5,
        f"its row 2 = {count}",
        fontsize=9,
    )
    axes.set_xlim(-2, end)
    axes.set_ylim(-1, max(height * rank, y + tensor_rank * 0.75 * height) + 6)
    _empty_axes(axes)
    return figure


def parameter_law(methods: dict, dims, title: str):
    """Numbers that a square layer's adapter needs against its dimension, a line a method.

    Args:
        methods: {label: (function of the dimension, colour, line style)}.
        dims: dimensions on the horizontal axis.
    """
    figure, axes = plt.subplots(figsize=(6.5, 3.4))
    for label, (count, color, style) in methods.items():
        axes.plot(dims, [count(d) for d in dims], style, color=color, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(dims, dims)
    axes.set_xlabel("features in and out of the layer")
    axes.set_ylabel("trained numbers")
    axes.set_title(title)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _leaf(axes, x, y, color, cells=4, size=0.22):
    for i in range(cells):
        _block(axes, x + i * size, y, size, 0.5, color, alpha=0.6 + 0.4 * (i % 2))
    return x + cells * size


def _weight(axes, x, y, value):
    color = plt.cm.Greys(0.15 + 0.75 * value)
    axes.add_patch(plt.Circle((x, y), 0.27, fc=color, ec="#444444", lw=0.8))
    axes.text(
        x,
        y,
        f"{value:.1f}",
        ha="center",
        va="center",
        fontsize=7,
        color=_ink(color),
    )


def mixture_of_matrices(weights):
    """Poly: the matrices of the skills, the weights of some tasks, and the factor that each task gets.

    Args:
        weights: (tasks, skills) routing weights.
    """
    weights = numpy.asarray(weights)
    colors = [BLUE, ORANGE, GREEN, "#CC79A7"][: weights.shape[1]]
    figure, axes = plt.subplots(figsize=(7.2, 0.9 + 0.8 * len(weights)))
    for k, color in enumerate(colors):
        _block(axes, 2 + 1.6 * k, len(weights), 1.2, 0.5, color, f"skill {k + 1}")
    for t, row in enumerate(weights):
        y = len(weights) - 1 - t
        axes.text(1.4, y, f"task {t + 1}", ha="right", va="center")
        for k, value in enumerate(row):
            _weight(axes, 2.6 + 1.6 * k, y, value)
        end = 2 + 1.6 * len(colors)
        axes.annotate("", (end + 0.7, y), (end, y), arrowprops={"arrowstyle": "->"})
        mixed = sum(w * numpy.array(matplotlib.colors.to_rgb(c)) for w, c in zip(row, colors, strict=True))
        _block(axes, end + 0.9, y - 0.25, 1.2, 0.5, mixed, f"A of {t + 1}")
    axes.set_xlim(0, 2 + 1.6 * len(colors) + 2.3)
    axes.set_ylim(-0.5, len(weights) + 0.7)
    axes.set_aspect("equal")
    _empty_axes(axes)
    return figure


def routed_products(product_weights, leaf_weights=None):
    """How TensorPoly-I, and beside it TensorPoly-II, make one row of a factor from the same leaves.

    Args:
        product_weights: (R,) weights of TensorPoly-I, one for each product.
        leaf_weights: (2, R) weights of TensorPoly-II, one for each leaf; None: draw TensorPoly-I alone.
    """
    R = len(product_weights)
    panels = 1 if leaf_weights is None else 2
    figure, grid = plt.subplots(1, panels, figsize=(3.9 * panels, 0.75 * R + 0.9), squeeze=False)
    axes = grid[0, 0]
    for k, value in enumerate(product_weights):
        y = R - 1 - k
        _weight(axes, 0.4, y + 0.25, value)
        end = _leaf(axes, 0.9, y, BLUE)
        axes.text(end + 0.2, y + 0.25, "⊗", ha="center", va="center")
        _leaf(axes, end + 0.4, y, ORANGE)
        axes.text(0, y + 0.25, "+" if k else "", ha="center", va="center")
    axes.set_title("TensorPoly-I: a weight for each product", fontsize=9)
    if panels == 2:
        axes = grid[0, 1]
        for n, color in enumerate((BLUE, ORANGE)):
            x = 0.35 + 2.3 * n
            for k in range(R):
                y = R - 1 - k
                _weight(axes, x, y + 0.25, leaf_weights[n][k])
                _leaf(axes, x + 0.4, y, color)
                axes.text(x - 0.38, y + 0.25, "+" if k else "", ha="center", va="center")
            for side, inward in ((x - 0.6, 0.1), (x + 1.45, -0.1)):
                rows = [R - 0.2, R - 0.2, -0.2, -0.2]
                axes.plot([side + inward, side, side, side + inward], rows, color="#444444", lw=1)
        axes.text(2.02 - 0.14, R / 2 - 0.2, "⊗", ha="center", va="center", fontsize=12)
        axes.set_title("TensorPoly-II: a weight for each leaf", fontsize=9)
    for axes in grid[0]:
        axes.set_xlim(-0.35, 4.2)
        axes.set_ylim(-0.4, R)
        _empty_axes(axes)
    return figure


def routing_over_time(snapshots: dict, names, title: str):
    """Routing weights of one layer as they are learned: a panel a step, a row a task.

    Args:
        snapshots: {step: weights (tasks, splits, experts)}; splits are drawn side by side.
        names: of the tasks.
    """
    figure, grid = plt.subplots(1, len(snapshots), figsize=(8, 4.2), sharey=True)
    limit = max(float(w.max()) for w in snapshots.values())
    for axes, (step, weights) in zip(grid, snapshots.items(), strict=True):
        image = axes.imshow(weights.flatten(1), cmap="viridis", vmin=0, vmax=limit, aspect="auto")
        for split in range(1, weights.shape[1]):
            axes.axvline(split * weights.shape[2] - 0.5, color="white", lw=2)
        axes.set_title(f"step {step}", fontsize="small")
        axes.set_xticks([])
        axes.set_xlabel("experts")
        axes.spines[:].set_visible(False)
    grid[0].set_yticks(range(len(names)), names, fontsize=6)
    figure.colorbar(image, ax=grid, shrink=0.6, label="routing weight")
    figure.suptitle(title, x=0.02, ha="left")
    return figure


def correlation_over_time(steps, values, chance: float, title: str):
    """The correlation of learned routing with the true skills, against the training step."""
    figure, axes = plt.subplots(figsize=(6, 2.8))
    axes.plot(steps, values, "o-", color=BLUE)
    axes.axhspan(-chance, chance, color=GREY, alpha=0.4, lw=0)
    axes.text(steps[-1], chance, "chance (99 of 100)", ha="right", va="bottom", fontsize=8)
    axes.set_xlabel("training step")
    axes.set_ylabel("correlation")
    axes.set_ylim(-0.3, 1)
    axes.set_title(title)
    return figure


def gradient_angles(cosines):
    """Two gradients of equal length at several angles, and the step that their mean makes.

    Args:
        cosines: of the angles, one a panel.
    """
    figure, grid = plt.subplots(1, len(cosines), figsize=(7.2, 2.5))
    for axes, cosine in zip(grid, cosines, strict=True):
        half = numpy.arccos(cosine) / 2
        ends = [(numpy.sin(s * half), numpy.cos(half)) for s in (-1, 1)]
        mean = (0, numpy.cos(half))
        for end, color in zip(ends, (BLUE, ORANGE), strict=True):
            axes.annotate("", end, (0, 0), arrowprops={"arrowstyle": "-|>", "color": color, "lw": 2})
        axes.annotate("", mean, (0, 0), arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 2})
        axes.set_title(f"cosine {cosine:g}\nmean {mean[1]:.2f} as long", fontsize=9, loc="center")
        axes.set_xlim(-1.1, 1.1)
        axes.set_ylim(-0.1, 1.1)
        axes.set_aspect("equal")
        _empty_axes(axes)
    handles = [plt.Line2D([], [], color=c, lw=2) for c in (BLUE, ORANGE, "black")]
    figure.legend(handles, ["one task", "another", "their mean"], loc="outside right center", frameon=False)
    return figure


def pairs_by_kind(values: dict, title: str, xlabel: str):
    """A number for each pair of tasks: a row of dots for each kind of pair, and their mean.

    Args:
        values: {kind: numbers}.
    """
    figure, axes = plt.subplots(figsize=(6.8, 0.7 + 0.6 * len(values)))
    jitter = numpy.random.default_rng(0)
    for row, numbers in enumerate(values.values()):
        numbers = numpy.asarray(numbers)
        heights = -row + jitter.uniform(-0.25, 0.25, len(numbers))
        axes.plot(numbers, heights, "o", ms=3, alpha=0.5, mew=0)
        axes.plot([numbers.mean()] * 2, [-row - 0.35, -row + 0.35], color="black", lw=2)
    axes.axvline(0, color=GREY, lw=1, zorder=0)
    axes.set_yticks([-row for row in range(len(values))], values)
    axes.set_xlabel(xlabel)
    axes.set_title(title)
    return figure


def life_of_an_adapter():
    """What is done to a model, from the base model to the ways out."""
    figure, axes = plt.subplots(figsize=(7.4, 3.0))
    boxes = {  # name: (x, y, text, colour)
        "base": (0, 1, "base model", "#667788"),
        "adapted": (2.4, 1, "adapted\nmodel", BLUE),
        "trained": (4.8, 1, "trained\nadapter", BLUE),
        "save": (7.6, 2.1, "save → load\nall tasks, to go on", GREEN),
        "new": (7.6, 1, "add_tasks\none task more", GREEN),
        "plain": (7.6, -0.1, "merge, export_lora\none task, a plain model or LoRA", ORANGE),
    }
    for x, y, text, color in boxes.values():
        width = 1.5 if x < 7 else 2.9
        axes.add_patch(Rectangle((x, y - 0.38), width, 0.76, fc=color, ec="none"))
        axes.text(x + width / 2, y, text, ha="center", va="center", color=_ink(color), fontsize=8)
    arrows = [
        ((1.5, 1), (2.4, 1), "adapt"),
        ((3.9, 1), (4.8, 1), "train with\ntask_ids"),
        ((6.3, 1.1), (7.6, 2.1), ""),
        ((6.3, 1), (7.6, 1), ""),
        ((6.3, 0.9), (7.6, -0.1), ""),
    ]
    for start, end, text in arrows:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#444444"})
        axes.text((start[0] + end[0]) / 2, 1.45, text, ha="center", va="bottom", fontsize=8)
    axes.set_xlim(-0.1, 10.6)
    axes.set_ylim(-0.6, 2.6)
    _empty_axes(axes)
    return figure
