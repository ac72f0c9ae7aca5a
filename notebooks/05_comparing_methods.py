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
# # Comparing methods to find language neurons
#
# You will see six methods side by side: whether they find the same neurons, whether they find them
# again on other text, and whether it matters to the language when these neurons are off.
#
# Methods are often compared at whatever size each happens to give, on the text they were tuned on,
# and without a chance baseline. Here all methods select equally many neurons per language from the
# same text.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import pandas as pd
import torch

import interp

languages = ("de", "es", "ja")
n = 100  # neurons for each language
generator = torch.Generator().manual_seed(0)
model = interp.load("babel", dtype=torch.float32)  # faster on most CPUs than the stored 16 bits

# %% [markdown]
# ## Three parts of one text
#
# We select neurons on two parts and evaluate on the third. The sentences are parallel in all
# languages, and a sentence and its translations are in the same part.

# %%
sentences = {
    code: [document.text for document in interp.text.read_documents("babel", code)]
    for code in languages
}
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
# - LAPE (Tang et al., 2024), by language: the lowest entropy among neurons that are busy in it;
# - average precision (Kojima et al., 2024): how well a single neuron separates the language's
#   sentences from all others; either the best detectors, or, as in the paper, the best and the
#   worst in equal parts;
# - rate: the neurons that fire most often in the language, regardless of the other languages;
# - removal: the neurons whose removal changes the layer's output most in the language;
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
pd.DataFrame(
    {name: selection.layer_profile().sum(dim=0) for name, selection in chosen.items()}
).rename_axis("layer")

# %% [markdown]
# All selections have the same size, but they already differ by layer: a score that grows with the
# size of activations prefers the layers with large activations. This is why chance is always
# computed with as many neurons in each layer.
#
# ## Do they find the same neurons?
#
# Jaccard of every pair of methods, mean over languages; in brackets the Jaccard by chance.


# %%
def overlaps(one, other):
    chance = interp.selections.chance_jaccard(one, other)
    jaccard = interp.selections.jaccard_between(one, other)
    return jaccard.mean().item(), chance.value.mean().item(), (jaccard > chance.high).all().item()


pairs = {(a, b): overlaps(chosen[a], chosen[b]) for a in METHODS for b in METHODS if a != b}
with interp.plots.own_style():
    figure, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
    table = [[pairs.get((a, b), (float("nan"),))[0] for b in METHODS] for a in METHODS]
    image = ax.imshow(table, cmap="Blues", vmin=0)
    for (a, b), (jaccard, chance, beyond) in pairs.items():
        at = (list(METHODS).index(b), list(METHODS).index(a))
        ink, weight = ("white" if jaccard > 0.25 else "black"), ("bold" if beyond else "normal")
        words = f"{jaccard:.3f}\n({chance:.3f})"
        ax.text(*at, words, ha="center", va="center", color=ink, weight=weight, fontsize=6)
    ax.set_xticks(range(len(METHODS)), METHODS, rotation=30, ha="right")
    ax.set_yticks(range(len(METHODS)), METHODS)
    ax.set_title("Jaccard (chance)\nbold: beyond 95 % of chance in every language")

# %% [markdown]
# Two methods that agree may both be wrong, and two that disagree may find different parts of the
# same set. So we go on.
#
# ## Do they find them again?
#
# We apply the same methods to the second part of the text. Stability alone proves little: neurons
# that always fire are always found.

# %%
rechosen = choose(second)
rows = []
for name in METHODS:
    jaccard = interp.selections.jaccard_between(chosen[name], rechosen[name])
    chance = interp.selections.chance_jaccard(chosen[name], rechosen[name])
    rows.append(
        {"method": name}
        | dict(zip(languages, jaccard.tolist(), strict=True))
        | {"mean": jaccard.mean().item(), "chance": chance.value.mean().item()}
        | {"chance, 97.5 %": chance.high.max().item()}
    )
pd.DataFrame(rows).set_index("method").round(3)

# %% [markdown]
# How much of this depends on the text, on the settings, and on which languages are compared? The
# table is for LAPE as published: each change, its chance level and the maximum that the sizes
# allow.

# %%
stability = interp.selections.measure_stability(
    first.firing,
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
# We switch each method's neurons off, on the third part of the text. The measure is how much more
# the own loss rises than that of the other languages; a set that harms all languages alike scores
# zero. The control is as many random neurons of the same layers. Note that one method, removal,
# selects by nearly the same measure: a score of damage is good at damage.

# %%
reading = interp.read_corpora(
    thirds[2], languages, model, block_length=64, n_shards=5, tokens=640, progress=False
)
matrices = {
    name: interp.perplexity_matrix(model, selection, reading, n_draws=1, progress=False)
    for name, selection in chosen.items()
}


def selectivity(total):
    rise = total["more"] / total["tokens"]
    return interp.evaluations.own_minus_others(rise).mean(dim=-1)


def with_interval(more):
    estimate = interp.inference.jackknife_shards(
        {"more": more, "tokens": reading_tokens}, selectivity
    )
    return {end: getattr(estimate, end).item() for end in ("value", "low", "high")}


reading_tokens = matrices["LAPE"].losses.tokens
more, drawn = {}, {}
for name, matrix in matrices.items():
    more[name] = matrix.losses.nats[:, 1:] - matrix.losses.nats[:, :1]
    drawn[name] = matrix.random[:, 0] - matrix.losses.nats[:, :1]
effects = pd.concat(
    {
        "chosen": pd.DataFrame({name: with_interval(rise) for name, rise in more.items()}).T,
        "random": pd.DataFrame({name: with_interval(rise) for name, rise in drawn.items()}).T,
    },
    axis=1,
)
effects.round(3)

# %% [markdown]
# Intervals are over documents. Methods can differ even if their intervals overlap, because all read
# the same documents. The difference from LAPE, paired by document, decides.

# %%
differences = {
    name: with_interval(rise - more["LAPE"]) for name, rise in more.items() if name != "LAPE"
}
pd.DataFrame(differences).T.round(3)

# %% [markdown]
# Below zero: the effect is less specific to the own language than LAPE's. We compared several
# methods on one text and one model, so the best looks a little better than it is.
# `experiments/compare_methods.py` asks the same questions of models with planted neurons, where the
# right answer is known, and also whether the neurons can switch the language of generated text.

# %% [markdown]
# ## What was found

# %%
again = pd.DataFrame(rows).set_index("method")["mean"]
for name in METHODS:
    value, low, high = effects["chosen"].loc[name]
    print(f"{name}: found again {again[name]:.3f}, effect {value:.3f} ({low:.3f} to {high:.3f})")

# %% [markdown]
# The figure for a paper; `interp.plots.save_figure(figure, "name")` writes it as PDF and PNG.

# %%
with interp.plots.own_style():
    figure, ax = plt.subplots(figsize=(5, 2.4), layout="constrained")
    for kind, ink, offset in (("chosen", "black", -0.12), ("random", "0.55", 0.12)):
        line = effects[kind]
        errors = (line["value"] - line["low"], line["high"] - line["value"])
        at = [row + offset for row in range(len(line))]
        ax.errorbar(line["value"], at, xerr=errors, fmt="o", color=ink, label=kind)
    ax.set_yticks(range(len(effects)), effects.index)
    ax.axvline(0, color="0.6", linewidth=0.6)
    ax.set(xlabel="Rise of own loss minus that of others (nats per token)")
    ax.invert_yaxis()
    ax.legend(frameon=False)
