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
# A prompt asks about one thing in one language, another about another thing in another language.
# Activations of the first are put into the second. Does the answer that follows change its
# language, its thing, or both, and where in the model (Dumas et al., 2024)?
#
# Patching is easily fooled: any push changes an answer. So every patch here stands beside the same
# patch from a prompt about a third thing, from one in the target's own language, and beside a push
# of the same length in a random direction.

# %%
# %matplotlib inline
import random
from itertools import permutations

import matplotlib.pyplot as plt
import pandas as pd
import torch

import interp
from interp.inference.intervals import mean_over_examples
from interp.prompts.lens import promoted_languages, token_languages

# Babel is stored in 16 bits; differences of probabilities want 32.
model = interp.load("babel", dtype=torch.float32)
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## Facts that the model knows
#
# What a model does not know cannot be moved. Taken are days and months for which the right answer
# is the model's first choice. Prompts begin with the token that Babel's texts begin with.

# %%
LANGUAGES = ("de", "en")
RELATIONS = tuple(
    f"fact_completion/{unit}_{side}" for unit in ("day", "month") for side in ("after", "before")
)


def begin(prompt):
    return [model.bos_id, *model.encode(prompt)]


@torch.no_grad()
def knows(item):
    logits = model.logits(torch.tensor([begin(item.prompt)]), keep=1)
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
print({code: len(each) for code, each in facts.items()}, "known in both:", len(known))

# %% [markdown]
# Each pair of facts of one relation gives a question: the source asks about A in German, the target
# about B in English. Four answers share what follows: A and B, in German and in English.


# %%
def right(code, fact):
    item = facts[code][fact]
    return item.options[item.answer].rstrip(".")


def subject(code, fact):
    """What is asked about: the word before the last one."""
    return facts[code][fact].prompt.split()[-2]


def source(code, fact):
    return interp.prompts.PatchSource(begin(facts[code][fact].prompt), (subject(code, fact),))


def relation(fact):
    return fact.split(":")[0]


# A word that both languages begin with the same token, such as August, tells nothing.
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


def crossing(a, b, **settings):
    """German A into English B, with A asked in English and a third fact in German as controls."""
    third = next(c for c in facts["de"] if relation(c) == relation(a) and c not in (a, b))
    words = (right("de", a), right("de", b), right("en", a), right("en", b))
    return interp.patch(
        model,
        source("de", a),
        begin(facts["en"][b].prompt),
        dict(zip(CELLS, words, strict=True)),
        controls={"A, in English": source("en", a), "C, in German": source("de", third)},
        **{"generator": generator, **settings},
    )


one = crossing(a, b)
one.to_frame().query("source == 'source'").pivot(
    index="layer", columns="answer", values="probability"
)[list(CELLS)].round(3)

# %% [markdown]
# ## The residual stream, layer by layer
#
# That was one pair. Over all pairs: how much has the share of A grown (the thing has moved), how
# much that of German (the language has moved)? Means over pairs with intervals; pairs about one
# target fact go together.

# %%
MOVED = {"thing": ("A in German", "A in English"), "language": ("A in German", "B in German")}
clusters = torch.tensor([sorted({b for _, b in pairs}).index(b) for _, b in pairs])


def moved(results):
    """A row for each source, part, place in depth and thing that may move."""
    rows = []
    for what, answers in MOVED.items():
        values = [each.share(answers) - each.unpatched_share(answers) for each in results]
        mean = mean_over_examples(torch.stack(values)[..., 0], clusters)
        for place in torch.cartesian_prod(*map(torch.arange, mean.value.shape)).tolist():
            at, (row, part, layer) = tuple(place), place
            names = {"source": results[0].sources[row], "part": results[0].parts[part]}
            names |= {"layer": results[0].layers[layer], "moved": what}
            rows.append(names | {name: getattr(mean, name)[at].item() for name in ENDS})
    return pd.DataFrame(rows)


ENDS = ("value", "low", "high")
residual = moved([crossing(a, b) for a, b in pairs])
residual.query("source == 'source'").round(3)


# %%
def draw(table, title):
    """What moves, by layer: a panel for the thing and one for the language, a line for a source."""
    with interp.plots.own_style():
        figure, panels = plt.subplots(1, 2, figsize=(6.9, 2.4), sharey=True, layout="constrained")
        for (what, rows), ax in zip(table.groupby("moved", sort=False), panels, strict=True):
            for name, line in rows.groupby("source", sort=False):
                reach = (line["value"] - line["low"], line["high"] - line["value"])
                ax.errorbar(line["layer"], line["value"], reach, marker="o", label=name)
            ax.axhline(0, color="0.6", linewidth=0.6)
            ax.set(xlabel="Layer", title=f"{title}: {what} moved")
        panels[0].set_ylabel("Growth of the share")
        named = panels[0].get_legend_handles_labels()
        figure.legend(*named, loc="outside lower center", ncols=4, frameon=False)


draw(residual, "Last token")

# %% [markdown]
# Look at the controls first. *A, in English* can move the thing and not the language, and noise
# should move neither. *C, in German* is about a third thing: what it adds to the share of A is only
# what B has lost, since the four answers share what follows. The thing has moved as far as the
# source is above C, the language as far as it is above *A, in English*. Behind the last layer the
# state is all that the answer is made of: there the source's answer comes out, whatever it
# carries, and no conclusion follows.
#
# ## The tokens that stand for each other
#
# At the last token, thing and language come together. The thing is said earlier, and there the
# prompts differ in length, so tokens are aligned by the word that both ask about. It is patched in
# a layer and in all behind it.

# %%
spans = crossing(a, b, layers="from", at=(subject("en", b),)).spans
print("patched at:", spans)
words = moved([crossing(a, b, layers="from", at=(subject("en", b),)) for a, b in pairs])
draw(words, "Subject, from layer")

# %% [markdown]
# Where the line of the thing falls to zero, the last token has already read what it needs from the
# subject. In the panel on the right only the subject is German, every other word is English: what
# moves there is the language that comes with one word. Ask whether it moves without the thing, as
# the C of the other language does.
#
# ## Sets of neurons
#
# Do the neurons of the two languages carry the language? They are found by LAPE on other text, and
# put into the target in all layers at the last token; beside as many random neurons in each
# layer, and all the other neurons.

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
theirs = neurons["de"] | neurons["en"]
print("neurons of German or English:", int(theirs.sum()), "of", theirs.numel())

# %%
few, most = {"language neurons": theirs}, {"all other neurons": ~theirs, "all neurons": "post"}
sets = pd.concat(
    [
        moved([crossing(a, b, parts=few, layers="all") for a, b in pairs]),
        moved([crossing(a, b, parts=most, layers="all", generator=None) for a, b in pairs]),
    ]
)
sets.query("source == 'source'").drop(columns=["source", "layer"]).round(3)

# %% [markdown]
# An interval that holds zero, or that of the random neurons, is no finding, however the number
# looks. A set that moves as much as *all neurons* do would carry the whole.
#
# ## How much of the way?
#
# Where source and target are in one language, the way from one answer to the other can be measured:
# zero, nothing has come over; one, the answer is the source's. Noise shows what a push alone does.

# %%
way = []
for a, b in pairs:
    result = interp.patch(
        model,
        begin(facts["en"][a].prompt),
        begin(facts["en"][b].prompt),
        {"A": right("en", a), "B": right("en", b)},
        generator=generator,
    )
    way.append(result.recovered("A", "B")[:, 0, :, 0])
mean = mean_over_examples(torch.stack(way), clusters)


def written(*place):
    value, low, high = (getattr(mean, end)[place].item() for end in ENDS)
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


pd.DataFrame(
    {
        name: [written(row, layer) for layer in range(model.n_layers)]
        for row, name in enumerate(result.sources)
    }
).rename_axis("layer")

# %% [markdown]
# ## What language does each layer speak?
#
# The logit lens reads every layer as if it were the last. How likely is the answer, in the prompt's
# language and in the other? Questions whose two answers may begin with the same token are left out
# and counted; German and Chinese have hardly any. At early layers a low probability says that the
# last norm does not fit there, not that nothing is known.

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
            interp.prompts.Question(begin(item.prompt), answers(fact))
            for fact, item in both[code].items()
            if knows(item)
        ],
    )
    for code in both
}
lenses

# %%
with interp.plots.own_style():
    figure, panels = plt.subplots(1, 2, figsize=(6.9, 2.4), sharey=True, layout="constrained")
    for (code, lens), ax in zip(lenses.items(), panels, strict=True):
        for name, line in lens.to_frame().groupby("language", sort=False):
            reach = (line["probability"] - line["low"], line["high"] - line["probability"])
            ax.errorbar(line["layer"], line["probability"], reach, marker="o", label=name)
        ax.set(xlabel="Layer", title=f"Prompt in {code}")
    panels[0].set_ylabel("Probability of the answer")
    named = panels[0].get_legend_handles_labels()
    figure.legend(*named, loc="outside lower center", ncols=2, frameon=False)

# %% [markdown]
# And what do the language neurons write? Of the tokens that a neuron promotes most, how many belong
# to its language, by how often they stand in texts of each? Beside it random neurons of the same
# layers, since tokens of some languages are promoted by any neuron.

# %%
shares = token_languages(text, model)
rows = {}
for name, chosen in (("language neurons", neurons), ("random", neurons.random_like(generator))):
    promoted = promoted_languages(model, chosen, shares).nanmean(dim=1)
    rows[name] = dict(zip(neurons.languages, promoted.diagonal().tolist(), strict=True))
pd.DataFrame(rows).round(3)
