"""Pictures of results. Each function draws on new axes and returns the figure."""

import matplotlib.pyplot as plt
import numpy
import pandas
from cycler import cycler
from matplotlib import ticker

from .. import records

# Okabe and Ito's colours, which colour-blind readers can tell apart
COLORS = {
    "LoRA": "#000000",
    "TLoRA": "#999999",
    "private LoRA": "#CC79A7",
    "Poly": "#E69F00",
    "MHR": "#D55E00",
    "TensorPoly-I": "#0072B2",
    "TensorPoly-II": "#009E73",
    "LoRA, vector": "#56B4E9",
}
MARKERS = dict(zip(COLORS, "sxPo^DvX", strict=True))

# A white ground keeps black text legible on the site's dark pages.
STYLE = {
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.prop_cycle": cycler(color=["#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#000000"]),
    "font.size": 10,
    "figure.constrained_layout.use": True,
}


def use_style() -> None:
    """Sets the book's defaults for all following figures."""
    plt.rcParams.update(STYLE)


def family(adapter: str) -> str:
    """'TensorPoly-I N=4' belongs to 'TensorPoly-I'."""
    return max((name for name in COLORS if adapter.startswith(name)), key=len)


def bars(runs: pandas.DataFrame, columns: list[str], adapters: list[str], title: str, ylabel: str):
    """Grouped bars: an adapter a group, a column a bar, every run a dot, 95 % intervals as whiskers."""
    figure, axes = plt.subplots(figsize=(7.5, 3.4))
    width = 0.8 / len(columns)
    alphas = numpy.linspace(1, 0.4, len(columns))
    for j, adapter in enumerate(adapters):
        own, color = runs[runs["adapter"] == adapter], COLORS[family(adapter)]
        present = [i for i, column in enumerate(columns) if own[column].notna().any()]
        for place, i in enumerate(present):
            values = own[columns[i]].dropna()
            x = j + (place - (len(present) - 1) / 2) * width
            axes.bar(x, values.mean(), width * 0.92, color=color, alpha=alphas[i], edgecolor=color)
            axes.errorbar(x, values.mean(), records.half_width(values), color="#555555", capsize=2, lw=1)
            offsets = numpy.linspace(-0.25, 0.25, len(values)) * width
            axes.plot(x + offsets, values, "o", ms=2.5, mfc="white", mec="#222222", mew=0.6)
    axes.set_xticks(range(len(adapters)), adapters, rotation=20)
    axes.set_ylabel(ylabel)
    axes.set_ylim(0, 104)
    shades = [plt.Rectangle((0, 0), 1, 1, fc="#555555", alpha=alpha) for alpha in alphas]
    axes.legend(shades, columns, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.set_title(title)
    return figure


def dots(panels: dict[str, pandas.DataFrame], xlabel: str, title: str, line: float | None = None):
    """A contender a line, a panel a column: means, 95 % intervals, and a small dot for each split.

    Args:
        panels: {title of the panel: rows by contender, with mean, low, high and a list `splits`}.
        xlabel: what is shown.
        title: of the figure.
        line: where a dotted line marks a value that all compare with, such as chance.
    """
    fullest_first = sorted(panels.values(), key=len, reverse=True)
    names = list(dict.fromkeys(name for table in fullest_first for name in table.index))[::-1]
    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(2.4 + 2.4 * len(panels), 0.9 + 0.32 * len(names)), sharex=True, squeeze=False
    )
    for axes, (name, table) in zip(all_axes[0], panels.items(), strict=True):
        for contender, row in table.iterrows():
            y, color = names.index(contender), COLORS[family(contender)]
            axes.plot([row["low"], row["high"]], [y, y], color=color, lw=2.5, alpha=0.5)
            axes.plot(row["splits"], [y - 0.27] * len(row["splits"]), ".", color="#777777", ms=4)
            axes.plot(row["mean"], y, MARKERS[family(contender)], color=color, ms=7)
        if line is not None:
            axes.axvline(line, color="#555555", lw=1, ls=":")
        axes.set_yticks(range(len(names)), names if axes is all_axes[0][0] else [""] * len(names))
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_title(name)
    figure.supxlabel(xlabel, fontsize="medium")
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    return figure


def against_parameters(runs: pandas.DataFrame, columns: list[str], title: str):
    """Accuracy against trainable parameters, routing counted: a row of panels a column, a panel a width."""
    widths = sorted(runs["width"].unique())
    figure, grid = plt.subplots(
        len(columns),
        len(widths),
        figsize=(3.9 * len(widths) + 1.2, 2.9 * len(columns)),
        squeeze=False,
        sharey="row",
    )
    for axes_row, column in zip(grid, columns, strict=True):
        for axes, width in zip(axes_row, widths, strict=True):
            for adapter, group in runs[runs["width"] == width].groupby("adapter", sort=False):
                size = (group["factors"] + group["routing"]).iloc[0] / 1000
                name, half = family(adapter), records.half_width(group[column])
                axes.errorbar(
                    size,
                    group[column].mean(),
                    half,
                    fmt=MARKERS[name],
                    color=COLORS[name],
                    ms=6,
                    capsize=2,
                )
                detail = adapter.removeprefix(name).strip()
                axes.annotate(
                    detail,
                    (size, group[column].mean()),
                    (5, -9),
                    textcoords="offset points",
                    fontsize=7,
                )
            axes.set_ylim(0, 104)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axes.xaxis.set_minor_locator(ticker.NullLocator())
            axes.set_title(f"width {width}", fontsize="small")
            axes.set_xlabel("trainable parameters (thousands)")
        axes_row[0].set_ylabel(f"{column}\nexact match (%)")
    shown = [name for name in COLORS if name in {family(adapter) for adapter in runs["adapter"]}]
    handles = [plt.Line2D([], [], color=COLORS[n], marker=MARKERS[n], ls="") for n in shown]
    figure.legend(handles, shown, loc="outside right upper", frameon=False)
    figure.suptitle(title, x=0.02, ha="left")
    return figure


def costs(measured: pandas.DataFrame, title: str):
    """Time of a training step and of writing, as ratios: a contender a row, whiskers between quartiles.

    Args:
        measured: from `lab.cost.bench.table`, of one setting with mixed batches and with batches of one task.
        title: of the figure.
    """
    figure, grid = plt.subplots(1, 2, figsize=(8, 4.2), sharey=True)
    names = list(dict.fromkeys(measured.sort_values("workload", kind="stable")["contender"]))
    looks = {True: ("a task for each row", "#0072B2", 0.2), False: ("one task", "#E69F00", -0.2)}
    for axes, workload in zip(grid, ("training", "generation"), strict=True):
        for row in measured[measured["workload"] == workload].itertuples():
            label, color, shift = looks[row.mixed]
            y = shift - names.index(row.contender)
            axes.barh(y, row.median, height=0.36, color=color, label=label)
            axes.plot([row.low, row.high], [y, y], color="black", lw=1.5)
        axes.axvline(1, color="black", lw=1, ls=":")
        axes.set_xlabel("time, PEFT LoRA = 1")
        axes.set_title({"training": "a training step", "generation": "writing"}[workload])
    grid[0].set_yticks([-i for i in range(len(names))], names)
    handles = dict(zip(*grid[1].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title, x=0.02, ha="left")
    return figure


def growth(measured: pandas.DataFrame, column: str, ylabel: str, title: str):
    """A panel for each option that grows, a line for each contender.

    Args:
        measured: from `lab.cost.bench.table`, with the columns `option` and `value`.
        column: what is shown.
        ylabel: its name and unit.
        title: of the figure.
    """
    options = list(dict.fromkeys(measured["option"]))
    figure, grid = plt.subplots(1, len(options), figsize=(10, 3), sharey=True)
    peft = {"PEFT Poly": "#CC79A7"}
    lines = peft | {name: COLORS[name] for name in COLORS if name in set(measured["contender"])}
    for axes, option in zip(grid, options, strict=True):
        for name, color in lines.items():
            own = measured[(measured["option"] == option) & (measured["contender"] == name)]
            style = "--" if name in peft else "-"
            axes.plot(
                own["value"], own[column], style, marker=MARKERS.get(name, "d"), ms=4, color=color, label=name
            )
        values = sorted(set(measured[measured["option"] == option]["value"]))
        axes.set_xscale("log", base=2)
        axes.set_xticks(values, values, rotation=60 if max(values) > 100 else 0, fontsize=8)
        axes.minorticks_off()
        axes.axhline(1, color="black", lw=1, ls=":")
        axes.set_xlabel({"experts": "skills or tensor rank", "n_tasks": "tasks"}.get(option, option))
    grid[0].set_ylabel(ylabel)
    grid[0].set_yscale("log", base=2)
    grid[0].yaxis.set_major_formatter("{x:g}")
    handles, names = grid[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False)
    figure.suptitle(title, x=0.02, ha="left")
    return figure


def learning_rates(searched: list[dict], chosen: dict):
    """The search: exact match against learning rate, a panel a width, the chosen rate marked."""
    widths = sorted({record["width"] for record in searched})
    figure, grid = plt.subplots(
        1, len(widths), figsize=(4.1 * len(widths) + 1.4, 3.2), squeeze=False, sharey=True
    )
    for axes, width in zip(grid[0], widths, strict=True):
        for adapter in chosen[str(width)]:
            runs = [r for r in searched if (r["width"], r["adapter"]) == (width, adapter)]
            runs = sorted(
                {r["lr"]: 100 * records.mean(r["train"]) for r in runs if not r["few_shot"]}.items()
            )
            style = "-" if adapter == family(adapter) else ":"
            axes.plot(*zip(*runs, strict=True), style, color=COLORS[family(adapter)], lw=1.2)
            best = chosen[str(width)][adapter]["lr"]
            axes.plot(
                best,
                dict(runs)[best],
                MARKERS[family(adapter)],
                color=COLORS[family(adapter)],
                ms=6,
            )
        axes.set_xscale("log")
        axes.set_xlabel("learning rate of the factors")
        axes.set_title(f"width {width}", fontsize="small")
    grid[0][0].set_ylabel("exact match on training tasks (%)")
    shown = [name for name in COLORS if name in {family(run["adapter"]) for run in searched}]
    handles = [plt.Line2D([], [], color=COLORS[n], marker=MARKERS[n]) for n in shown]
    figure.legend(handles, shown, loc="outside right upper", frameon=False)
    figure.suptitle("Every adapter's best learning rate lies inside the grid", x=0.02, ha="left")
    return figure


def routing_map(similarity, overlap, names: list[str], title: str):
    """Two maps over pairs of tasks: the similarity of learned routing, and the overlap of true skills."""
    figure, grid = plt.subplots(1, 2, figsize=(9, 4.6), sharey=True)
    for axes, values, name in zip(
        grid, (similarity, overlap), ("learned routing", "true skills"), strict=True
    ):
        values = numpy.array(values, dtype=float)
        numpy.fill_diagonal(values, numpy.nan)
        image = axes.imshow(values, cmap="viridis")
        axes.set_title(name, fontsize="small")
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
        figure.colorbar(
            image,
            ax=axes,
            shrink=0.7,
            label={"learned routing": "cosine", "true skills": "Jaccard"}[name],
        )
    grid[0].set_yticks(range(len(names)), names, fontsize=6)
    figure.suptitle(title, x=0.02, ha="left")
    return figure
