# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which way of finding language neurons?
#
# Methods are often compared at whatever size each of them happens to give, on the text they were
# tuned on, and without chance. Here all of them choose equally many neurons for each language, from
# the same text, and are asked three things: do they find the same neurons, do they find them again
# on other text, and does it matter to the language when these neurons are off?

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import pandas as pd
import torch

import interp
from interp.inference.intervals import jackknife_shards
from interp.text.sources import read_documents

languages = ("de", "es", "ja")
n = 100  # neurons for each language
generator = torch.Generator().manual_seed(0)
model = interp.load("babel", dtype=torch.float32)  # on most CPUs faster than the stored 16 bits

# %% [markdown]
# ## Three parts of one text
#
# Two to choose from, the third to judge on. Sentences say the same in all languages, and a sentence
# and its translations go to the same part.

# %%
sentences = {code: [each.text for each in read_documents("babel", code)] for code in languages}
thirds = [{code: texts[part::3] for code, texts in sentences.items()} for part in range(3)]


def measure(text):
    """Rates, means of activations and means over sentences, from one pass."""
    rows = interp.read_sentences(text, languages, model, sentences=120, n_shards=10, progress=False)
    keep = interp.Keep(moments=True, sentence_means=("pre",))
    return interp.collect(model, rows, keep=keep, progress=False)


first, second = (measure(thirds[part]) for part in range(2))
print("tokens:", dict(zip(languages, first.firing.tokens.sum(0).tolist(), strict=True)))

# %% [markdown]
# ## The methods
#
# - LAPE (Tang et al., 2024), by language: the least entropy among neurons that are busy in it;
# - average precision (Kojima et al., 2024): how well a neuron alone tells the language's sentences
#   from all others; either the best detectors, or half of them from the worst, as the paper does;
# - rate: whoever fires most in the language, which knows nothing of the others;
# - effect of removal: without whom the layer's output changes most in the language;
# - random neurons.


# %%
METHODS = {
    "LAPE": "lape-per-language",
    "precision": "gate-precision",
    "precision, both ends": "gate-precision-both-ends",
    "rate": "lap",
    "removal": "removal",
    "random": "random",
}  # names of `interp find --method`


def choose(run):
    return {
        name: interp.selections.select(run, method, model, generator, n=n)
        for name, method in METHODS.items()
    }


chosen = choose(first)
pd.DataFrame({name: each.layer_profile().sum(dim=0) for name, each in chosen.items()}).rename_axis(
    "layer"
)

# %% [markdown]
# All have the same size, and already differ in where they look: a score that grows with the size of
# activations goes to the layers where those are large. Chance is therefore always taken with as
# many neurons in each layer.
#
# ## Do they find the same neurons?
#
# Mean Jaccard over languages of each two methods; in brackets what chance would give.


# %%
def overlaps(one, other):
    chance = interp.selections.chance_jaccard(one, other)
    found = interp.selections.jaccard_between(one, other)
    return found.mean().item(), chance.value.mean().item(), (found > chance.high).all().item()


pairs = {(a, b): overlaps(chosen[a], chosen[b]) for a in METHODS for b in METHODS if a != b}
with interp.plots.own_style():
    figure, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
    table = [[pairs.get((a, b), (float("nan"),))[0] for b in METHODS] for a in METHODS]
    image = ax.imshow(table, cmap="Blues", vmin=0)
    for (a, b), (found, chance, beyond) in pairs.items():
        at = (list(METHODS).index(b), list(METHODS).index(a))
        ink, weight = ("white" if found > 0.25 else "black"), ("bold" if beyond else "normal")
        words = f"{found:.3f}\n({chance:.3f})"
        ax.text(*at, words, ha="center", va="center", color=ink, weight=weight, fontsize=6)
    ax.set_xticks(range(len(METHODS)), METHODS, rotation=30, ha="right")
    ax.set_yticks(range(len(METHODS)), METHODS)
    ax.set_title("Jaccard (chance)\nbold: beyond 95 % of chance in every language")

# %% [markdown]
# Two methods that agree may still both be wrong, and two that do not may find different parts of
# the same thing. So ask further.
#
# ## Do they find them again?
#
# The same methods on the second part of the text. A method can be perfectly stable and find nothing
# of interest: neurons that always fire are always found.

# %%
again = choose(second)
rows = []
for name in METHODS:
    found = interp.selections.jaccard_between(chosen[name], again[name])
    chance = interp.selections.chance_jaccard(chosen[name], again[name])
    rows.append(
        {"method": name}
        | dict(zip(languages, found.tolist(), strict=True))
        | {"mean": found.mean().item(), "chance": chance.value.mean().item()}
        | {"chance, 97.5 %": chance.high.max().item()}
    )
pd.DataFrame(rows).set_index("method").round(3)

# %% [markdown]
# How much of that hangs on the text, how much on the settings and on the languages that are there?
# For LAPE as published, each change beside its chance and the most that the sizes allow.

# %%
stability = interp.selections.measure_stability(
    first.stats,
    lambda part: interp.select_by_entropy(part, fraction=0.02),
    generator,
    changes=interp.selections.entropy_settings(0.02, fractions=(0.01,), busy_quantiles=(0.9,))
    | interp.selections.without_languages(
        lambda part: interp.select_by_entropy(part, fraction=0.02), languages
    ),
    splits=4,
)
means = stability.to_frame().groupby("change", sort=False)
means[["jaccard", "low", "high", "chance", "most"]].mean().round(3)

# %% [markdown]
# ## Does it matter?
#
# Each method's neurons off, on the third part of the text. What counts is the rise of the own loss
# beyond that of the other languages; a set that harms everything alike has zero. Beside each stands
# the same for as many random neurons of the same layers. Mind that one of the methods chooses by
# what it is then judged on: a score of damage is good at damage.

# %%
reading = interp.read_corpora(
    thirds[2], languages, model, block_length=64, n_shards=5, tokens=640, progress=False
)
matrices = {
    name: interp.perplexity_matrix(model, each, reading, n_draws=1, progress=False)
    for name, each in chosen.items()
}


def own_minus_others(total):
    square = total["more"] / total["tokens"]
    own = square.diagonal(dim1=-2, dim2=-1)
    return (own - (square.sum(dim=-1) - own) / (len(languages) - 1)).mean(dim=-1)


def with_interval(more):
    found = jackknife_shards({"more": more, "tokens": reading_tokens}, own_minus_others)
    return {end: getattr(found, end).item() for end in ("value", "low", "high")}


reading_tokens = matrices["LAPE"].losses.tokens
more = {name: each.losses.nats[:, 1:] - each.losses.nats[:, :1] for name, each in matrices.items()}
drawn = {name: each.random[:, 0] - each.losses.nats[:, :1] for name, each in matrices.items()}
effects = pd.concat(
    {
        "chosen": pd.DataFrame({name: with_interval(each) for name, each in more.items()}).T,
        "random": pd.DataFrame({name: with_interval(each) for name, each in drawn.items()}).T,
    },
    axis=1,
)
effects.round(3)

# %%
with interp.plots.own_style():
    figure, ax = plt.subplots(figsize=(5, 2.4), layout="constrained")
    for kind, ink, aside in (("chosen", "black", -0.12), ("random", "0.55", 0.12)):
        line = effects[kind]
        reach = (line["value"] - line["low"], line["high"] - line["value"])
        at = [row + aside for row in range(len(line))]
        ax.errorbar(line["value"], at, xerr=reach, fmt="o", color=ink, label=kind)
    ax.set_yticks(range(len(effects)), effects.index)
    ax.axvline(0, color="0.6", linewidth=0.6)
    ax.set(xlabel="Rise of own loss beyond others' (nats per token)")
    ax.invert_yaxis()
    ax.legend(frameon=False)

# %% [markdown]
# Intervals are over documents. Some that overlap may still be of methods that differ, since all
# read the same documents: the difference from LAPE, paired by documents, tells.

# %%
differences = {
    name: with_interval(each - more["LAPE"]) for name, each in more.items() if name != "LAPE"
}
pd.DataFrame(differences).T.round(3)

# %% [markdown]
# Below zero: less to the own language alone than LAPE's. Several methods were compared on one text
# and one model, so the best of them is a little flattered; `experiments/compare_methods.py` asks
# the same of models with planted neurons, where the right answer is known, and of whether the
# neurons can switch the language of what is written.
