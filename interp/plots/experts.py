"""How far labels differ in the experts that are chosen for them, over the depth of a mixture."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from interp.plots.style import SINGLE, canvas, check, from_zero, key, legend_above, line, numbers

_CHANCE = {"linestyle": "--", "linewidth": 0.9, "color": "#777777"}
_HIGHEST = {"linestyle": ":", "linewidth": 0.9, "color": "#777777"}


def routing(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Divergence of the labels' experts in each layer, beside that of shuffled labels.

    From `Routing.layer_frame()`: columns layer, divergence, divergence_low, divergence_high,
    shuffled and shuffled_highest. Layers without experts are left out.
    """
    values = ("divergence", "layer", "divergence_low", "divergence_high")
    table = check(frame, "routing", ("layer",), (*values, "shuffled", "shuffled_highest"))
    table = table[table["divergence"].notna()].sort_values("layer", kind="stable")
    x = numbers(table, "layer")
    interval = numbers(table, "divergence_low"), numbers(table, "divergence_high")
    with canvas(ax, SINGLE, 2.5) as ax:
        look = {"color": "#0b3c6f", "marker": "o", "label": "_measured"}
        line(ax, x, numbers(table, "divergence"), interval, **look)
        ax.plot(x, numbers(table, "shuffled"), label="_shuffled", **_CHANCE)
        ax.plot(x, numbers(table, "shuffled_highest"), label="_highest", **_HIGHEST)
        ax.set(xlabel="Layer", ylabel="Difference in experts chosen\n(nats)")
        from_zero(ax)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        shuffled = key("labels shuffled", **_CHANCE)
        legend_above(ax, [key("labels", marker="o"), shuffled, key("highest of these", **_HIGHEST)])
    return ax
