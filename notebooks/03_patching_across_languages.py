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
# # Patching across languages
#
# You will see what moves when activations go from a prompt in one language into one in another: the
# concept it asks about, or the language of the answer; in which layer, at which token, and with
# which neurons (Dumas et al., 2024).
#
# Patching misleads easily, because any push changes an answer. So every patch here has three
# controls: the same patch from a prompt about a third concept, the same from a prompt in the
# target's own language, and a push of the same length in a random direction.

# %%
# %matplotlib inline
import random
from itertools import permutations, product

import matplotlib.pyplot as plt
import pandas as pd
import torch

import interp

# Babel is stored in 16 bits; differences of probabilities need 32.
model = interp.load("babel", dtype=torch.float32)
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## Facts that the model knows
#
# A fact that the model does not know cannot be moved. We take days and months for which the right
# answer is the model's first choice. Babel's texts began with <s> in training, but its tokenizer
# puts nothing before a text, so we ask for <s> by name: bos="document".

# %%
LANGUAGES = ("de", "en")
RELATIONS = tuple(
    f"fact_completion/{unit}_{side}" for unit in ("day", "month") for side in ("after", "before")
)


@torch.no_grad()
def knows(item):
    logits = model.logits(
        torch.tensor([interp.text.prompt_ids(model, item.prompt, "document")]), keep=1
    )
    return logits[0, -1].argmax() == model.encode(item.options[item.answer])[0]


facts = {
    code: {
        item.id: item
        for item in interp.read_task("babel", code).items
        if item.id.startswith(RELATIONS) and knows(item)
    }
    for code in LANGUAGES
}
known = sorted(set(facts["de"]) & set(facts["en"]))
print({code: len(items) for code, items in facts.items()}, "known in both:", len(known))

# %% [markdown]
# Each pair of facts with the same relation gives a question: the source asks about A in German, the
# target about B in English. We compare the probabilities of four answers: A and B, in German and in
# English.


# %%
def right(code, fact):
    item = facts[code][fact]
    return item.options[item.answer].rstrip(".")


def subject(code, fact):
    """The word that the prompt asks about: the last but one."""
    return facts[code][fact].prompt.split()[-2]


def source(code, fact):
    return interp.prompts.PatchSource(facts[code][fact].prompt, (subject(code, fact),))


def relation(fact):
    return fact.split(":")[0]


# Words that begin with the same token in both languages, such as August, cannot tell them apart.
known = [
    fact
    for fact in known
    if model.encode(right("de", fact))[0] != model.encode(right("en", fact))[0]
]
pairs = [(a, b) for a, b in permutations(known, 2) if relation(a) == relation(b)]
pairs = random.Random(0).sample(pairs, min(24, len(pairs)))
a, b = pairs[0]
print("source:", facts["de"][a].prompt, "→", right("de", a))
print("target:", facts["en"][b].prompt, "→", right("en", b))
print("pairs:", len(pairs))

# %%
CELLS = ("A in German", "B in German", "A in English", "B in English")


def controls(a, b):
    """The same concept in the target's language, and a third concept in the source's."""
    third = next(c for c in facts["de"] if relation(c) == relation(a) and c not in (a, b))
    return {"A, in English": source("en", a), "C, in German": source("de", third)}


def crossing(a, b, **settings):
    """Patch German A into English B."""
    words = (right("de", a), right("de", b), right("en", a), right("en", b))
    answers = dict(zip(CELLS, words, strict=True))
    settings = {"generator": generator, "controls": controls(a, b), "bos": "document", **settings}
    return interp.patch(model, source("de", a), facts["en"][b].prompt, answers, **settings)


one = crossing(a, b)
one.to_frame().query("source == 'source'").pivot(
    index="layer", columns="answer", values="probability"
)[list(CELLS)].round(3)

# %% [markdown]
# ## The residual stream, layer by layer
#
# That was one pair. Over all pairs: how much does the share of A rise (the concept has moved), and
# how much that of German (the language has moved)? The table shows means over pairs with
# intervals, clustered by target fact.

# %%
MOVED = {"concept": ("A in German", "A in English"), "language": ("A in German", "B in German")}
clusters = torch.tensor([sorted({b for _, b in pairs}).index(b) for _, b in pairs])


def mean_moved(results, answers):
    """Mean rise of the share of these answers, with intervals: [source part layer]."""
    rises = [result.share(answers) - result.unpatched_share(answers) for result in results]
    return interp.inference.mean_over_examples(torch.stack(rises)[..., 0], clusters)


def moved(results):
    """A row for each source, part, layer, and concept or language."""
    axes, rows = (results[0].sources, results[0].parts, results[0].layers), []
    for what, answers in MOVED.items():
        mean = mean_moved(results, answers)
        for at in product(*map(range, mean.value.shape)):
            names = [axis[n] for axis, n in zip(axes, at, strict=True)]
            numbers = [getattr(mean, end)[at].item() for end in ENDS]
            rows.append([*names, what, *numbers])
    return pd.DataFrame(rows, columns=["source", "part", "layer", "moved", *ENDS])


ENDS = ("value", "low", "high")
residual = moved([crossing(a, b) for a, b in pairs])
residual.query("source == 'source'").round(3)


# %%
def by_layer(ax, table, column):
    """A line with intervals for each of a column's values."""
    for name, line in table.groupby(column, sort=False):
        errors = (line["value"] - line["low"], line["high"] - line["value"])
        ax.errorbar(line["layer"], line["value"], errors, marker="o", label=name)
    ax.set(xlabel="Layer")


def draw(panels, column, ylabel):
    """A panel for each title and its table, with one legend."""
    with interp.plots.own_style():
        size = (interp.plots.DOUBLE, 2.4)
        figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, layout="constrained")
        for ax, (title, table) in zip(axes, panels.items(), strict=True):
            by_layer(ax, table, column)
            ax.set(title=title)
        axes[0].set_ylabel(ylabel)
        entries = axes[0].get_legend_handles_labels()
        figure.legend(*entries, loc="outside lower center", ncols=4, frameon=False)


def draw_moved(table, where):
    panels = {f"{where}: {what}": rows for what, rows in table.groupby("moved", sort=False)}
    draw(panels, "source", "Rise of the share")


draw_moved(residual, "Last token")

# %% [markdown]
# Look at the controls first. *A, in English* can move the concept but not the language, and noise
# should move neither. *C, in German* is about a third concept: it adds to the share of A only what
# B has lost, because the four shares add up to one. The concept has moved by as much as the source
# exceeds C, the language by as much as it exceeds *A, in English*. After the last layer, the answer
# depends on nothing but this state: there a patch gives the source's answer whatever the state
# carries, and no conclusion follows.
#
# ## Corresponding tokens
#
# At the last token, concept and language come together. The concept is named earlier, where the
# prompts differ in length, so tokens are aligned by the word that both prompts ask about. We patch
# it in a layer and in all later ones.

# %%
spans = crossing(a, b, layers="from", at=(subject("en", b),)).spans
print("patched at:", spans)
words = moved([crossing(a, b, layers="from", at=(subject("en", b),)) for a, b in pairs])
draw_moved(words, "Subject, from layer")

# %% [markdown]
# Where the line of the concept falls to zero, the last token has already read what it needs from
# the subject. In the right panel only the subject is German, and every other word is English: it
# shows the language that a single word brings. Check whether it moves without the concept, as with
# C in German.
#
# ## Sets of neurons
#
# Do the neurons of the two languages carry the language? LAPE finds them on other text. We patch
# them in all layers at the last token, and compare with as many random neurons in each layer and
# with all other neurons.

# %%
text = interp.read_corpora(
    "babel",
    ("en", "de", "fr", "es", "zh", "ja"),
    model,
    block_length=64,
    n_shards=5,
    tokens=1920,
    progress=False,
)
run = interp.collect(model, text, progress=False)
neurons = interp.select_by_entropy(run.firing, fraction=0.03)
either = neurons["de"] | neurons["en"]
print("neurons of German or English:", int(either.sum()), "of", either.numel())

# %%
few, most = {"language neurons": either}, {"all other neurons": ~either, "all neurons": "post"}
sets = pd.concat(
    [
        moved([crossing(a, b, parts=few, layers="all") for a, b in pairs]),
        moved([crossing(a, b, parts=most, layers="all", generator=None) for a, b in pairs]),
    ]
)
sets.query("source == 'source'").drop(columns=["source", "layer"]).round(3)

# %% [markdown]
# If an interval contains zero, or the value for the random neurons, there is no finding, however
# large the number looks. A set that moves as much as *all neurons* would carry everything.
#
# ## How much of the answer is recovered?
#
# If source and target are in the same language, we can measure how far the answer moves from the
# target's to the source's: zero, not at all; one, all the way. Noise shows the effect of a push
# alone.

# %%
recovered = []
for a, b in pairs:
    result = interp.patch(
        model,
        facts["en"][a].prompt,
        facts["en"][b].prompt,
        {"A": right("en", a), "B": right("en", b)},
        generator=generator,
        bos="document",
    )
    recovered.append(result.recovered("A", "B")[:, 0, :, 0])
mean = interp.inference.mean_over_examples(torch.stack(recovered), clusters)


def with_interval(*index):
    value, low, high = (getattr(mean, end)[index].item() for end in ENDS)
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


pd.DataFrame(
    {
        name: [with_interval(row, layer) for layer in range(model.n_layers)]
        for row, name in enumerate(result.sources)
    }
).rename_axis("layer")

# %% [markdown]
# ## Which language does each layer predict?
#
# The logit lens reads every layer as if it were the last. How likely is the answer in the prompt's
# language, and in the other? Questions whose two answers may begin with the same token are left out
# and counted; German and Chinese have hardly any. A low probability at an early layer means that
# the final norm does not fit there, not that the layer knows nothing.

# %%
both = {
    code: {item.id: item for item in interp.read_task("babel", code).items[:120]}
    for code in ("de", "zh")
}


def answers(fact):
    return {code: both[code][fact].options[both[code][fact].answer].strip() for code in both}


lenses = {
    code: interp.logit_lens(
        model,
        [
            interp.prompts.Question(item.prompt, answers(fact))
            for fact, item in both[code].items()
            if knows(item)
        ],
        bos="document",
    )
    for code in both
}
lenses

# %%
tables = {
    f"Prompt in {code}": lens.to_frame().rename(columns={"probability": "value"})
    for code, lens in lenses.items()
}
draw(tables, "language", "Probability of the answer")

# %% [markdown]
# And which tokens do the language neurons promote? Of the tokens that a neuron promotes most, which
# share belongs to its language, judged by how often each occurs in texts of each language? The
# control is random neurons of the same layers, because any neuron promotes tokens of some language.

# %%
shares = interp.prompts.token_languages(text, model)
rows = {}
for name, chosen in (("language neurons", neurons), ("random", neurons.random_like(generator))):
    promoted = interp.prompts.promoted_languages(model, chosen, shares).nanmean(dim=1)
    rows[name] = dict(zip(neurons.languages, promoted.diagonal().tolist(), strict=True))
pd.DataFrame(rows).round(3)

# %% [markdown]
# ## What was found

# %%
middle = residual[residual["layer"] == model.n_layers // 2]
for what, rows in middle.groupby("moved", sort=False):
    value = rows.set_index("source")["value"]
    print(f"{what}, middle layer: {value['source']:.3f},", end=" ")
    print(", ".join(f"{name} {value[name]:.3f}" for name in value.index if name != "source"))
few_moved = sets.query("source == 'source' and part == 'language neurons'").set_index("moved")
print("language neurons alone:", few_moved[["value", "low", "high"]].round(3).to_dict("index"))

# %% [markdown]
# The figure for a paper; `interp.plots.save_figure(figure, "name")` writes it as PDF and PNG.

# %%
draw_moved(residual, "Last token")
