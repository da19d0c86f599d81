"""Pictures of results. Each function draws on new axes and returns the figure."""

import matplotlib.pyplot as plt
import numpy
import pandas
from cycler import cycler
from matplotlib import ticker

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
    "TLoRA, vector": "#56B4E9",
}
MARKERS = dict(zip(COLORS, "sxPo^DvX*", strict=True))

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
    """'TensorPoly-I, N=4' belongs to 'TensorPoly-I'."""
    return max((name for name in COLORS if adapter.startswith(name)), key=len)


def dashed(contender: str) -> bool:
    """Whether a contender's line is dashed, since another one has its colour."""
    return contender != family(contender) or contender == "TLoRA, vector"


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
            filled = color if contender == family(contender) else "white"
            axes.plot(row["mean"], y, MARKERS[family(contender)], color=color, mfc=filled, ms=7)
        if line is not None:
            axes.axvline(line, color="#555555", lw=1, ls=":")
        axes.set_yticks(range(len(names)), names if axes is all_axes[0][0] else [""] * len(names))
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_title(name)
    figure.supxlabel(xlabel, fontsize="medium")
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium", fontweight="bold")
    return figure


def lines(panels: dict[str, pandas.DataFrame], xlabel: str, ylabel: str, title: str, log: bool = False):
    """A contender a line, a panel a column: means, with their 95 % intervals as a band.

    Args:
        panels: {title of the panel: rows by (contender, x), with mean, low and high}.
        xlabel: what x is.
        ylabel: what is shown.
        title: of the figure.
        log: whether x is on a logarithmic axis, with a tick at each of its values.
    """
    names = {}
    figure, grid = plt.subplots(
        1, len(panels), figsize=(3.2 + 2 * len(panels), 4.2), sharey=True, squeeze=False
    )
    for axes, (name, table) in zip(grid[0], panels.items(), strict=True):
        for contender, own in table.groupby(level=0, sort=False):
            x, of = own.index.get_level_values(1), family(contender)
            look = {"color": COLORS[of], "ls": "--" if dashed(contender) else "-", "marker": MARKERS[of]}
            look["mfc"] = COLORS[of] if contender == of else "white"
            (names[contender],) = axes.plot(x, own["mean"], **look, ms=5, lw=1.4)
            axes.fill_between(x, own["low"], own["high"], color=COLORS[of], alpha=0.13, lw=0)
        axes.set_xlabel(xlabel)
        axes.set_title(name)
        if log:
            ticks = sorted({int(x) for x in table.index.get_level_values(1)})
            axes.set_xscale("log")
            axes.set_xticks(ticks, ticks)
            axes.minorticks_off()
    grid[0][0].set_ylabel(ylabel)
    figure.legend(
        names.values(), names, loc="outside lower center", ncols=min(4, 2 + len(panels)), frameon=False
    )
    figure.suptitle(title, x=0.02, ha="left")
    return figure


def against(panels: dict[str, pandas.DataFrame], xlabel: str, ylabel: str, title: str):
    """A contender a point, a panel a column: means with 95 % intervals, against a number on a log axis.

    Args:
        panels: {title of the panel: rows by contender, with x, mean, low and high}.
        xlabel: what x is.
        ylabel: what is shown.
        title: of the figure.
    """
    names = {}
    figure, grid = plt.subplots(
        1, len(panels), figsize=(1.9 + 3.2 * len(panels), 3.4), sharey=True, squeeze=False
    )
    for axes, (name, table) in zip(grid[0], panels.items(), strict=True):
        for contender, row in table.iterrows():
            of = family(contender)
            look = {"color": COLORS[of], "mfc": COLORS[of] if contender == of else "white"}
            axes.plot([row["x"]] * 2, [row["low"], row["high"]], color=COLORS[of], lw=2, alpha=0.5)
            (names[contender],) = axes.plot(row["x"], row["mean"], MARKERS[of], **look, ms=7)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(base=4))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.set_xlabel(xlabel)
        axes.set_title(name)
    grid[0][0].set_ylabel(ylabel)
    figure.legend(names.values(), names, loc="outside right upper", frameon=False, fontsize="small")
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
