"""Lines: over layers, over the size of the sets, over training."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator

from interp.plots import fonts
from interp.plots.style import (
    DOUBLE,
    SINGLE,
    SMALL,
    Table,
    by_language,
    canvas,
    check,
    from_zero,
    in_order,
    key,
    legend_above,
    line,
    numbers,
    zero_line,
)

CATEGORIES = {
    "silent": ("#949494", "o"),
    "specific": ("#d55e00", "s"),
    "partly shared": ("#56b4e9", "^"),
    "all shared": ("#0b3c6f", "D"),
}
"""Color and marker of each category of sharing."""

BASELINES: dict[str, dict[str, Any]] = {
    "independent": {"linestyle": "--", "linewidth": 0.9},
    "interchangeable": {"linestyle": ":", "linewidth": 0.9},
}
"""How what chance would give is drawn, by column."""

_PIVOT: dict[str, Any] = {"linestyle": "--", "marker": "", "linewidth": 0.9}


def layer_profile(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """How many neurons of each language are in each layer.

    From `NeuronSelection.layer_frame()`: columns layer, language, neurons, low, high. The interval
    is left out where low and high are blank.
    """
    table = check(
        frame, "layer_profile", ("layer", "language"), ("neurons", "layer", "low", "high")
    )
    n_layers, has_interval = table["layer"].nunique(), bool(table["low"].notna().any())
    in_layers = table.sort_values("layer", kind="stable")
    with canvas(ax, *_size(n_layers)) as ax:
        for rows, aside, look in by_language(in_layers, n_places=n_layers):
            x = numbers(rows, "layer") + aside * 0.3 * has_interval
            interval = numbers(rows, "low"), numbers(rows, "high")
            line(ax, x, numbers(rows, "neurons"), interval, **look)
        ax.set(xlabel="Layer", ylabel="Neurons of the language")
        from_zero(ax)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(ax)
    return ax


def attribution_sums(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """What the neurons of each category of sharing give to the answer, by layer.

    From the sums.csv of `interp attribute`: the mean over languages, and strokes from the least to
    the largest language.
    """
    values = ("value", "layer")
    table = check(frame, "attribution_sums", ("language", "layer", "category"), values)
    n_layers = table["layer"].nunique()
    with canvas(ax, *_size(n_layers)) as ax:
        for place, (name, (ink, marker)) in enumerate(CATEGORIES.items()):
            rows = table[table["category"] == name]
            means = rows.groupby("layer")["value"].agg(["mean", "min", "max"]).reset_index()
            if len(means):
                ends = numbers(means, "min"), numbers(means, "max")
                x = numbers(means, "layer") + 0.1 * (place - 1.5)
                look = {"color": ink, "marker": marker, "label": name}
                look["markevery"] = 1 + n_layers // 16
                line(ax, x, numbers(means, "mean"), ends, **look)
        zero_line(ax)
        quantity = in_order(table["quantity"])[0] if "quantity" in table else "quantity"
        ax.set(xlabel="Layer", ylabel=f"Given to the answer\n({quantity})")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(ax, [key("mean over languages, least to largest", marker="|", markersize=7)])
    return ax


def loss_against_fraction(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """What a language's neurons do to it beyond what they do to others, against how many there are.

    From the table.csv of experiments/deactivate_neurons.py. Along the top stands how probable such
    a mean over languages is by chance.
    """
    values = ("own_minus_others", "low", "high", "fraction", "largest_in_row", "p_of_all")
    table = check(frame, "loss_against_fraction", ("fraction", "language"), values)
    if (table["fraction"] <= 0).any():
        raise ValueError("Column fraction holds a zero or less: give shares of all neurons.")
    with canvas(ax, SINGLE, 2.6) as ax:
        for rows, aside, look in by_language(table.sort_values("fraction", kind="stable")):
            x = numbers(rows, "fraction") * np.exp(aside * 0.12)
            y = numbers(rows, "own_minus_others")
            line(ax, x, y, (numbers(rows, "low"), numbers(rows, "high")), **look)
            less = ~rows["largest_in_row"].to_numpy(dtype=bool)
            hollow = {"linestyle": "", "label": "_hollow", "zorder": 3}
            hollow["markerfacecolor"] = ax.get_facecolor()
            ax.plot(x[less], y[less], **look | hollow)
        zero_line(ax)
        fractions = sorted(table["fraction"].unique().tolist())
        ax.set_xscale("log")
        ax.set_xlim(fractions[0] / 1.2, fractions[-1] * 1.2)
        ax.set_xticks(fractions, [f"{100 * each:g}" for each in fractions])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(xlabel="Share of all neurons selected (%)")
        ax.set_ylabel("Rise less that of others\n(nats per token)")
        note: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points", "ha": "center"}
        note |= {"fontsize": SMALL - 0.5, "alpha": 0.65, "xycoords": ax.get_xaxis_transform()}
        for each in fractions:
            p = float(table.loc[table["fraction"] == each, "p_of_all"].iloc[0])
            text = f"{p:.2g}" if p >= 0.0001 else "<0.0001"
            ax.annotate(text, (each, 1), **note)
        note |= {"xytext": (-4, 3), "ha": "right", "xycoords": "axes fraction"}
        ax.annotate("p =", (0, 1), **note)
        own = key("own loss rises most", marker="o", linestyle="")
        other = key("another rises more", marker="o", linestyle="", markerfacecolor="none")
        legend_above(ax, [own, other], points=11.0)
    return ax


def curve_of_training(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """When language neurons appear: the rise of a language's own loss, with its own neurons off.

    One row per checkpoint and language: columns tokens (read so far), language, increase,
    increase_low, increase_high, random (as many random neurons, mean over draws).
    """
    values = ("increase", "tokens", "increase_low", "increase_high", "random")
    table = check(frame, "curve_of_training", ("tokens", "language"), values)
    span = float(table["tokens"].max() - table["tokens"].min()) / 1e6
    dotted = {"linestyle": ":", "marker": "", "label": "_random", "linewidth": 0.9}
    with canvas(ax, SINGLE, 2.5) as ax:
        for rows, aside, look in by_language(table.sort_values("tokens", kind="stable")):
            x = numbers(rows, "tokens") / 1e6 + aside * 0.02 * span
            interval = numbers(rows, "increase_low"), numbers(rows, "increase_high")
            line(ax, x, numbers(rows, "increase"), interval, **look)
            ax.plot(x, numbers(rows, "random"), **look | dotted)
        zero_line(ax)
        ax.set(xlabel="Tokens of training (millions)")
        ax.set_ylabel("Rise of own loss\n(nats per token)")
        random = key("random neurons", linestyle=":", linewidth=0.9)
        legend_above(ax, [key("own neurons"), random])
    return ax


def sharing(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Shares of neurons that are silent, specific, partly and all-shared, layer by layer.

    From `SharingProfile.to_frame()`. Independent: languages that know nothing of each other, at the
    same rates. Interchangeable: languages that cannot be told apart.
    """
    values = ("share", "layer", "low", "high", *BASELINES)
    table = check(frame, "sharing", ("layer", "category"), values)
    if unknown := [name for name in in_order(table["category"]) if name not in CATEGORIES]:
        raise ValueError(
            f"{', '.join(unknown)} is no category of sharing; there are {', '.join(CATEGORIES)}."
        )
    n_layers = table["layer"].nunique()
    with canvas(ax, *_size(n_layers)) as ax:
        for name, (ink, marker) in CATEGORIES.items():
            rows = table[table["category"] == name].sort_values("layer")
            x, interval = numbers(rows, "layer"), (numbers(rows, "low"), numbers(rows, "high"))
            look = {"color": ink, "marker": marker, "label": name}
            line(ax, x, numbers(rows, "share"), interval, markevery=1 + n_layers // 16, **look)
            for column, dash in BASELINES.items():
                ax.plot(x, numbers(rows, column), color=ink, label=f"_{name} {column}", **dash)
        ax.set(xlabel="Layer", ylabel="Share of neurons")
        from_zero(ax)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_above(ax, [key("found"), *(key(name, **dash) for name, dash in BASELINES.items())])
    return ax


def lens(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """The probability that a layer says the answer, in each language.

    From `Lens.to_frame()`: a line for each language of the answer. From the lens.csv of
    experiments/lens_by_language.py, where column asked_in holds the language of the prompts: two
    lines for each, the answer in that language and in the pivot.
    """
    keys = ("asked_in", "language", "layer") if "asked_in" in frame else ("language", "layer")
    table = check(frame, "lens", keys, ("probability", "layer", "low", "high"))
    table = table.sort_values("layer", kind="stable")
    n_layers = table["layer"].nunique()
    asked = "asked_in" in table
    with canvas(ax, *_size(n_layers)) as ax:
        for rows, aside, look in by_language(table, keys[0], n_layers):
            mine = rows["language"] == rows[keys[0]]
            for some, more in ((rows[mine], {}), (rows[~mine], _PIVOT | {"label": "_pivot"})):
                if len(some):
                    x = numbers(some, "layer") + aside * 0.3
                    interval = numbers(some, "low"), numbers(some, "high")
                    line(ax, x, numbers(some, "probability"), interval, **{**look, **more})
        ax.set(xlabel="Layer", ylabel="Probability of the answer")
        from_zero(ax)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        own = key("in the prompt's language")
        legend_above(ax, [own, key(_pivot_name(table), **_PIVOT)] if asked else [])
    return ax


def _pivot_name(table: Table) -> str:
    """The one language, other than that of the prompts, that answers are looked for in."""
    pivots = in_order(table.loc[table["language"] != table["asked_in"], "language"])
    return f"in the pivot, {fonts.shown(pivots)[0]}" if len(pivots) == 1 else "in the pivot"


def _size(n_layers: int) -> tuple[float, float]:
    return (SINGLE if n_layers <= 40 else DOUBLE), 2.5
