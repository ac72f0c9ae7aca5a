"""A small hand-made table for every figure, and helpers that read plotted data off the Axes."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.colors import same_color

CODES = ("en", "de", "ja")


def matrix_table() -> pd.DataFrame:
    rise = {"en": (0.060, 0.009, -0.0001), "de": (0.003, 0.151, 0.002), "ja": (0.011, -0.02, 0.086)}
    rows = []
    for off, read in itertools.product(("nothing", *CODES), CODES):
        value = 0.0 if off == "nothing" else rise[off][CODES.index(read)]
        random = math.nan if off == "nothing" else 0.01 * (1 + CODES.index(off)) + 0.001 * len(read)
        rows.append(
            {
                "off": off,
                "read": read,
                "own": off == read,
                "neurons": 0 if off == "nothing" else 1000 * len(off) + CODES.index(off),
                "increase": value,
                "increase_low": value - 0.004,
                "increase_high": value + 0.006,
                "random": random,
                "random_low": random - 0.002,
                "random_high": random + 0.002,
            }
        )
    return pd.DataFrame(rows)


def overlap_rows() -> pd.DataFrame:
    chance = {"chance": 0.01, "chance_low": 0.0, "chance_high": 0.04}
    none = dict.fromkeys(chance, math.nan)
    return pd.DataFrame(
        [
            {"language": "en", "other": "en", "common": 40, "jaccard": 1.0, **none},
            {"language": "en", "other": "de", "common": 9, "jaccard": 0.11, **chance},
            {"language": "ja", "other": "en", "common": 2, "jaccard": 0.03, **chance},
            {"language": "de", "other": "de", "common": 50, "jaccard": 1.0, **none},
            {"language": "de", "other": "ja", "common": 4, "jaccard": 0.05, **chance},
            {"language": "ja", "other": "ja", "common": 1234, "jaccard": 1.0, **none},
        ]
    )


def profile_table(n_layers: int = 4) -> pd.DataFrame:
    rows = []
    for layer, code in itertools.product(range(n_layers), CODES):
        n = 7 * layer + 3 * CODES.index(code)
        rows.append({"layer": layer, "language": code, "neurons": n, "low": n - 2, "high": n + 4})
    return pd.DataFrame(rows)


def fraction_table() -> pd.DataFrame:
    rows = []
    for fraction, code in itertools.product((0.01, 0.05), CODES):
        value = 4 * fraction * (1 + CODES.index(code))
        rows.append(
            {
                "fraction": fraction,
                "language": code,
                "neurons": 10,
                "own_minus_others": value,
                "low": value - 0.01,
                "high": value + 0.02,
                "beyond_random": value,
                "largest_in_row": (fraction, code) != (0.01, "ja"),
                "p_of_all": 0.0042 if fraction == 0.01 else 0.00001,
            }
        )
    return pd.DataFrame(rows)


def training_table() -> pd.DataFrame:
    rows = []
    for tokens, code in itertools.product((3_000_000, 8_000_000), CODES):
        value = tokens / 1e8 * (1 + CODES.index(code))
        rows.append(
            {
                "tokens": tokens,
                "language": code,
                "increase": value,
                "increase_low": value - 0.01,
                "increase_high": value + 0.01,
                "random": value / 10,
            }
        )
    return pd.DataFrame(rows)


def switching_rows(groups: dict[str, dict[str, Any]]) -> pd.DataFrame:
    rows = []
    for (base, columns), code in itertools.product(groups.items(), CODES):
        rate = float(base) + 0.1 * CODES.index(code)
        rates = {"rate": rate, "rate_low": rate - 0.05, "rate_high": rate + 0.05}
        rates |= {"good": rate / 2, "good_low": rate / 2 - 0.04, "good_high": rate / 2 + 0.06}
        rows.append({**columns, "to": code, **rates, "score": rate})
    return pd.DataFrame(rows)


def final_table() -> pd.DataFrame:
    return switching_rows(
        {
            "0.1": {"way": "no edit", "setting": ""},
            "0.6": {"way": "LAPE neurons", "setting": "0.03 of all, strength 2"},
            "0.2": {"way": "random neurons", "setting": "0.03 of all, strength 2"},
        }
    )


def size_table() -> pd.DataFrame:
    return switching_rows({"0.1": {"size": 0.0}, "0.3": {"size": 400.0}, "0.7": {"size": 2000.0}})


def sharing_table(n_layers: int = 3) -> pd.DataFrame:
    shares = {"silent": 0.4, "specific": 0.2, "partly shared": 0.3, "all shared": 0.1}
    rows = []
    for layer, (name, share) in itertools.product(range(n_layers), shares.items()):
        value = share + 0.01 * layer
        rows.append(
            {
                "layer": layer,
                "category": name,
                "share": value,
                "low": value - 0.01,
                "high": value + 0.02,
                "independent": value + 0.03,
                "interchangeable": value / 2,
            }
        )
    return pd.DataFrame(rows)


def patching_table() -> pd.DataFrame:
    """As from `PatchingResult.to_frame()`, with a token that occurs twice."""
    spans = ("the", "cat", "the")
    rows = [
        {
            "source": "source",
            "part": "resid_post",
            "layer": layer,
            "place": place,
            "span": span,
            "answer": "Rome",
            "extent": "each",
            "change": -0.5 * layer + place,
        }
        for layer, (place, span) in itertools.product(range(4), enumerate(spans))
    ]
    return pd.DataFrame(rows)


def moved_table() -> pd.DataFrame:
    rows = []
    for row, layer in itertools.product(("last: concept", "last: language"), range(4)):
        moved = 0.1 * layer * len(row) / 14 - 0.05
        ends = {"low": moved - 0.02, "high": moved + 0.04}
        rows.append({"row": row, "layer": layer, "moved": moved, **ends})
    return pd.DataFrame(rows)


def lens_table() -> pd.DataFrame:
    """Prompts in two languages, with the answer in that language and in English."""
    rows = []
    for asked_in, layer, own in itertools.product(("de", "ja"), range(4), (True, False)):
        chance = 0.1 * layer + 0.05 * own + 0.01 * (asked_in == "ja")
        ends = {"low": chance - 0.01, "high": chance + 0.02}
        language = asked_in if own else "en"
        rows.append(
            {"asked_in": asked_in, "language": language, "layer": layer, "probability": chance}
            | ends
        )
    return pd.DataFrame(rows)


def sums_table() -> pd.DataFrame:
    """Like sums.csv of `interp attribute`."""
    values = {"silent": 0.0, "specific": 0.1, "partly shared": 0.4, "all shared": -0.05}
    return pd.DataFrame(
        {
            "language": code,
            "layer": layer,
            "category": name,
            "value": value * (1 + CODES.index(code)) + 0.01 * layer,
            "quantity": "probability",
        }
        for (name, value), layer, code in itertools.product(values.items(), range(3), CODES)
    )


def tasks_table(tasks: tuple[str, ...] = ("facts", "translation")) -> pd.DataFrame:
    """Like evaluate.csv of `interp evaluate`."""
    rows = []
    for task, off, code in itertools.product(tasks, ("nothing", *CODES), CODES):
        drop = 0.0 if off == "nothing" else 0.3 if off == code else 0.01 * CODES.index(code)
        rows.append(
            {
                "task": task,
                "language": code,
                "off": off,
                "accuracy": 0.8 - drop,
                "drop": math.nan if off == "nothing" else drop,
                "drop_low": math.nan if off == "nothing" else drop - 0.05,
                "drop_high": math.nan if off == "nothing" else drop + 0.04,
                "random": math.nan if off == "nothing" else 0.78,
            }
        )
    return pd.DataFrame(rows)


def explanation_table() -> pd.DataFrame:
    rows = []
    for code, without in itertools.product(CODES, ("script", "word order")):
        kept = 0.1 * (1 + CODES.index(code)) + 0.02 * len(without)
        rows.append(
            {
                "language": code,
                "without": without,
                "neurons": 40,
                "kept": kept,
                "kept_low": kept - 0.04,
                "kept_high": kept + 0.06,
                "random": 0.01,
            }
        )
    return pd.DataFrame(rows)


def neuron_table(codes: tuple[str, ...] = CODES) -> pd.DataFrame:
    """Like that of `interp figure --neuron`; the neuron belongs to the second label."""
    rate = [0.02 + 0.3 * (number == 1) + 0.001 * number for number in range(len(codes))]
    return pd.DataFrame(
        {
            "layer": 5,
            "neuron": 7,
            "language": codes,
            "rate": rate,
            "low": [value - 0.01 for value in rate],
            "high": [value + 0.02 for value in rate],
            "belongs": [number == 1 for number in range(len(codes))],
        }
    )


def routing_table() -> pd.DataFrame:
    """Six layers, of which the first has no experts."""
    difference = [math.nan, 0.31, 0.05, 0.02, 0.07, 0.24]
    return pd.DataFrame(
        {
            "layer": range(6),
            "entropy": [math.nan, 1.2, 1.3, 1.35, 1.3, 1.25],
            "divergence": difference,
            "divergence_low": [value - 0.01 for value in difference],
            "divergence_high": [value + 0.02 for value in difference],
            "shuffled": [math.nan] + [0.01 + 0.001 * layer for layer in range(5)],
            "shuffled_highest": [math.nan] + [0.02 + 0.001 * layer for layer in range(5)],
            "p_value": [math.nan, 0.01, 0.01, 0.3, 0.01, 0.01],
        }
    )


def chosen_experts_table(
    codes: tuple[str, ...] = CODES[:2], n_layers: int = 2, n_experts: int = 8
) -> pd.DataFrame:
    """The first layer has no experts; every label has an expert of its own in each of the others,
    and hardly differs from the others in the rest."""
    rows = []
    for (number, code), layer in itertools.product(enumerate(codes), range(n_layers + 1)):
        for expert in range(n_experts):
            own = expert == (3 * number + layer) % n_experts
            value = 0.2 if own else -0.001 * (1 + (number + layer + expert) % 5)
            value = value if layer else math.nan
            preference = {"preference": value, "preference_low": value - 0.003}
            rows.append(
                {"language": code, "layer": layer, "expert": expert, "tokens": 90, "share": 0.1}
                | preference
                | {"preference_high": value + 0.003}
            )
    return pd.DataFrame(rows)


def rate_change_table() -> pd.DataFrame:
    """Three layers, of which the middle one has no selected neurons."""
    rows = [(layer, "all neurons", 0.01 + 0.002 * layer, 0.003) for layer in range(3)]
    rows += [(layer, "neurons of A", 0.04 + 0.01 * layer, 0.005) for layer in (0, 2)]
    return pd.DataFrame(rows, columns=["layer", "neurons", "change", "chance"])


def rate_change_by_label_table() -> pd.DataFrame:
    """Three layers; nothing differs for the last label."""
    rows = [
        {"language": code, "layer": layer, "difference": size * (1 + layer)}
        for code, size in zip(CODES, (0.01, 0.002, 0.0), strict=True)
        for layer in range(3)
    ]
    return pd.DataFrame(rows)


TABLES = {
    "perplexity_matrix": matrix_table,
    "overlap": overlap_rows,
    "layer_profile": profile_table,
    "loss_against_fraction": fraction_table,
    "curve_of_training": training_table,
    "sharing": sharing_table,
    "attribution_sums": sums_table,
    "accuracy_lost": tasks_table,
    "language_switching": final_table,
    "switching_against_size": size_table,
    "patching": patching_table,
    "moved_by_layer": moved_table,
    "lens": lens_table,
    "explanation": explanation_table,
    "neuron_rates": neuron_table,
    "routing": routing_table,
    "chosen_experts": chosen_experts_table,
    "rate_change": rate_change_table,
    "rate_change_by_label": rate_change_by_label_table,
}
every_figure = pytest.mark.parametrize("name", TABLES)


def drawn(ax: Axes, label: str) -> list[float]:
    """y values of the line with this label."""
    (line,) = (line for line in ax.lines if line.get_label() == label)
    return np.asarray(line.get_ydata(), dtype=float).tolist()


def named(ax: Axes) -> list[Any]:
    """The lines that a legend shows."""
    return [line for line in ax.lines if not str(line.get_label()).startswith("_")]


def strokes(ax: Axes, color: str) -> list[tuple[float, float]]:
    """Lower and upper ends of the vertical strokes of this color, from left to right."""
    ends = []
    for lines in ax.collections:
        if isinstance(lines, LineCollection) and same_color(lines.get_color()[0], color):
            ends += [
                (segment[0, 0], segment[0, 1], segment[1, 1]) for segment in lines.get_segments()
            ]
    return [(low, high) for _, low, high in sorted(ends)]


def cells(ax: Axes, which: int = 0) -> Any:
    meshes = [mesh for mesh in ax.collections if isinstance(mesh, QuadMesh)]
    return np.ma.filled(np.ma.asarray(meshes[which].get_array()), np.nan)


def words(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def pairs(frame: pd.DataFrame, low: str, high: str) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in zip(frame[low], frame[high], strict=True)]


def close(actual: Any, expected: Any) -> bool:
    return np.shape(actual) == np.shape(expected) and bool(
        np.allclose(actual, expected, equal_nan=True)
    )
