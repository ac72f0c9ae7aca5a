"""Lines: over layers, over the size of the sets, over training."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from interp.plots import fonts
from interp.plots.cells import label_map
from interp.plots.style import (
    MOST_LINES,
    MOST_MARKERS,
    MOST_MARKS,
    SINGLE,
    Table,
    by_language,
    canvas,
    check,
    from_zero,
    in_order,
    key,
    legend_above,
    line,
    look_of,
    numbers,
    panels,
    points,
    small,
    worded_for,
    zero_line,
)

CATEGORIES = {
    "silent": "#949494",
    "specific": "#d55e00",
    "partly shared": "#56b4e9",
    "all shared": "#0b3c6f",
}
"""Color of each category of sharing."""

BASELINES: dict[str, dict[str, Any]] = {
    "independent": {"linestyle": "--", "linewidth": 0.9},
    "interchangeable": {"linestyle": ":", "linewidth": 0.9},
}
"""Line style of each chance baseline, by column."""

_HEIGHT = 2.5  # inches

_PIVOT: dict[str, Any] = {"linestyle": "--", "marker": "", "linewidth": 0.9}


def layer_profile(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How many neurons of each language are in each layer.

    From `NeuronSelection.layer_frame()`: columns layer, language, neurons, low, high. Without low
    and high no interval is drawn. Too many lines to follow, as of more
    than eight languages, are a heat map instead, without intervals.
    """
    table = check(
        frame, "layer_profile", ("layer", "language"), ("neurons", "layer", "low", "high")
    )
    quantity = worded_for("Neurons of the language", table["language"])
    if _many(table, "language"):
        return _map(table, "layer", "neurons", quantity, ax)
    n_layers, has_interval = table["layer"].nunique(), bool(table["low"].notna().any())
    in_layers = table.sort_values("layer", kind="stable")
    with canvas(ax, SINGLE, _HEIGHT) as ax:
        for rows, offset, look in by_language(in_layers, n_points=n_layers):
            x = numbers(rows, "layer") + offset * 0.5 * has_interval
            interval = numbers(rows, "low"), numbers(rows, "high")
            line(ax, x, numbers(rows, "neurons"), interval, **look)
        ax.set(xlabel="Layer", ylabel=quantity)
        from_zero(ax)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(ax)
    return ax


def attribution_sums(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Contribution to the answer of the neurons in each category of sharing, by layer.

    From the sums.csv of `interp attribute`: the mean over languages, with vertical lines from the
    minimum to the maximum.
    """
    values = ("value", "layer")
    table = check(frame, "attribution_sums", ("language", "layer", "category"), values)
    n_layers = table["layer"].nunique()
    with canvas(ax, SINGLE, _HEIGHT) as ax:
        for number, (name, ink) in enumerate(CATEGORIES.items()):
            rows = table[table["category"] == name]
            means = rows.groupby("layer")["value"].agg(["mean", "min", "max"]).reset_index()
            if len(means):
                ends = numbers(means, "min"), numbers(means, "max")
                apart = 0.1 * (n_layers <= MOST_MARKERS)
                x = numbers(means, "layer") + apart * (number - 1.5)
                look = {"color": ink, "label": name, **look_of(number, n_layers)}
                line(ax, x, numbers(means, "mean"), ends, **look)
        zero_line(ax)
        quantity = in_order(table["quantity"])[0] if "quantity" in table else "quantity"
        ax.set(xlabel="Layer", ylabel=f"Contribution to the answer\n({quantity})")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        few = {"marker": "|", "markersize": 7} if n_layers <= MOST_MARKERS else {}
        mean = worded_for("mean over languages, min to max", table["language"])
        legend_above(ax, [key(mean, **few)])
    return ax


def loss_against_fraction(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Rise of a language's loss minus others', with its neurons off, by share of neurons selected.

    From the table.csv of experiments/deactivate_neurons.py. Along the top, the p-value of the mean
    over languages.
    """
    values = ("own_minus_others", "low", "high", "fraction", "largest_in_row", "p_of_all")
    table = check(frame, "loss_against_fraction", ("fraction", "language"), values)
    if (table["fraction"] <= 0).any():
        raise ValueError("Column fraction has values of zero or less: give shares of all neurons.")
    if _many(table, "language"):
        return _fraction_map(table, ax)
    with canvas(ax, SINGLE, 2.6) as ax:
        for rows, offset, look in by_language(table.sort_values("fraction", kind="stable")):
            x = numbers(rows, "fraction") * np.exp(offset * 0.12)
            y = numbers(rows, "own_minus_others")
            line(ax, x, y, (numbers(rows, "low"), numbers(rows, "high")), **look)
            not_largest = ~rows["largest_in_row"].to_numpy(dtype=bool)
            hollow = {"linestyle": "", "label": "_hollow", "zorder": 3}
            hollow["markerfacecolor"] = ax.get_facecolor()
            ax.plot(x[not_largest], y[not_largest], **look | hollow)
        zero_line(ax)
        fractions = sorted(table["fraction"].unique().tolist())
        ax.set_xscale("log")
        ax.set_xlim(fractions[0] / 1.2, fractions[-1] * 1.2)
        ax.set_xticks(fractions, [f"{100 * fraction:g}" for fraction in fractions])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(xlabel="Share of all neurons selected (%)")
        ax.set_ylabel("Own rise minus others'\n(nats per token)")
        note: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
        note |= {"fontsize": small() - 0.5, "alpha": 0.65, "xycoords": ax.get_xaxis_transform()}
        for fraction in fractions:
            ax.annotate(_p_of(table, fraction), (fraction, 1), **note)
        note |= {"xytext": (-4, 3), "ha": "right", "xycoords": "axes fraction"}
        ax.annotate("p =", (0, 1), **note)
        own = key("own loss rises most", marker="o", linestyle="")
        other = key("another loss rises more", marker="o", linestyle="", markerfacecolor="none")
        legend_above(ax, [own, other], above=11.0)
    return ax


def curve_of_training(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """When language neurons emerge in training: rise of a language's loss with its neurons off.

    One row per checkpoint and language: columns tokens (seen so far), language, increase,
    increase_low, increase_high, random (as many random neurons, mean over draws).
    """
    values = ("increase", "tokens", "increase_low", "increase_high", "random")
    table = check(frame, "curve_of_training", ("tokens", "language"), values)
    if _many(table, "language"):
        millions = table.assign(tokens=table["tokens"] / 1e6)
        ticks = [f"{tokens:g}" for tokens in dict.fromkeys(millions["tokens"])]
        xlabel = "Training tokens (millions)"
        rise = "Rise of own loss (nats per token)"
        return _map(millions, "tokens", "increase", rise, ax, xlabel=xlabel, ticks=ticks)
    span = float(table["tokens"].max() - table["tokens"].min()) / 1e6
    dotted = {"linestyle": ":", "marker": "", "label": "_random", "linewidth": 0.9}
    with canvas(ax, SINGLE, 2.5) as ax:
        for rows, offset, look in by_language(table.sort_values("tokens", kind="stable")):
            x = numbers(rows, "tokens") / 1e6 + offset * 0.02 * span
            interval = numbers(rows, "increase_low"), numbers(rows, "increase_high")
            line(ax, x, numbers(rows, "increase"), interval, **look)
            ax.plot(x, numbers(rows, "random"), **look | dotted)
        zero_line(ax)
        ax.set(xlabel="Training tokens (millions)")
        ax.set_ylabel("Rise of own loss\n(nats per token)")
        random = key("random neurons", linestyle=":", linewidth=0.9)
        legend_above(ax, [key("own neurons"), random])
    return ax


def sharing(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Shares of neurons that are silent, specific, partly and all-shared, layer by layer.

    From `SharingProfile.to_frame()`, with its two chance baselines: `SharingProfile.independent`
    and `SharingProfile.interchangeable`.
    """
    values = ("share", "layer", "low", "high", *BASELINES)
    table = check(frame, "sharing", ("layer", "category"), values)
    if unknown := [name for name in in_order(table["category"]) if name not in CATEGORIES]:
        raise ValueError(
            f"{', '.join(unknown)} is not a category of sharing: give {', '.join(CATEGORIES)}."
        )
    n_layers = table["layer"].nunique()
    with canvas(ax, SINGLE, _HEIGHT) as ax:
        for number, (name, ink) in enumerate(CATEGORIES.items()):
            rows = table[table["category"] == name].sort_values("layer")
            x, interval = numbers(rows, "layer"), (numbers(rows, "low"), numbers(rows, "high"))
            look = {"color": ink, "label": name, **look_of(number, n_layers), "linestyle": "-"}
            if n_layers > MOST_MARKERS:  # the styles of lines are those of the baselines
                look["linewidth"] = 0.6 + 0.55 * number
            line(ax, x, numbers(rows, "share"), interval, **look)
            for column, dash in BASELINES.items():
                ax.plot(x, numbers(rows, column), color=ink, label=f"_{name} {column}", **dash)
        ax.set(xlabel="Layer", ylabel="Share of neurons")
        from_zero(ax)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(
            ax, [key("measured"), *(key(name, **dash) for name, dash in BASELINES.items())]
        )
    return ax


def lens(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Probability of the answer at each layer, in each language.

    From `Lens.to_frame()`: one line for each language of the answer. From the lens.csv of
    experiments/lens_by_language.py, whose column asked_in is the language of the prompts: a panel
    for each, with the answer in that language and in the pivot; returns the first, and draws on an
    Axes prompts of one language only. More than eight languages are a heat map, without intervals;
    answers in the pivot are its last rows.
    """
    asked = "asked_in" in frame
    keys = ("asked_in", "language", "layer") if asked else ("language", "layer")
    table = check(frame, "lens", keys, ("probability", "layer", "low", "high"))
    table = table.sort_values("layer", kind="stable")
    if _many(table, keys[0]):
        return _map(_answers(table, asked), "layer", "probability", "Probability of the answer", ax)
    if asked:
        return _by_prompt(table, ax)
    with canvas(ax, SINGLE, _HEIGHT) as ax:
        for rows, offset, look in by_language(table, n_points=table["layer"].nunique()):
            _answer(ax, rows, offset * 0.5, look)
        ax.set(xlabel="Layer", ylabel="Probability of the answer")
        from_zero(ax)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(ax)
    return ax


def _by_prompt(table: Table, ax: Axes | None) -> Axes:
    """A panel for each language of the prompts, all with the same scale."""
    asked = in_order(table["asked_in"])
    with panels(ax, asked, "lens", SINGLE, 0.75 * len(asked) + 1) as axes:
        looks = by_language(table, "asked_in", table["layer"].nunique())
        for panel, (rows, _, look) in zip(axes, looks, strict=True):
            own = rows["language"] == rows["asked_in"]
            _answer(panel, rows[own], -0.1, {**look, "label": "_own"})
            _answer(panel, rows[~own], 0.1, {**look, **_PIVOT, "label": "_pivot"})
            panel.set(xlabel="Layer", ylabel=f"Asked in\n{look['label']}")
            panel.label_outer()
        top = max(panel.get_ylim()[1] for panel in axes)
        for panel in axes:
            panel.set_ylim(top=top)
            from_zero(panel)
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        figure = axes[0].figure.get_figure(root=True)
        figure.supylabel("Probability of the answer", fontsize=points("axes.labelsize"))
        solid = key("in the prompt's language")
        legend_above(axes[0], [solid, key(_pivot_name(table), **_PIVOT)])
    return axes[0]


def _answer(ax: Axes, rows: Table, offset: float, look: dict[str, Any]) -> None:
    """The probability of one answer, with its interval, at each layer."""
    if len(rows):
        interval = numbers(rows, "low"), numbers(rows, "high")
        line(ax, numbers(rows, "layer") + offset, numbers(rows, "probability"), interval, **look)


def _pivot_name(table: Table) -> str:
    """The legend of answers in the pivot; names the pivot if there is only one."""
    pivots = in_order(table.loc[table["language"] != table["asked_in"], "language"])
    return f"in the pivot, {fonts.shown(pivots)[0]}" if len(pivots) == 1 else "in the pivot"


# ---------------------------------------------------------------- many labels


def _many(table: Table, column: str) -> bool:
    """Whether the lines of the labels could not be followed."""
    return table[column].nunique() > MOST_LINES or len(table) > MOST_MARKS


def _map(
    table: Table,
    x: str,
    value: str,
    quantity: str,
    ax: Axes | None,
    xlabel: str = "Layer",
    ticks: list[str] | None = None,
    dot: str = "",
) -> Axes:
    extra: dict[str, Any] = {"xlabel": xlabel, "ticks": ticks, "dot": dot}
    return label_map(table, x, value, ax, column="language", quantity=quantity, **extra)


def _fraction_map(table: Table, ax: Axes | None) -> Axes:
    """With a dot where another language's loss rises more, and the p-values below the shares."""
    fractions = sorted(table["fraction"].unique().tolist())
    ticks = [f"{100 * fraction:g}\n{_p_of(table, fraction)}" for fraction in fractions]
    quantity = "Own rise minus others' (nats per token)"
    p = worded_for("p of the mean over languages", table["language"])
    xlabel = f"Share of all neurons selected (%)\nand {p}"
    ordered = table.sort_values("fraction", kind="stable")
    look: dict[str, Any] = {"xlabel": xlabel, "ticks": ticks, "dot": "largest_in_row"}
    return _map(ordered, "fraction", "own_minus_others", quantity, ax, **look)


def _p_of(table: Table, fraction: float) -> str:
    p = float(table.loc[table["fraction"] == fraction, "p_of_all"].iloc[0])
    return f"{p:.2g}" if p >= 0.0001 else "<0.0001"


def _answers(table: Table, asked: bool) -> Table:
    """One row per label: answers in the prompt's language, then those in the pivot."""
    if not asked:
        return table
    own = table["language"] == table["asked_in"]
    named = table["asked_in"].where(own, table["asked_in"] + " \N{RIGHTWARDS ARROW} pivot")
    return pd.concat([table.assign(language=named)[own], table.assign(language=named)[~own]])
