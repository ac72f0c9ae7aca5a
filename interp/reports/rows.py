"""Which rows of a table a figure draws, and in which columns: one function for each kind."""

import math
import textwrap

import pandas as pd

from interp.plots.style import Table


def first_facts(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of all facts, which come first; a table may also have rows of some facts alone."""
    table: Table = frame
    return table[table["facts"] == table["facts"].iloc[0]] if "facts" in table else table


def stable(frame: pd.DataFrame) -> pd.DataFrame:
    """A panel for each change of the text or the rule, a row for each language. Those without one
    of the languages are left out: there are as many as languages."""
    names = {"language": "method", "change": "measure", "jaccard": "value", "chance": "control"}
    rows: Table = frame[~frame["change"].str.startswith("without ")]
    changes = rows["change"].map(lambda change: textwrap.fill(change, 16))
    return rows.assign(change=changes).rename(columns=names)


def pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """A panel for each other selection beside the first, a row for each language; Jaccard has no
    interval."""
    names = {"language": "method", "jaccard": "value", "chance": "control", "b": "measure"}
    rows: Table = frame[frame["a"] == frame["a"].iloc[0]]
    return rows.rename(columns=names).assign(low=math.nan, high=math.nan)


def by_layer(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per layer of all neurons, and of those of each selection: the mean size of the change,
    and that which a change of zero would seem to have, given the intervals."""
    half_width = (frame["change_high"] - frame["change_low"]) / 2
    size = math.sqrt(2 / math.pi) * half_width / 1.96  # the mean of |x| for a normal x
    values: Table = frame.assign(change=frame["change"].abs(), chance=size)
    sets = {"all neurons": values}
    for name in values.columns:
        if name.startswith("in_") and values[name].any():
            sets[f"neurons of {name.removeprefix('in_')}"] = values[values[name].astype(bool)]
    means = [
        rows.groupby("layer", as_index=False)[["change", "chance"]].mean().assign(neurons=name)
        for name, rows in sets.items()
    ]
    return pd.concat(means, ignore_index=True)


def by_label(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per label and layer: the root mean square of its neurons' true changes, from the mean
    square of the changes less that of their standard errors; zero if the rates are equal."""
    error = ((frame["change_high"] - frame["change_low"]) / 2 / 1.96).fillna(0)  # of one shard
    squares: Table = frame.assign(difference=frame["change"] ** 2 - error**2)
    means = squares.groupby(["language", "layer"], as_index=False, sort=False)[
        ["difference"]
    ].mean()
    return means.assign(difference=means["difference"].clip(lower=0) ** 0.5)


def effects(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each language: the effect in B, with that in A as its control, and the change."""
    table: Table = frame.rename(columns={"language": "method"})
    unknown = {"low": math.nan, "high": math.nan}
    both = table.assign(measure="in B (stroke: in A)", value=table["after"], **unknown)
    ends = {"low": table["change_low"], "high": table["change_high"]}
    change = table.assign(measure="B minus A", value=table["change"], **ends)
    parts = [both.assign(control=table["before"]), change.assign(control=0.0)]
    return pd.concat(parts, ignore_index=True)


def sizes(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each size in bytes, as GB."""
    table: Table = frame[frame["unit"] == "bytes"]
    none = dict.fromkeys(("low", "high", "control"), math.nan)
    named = table.rename(columns={"quantity": "method"})
    return named.assign(value=table["value"] / 1e9, measure="GB", **none)


def price(frame: pd.DataFrame) -> pd.DataFrame:
    """A panel for each measure, a row for each edit; the control, nothing edited, is zero."""
    names = {"under": "method", "difference": "value"}
    ends = {"difference_low": "low", "difference_high": "high"}
    measures = frame["measure"].map(lambda measure: textwrap.fill(measure, 16))
    return frame.rename(columns=names | ends).assign(measure=measures, control=0.0)


def checked(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of texts asked for in a label that the detector knows; other rates are unknown."""
    table: Table = frame
    own = table[table["language"] == table["to"]]
    return table[table["to"].isin(own.loc[own["rate"].notna(), "to"])]


def answers(frame: pd.DataFrame) -> pd.DataFrame:
    """A panel for each measure, a row for each condition; the control is no edit. Of several
    languages steered to, all together where the table has them."""
    rows: Table = frame[frame["to"] == "all"] if "all" in set(frame["to"]) else frame
    several = rows["to"].nunique() > 1
    names = rows["to"] + ": " + rows["condition"] if several else rows["condition"]
    rows = rows.assign(method=names)
    unedited = rows[rows["condition"] == "no edit"].set_index("to")
    panels = [
        pd.DataFrame(
            {"method": rows["method"], "measure": name}
            | {"value": rows[name], "low": rows[f"{name}_low"], "high": rows[f"{name}_high"]}
            | {"control": rows["to"].map(unedited[name]) if len(unedited) else math.nan}
        )
        for name in ("forcing", "relevance", "score")
        if rows[name].notna().any()  # without a judge there is forcing alone
    ]
    return pd.concat(panels, ignore_index=True)
