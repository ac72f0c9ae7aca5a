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
# # Language neurons, from text to report
#
# Which neurons of a multilingual model belong to a language, which are shared, and what happens
# when they are changed. All of it on Babel, the small model that comes with the package: no
# download, no GPU, a minute or two.
#
# Two habits run through everything. A number comes with an interval over documents or prompts, and
# beside it stands what as many random neurons do. Without the second, nearly anything looks like a
# finding.

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import pandas as pd
import torch

import interp
from interp.text.sources import read_documents

languages = ("en", "de", "fr", "es", "zh", "ja")
folder = Path(tempfile.mkdtemp())
generator = torch.Generator().manual_seed(0)
model = interp.load("babel", dtype=torch.float32)  # on most CPUs faster than the stored 16 bits
model

# %% [markdown]
# ## 1 Can the hooks be believed?
#
# A hook may be silent, or sit at another tensor than its name says. The doctor compares hooks with
# the model's own modules. Look for a line that says FAIL; there should be none.

# %%
interp.doctor(model)

# %% [markdown]
# ## 2 On how many tokens does every neuron fire?
#
# Babel comes with sentences in six languages. Half of the documents are for finding neurons, the
# other half for judging them: neurons tried on the text they were found on look too good.
#
# `n_shards` is the number of random groups of documents. Every interval below comes from leaving
# one group out at a time, since the tokens of a document are not independent of one another.

# %%
text = {
    split: interp.read_corpora(
        "babel",
        languages,
        model,
        block_length=64,
        n_shards=10,
        tokens=4480,
        split=split,
        held_out=0.5,
        progress=False,
    )
    for split in ("train", "held_out")
}
pd.DataFrame({split: each.tokens() for split, each in text.items()})

# %% [markdown]
# A neuron fires where its gate is above zero. One pass over the text counts that, and keeps the
# means of what neurons give and the text on which each fires most, which are needed later. With a
# folder, a run that is killed continues where it stopped.

# %%
keep = interp.Keep(moments=True, contexts=3)
run = interp.collect(model, text["train"], folder / "firing", keep=keep, progress=False)
stats, moments = run.firing, run.moments
stats

# %%
rate = interp.jackknife(stats, lambda part: part.rate.mean(dim=(1, 2)))
pd.DataFrame(
    {"mean rate": rate.value, "low": rate.low, "high": rate.high}, index=pd.Index(languages)
).round(4)

# %% [markdown]
# ## 3 Which neurons belong to a language?
#
# LAPE (Tang et al., 2024): of the neurons that are busy in some language, those whose firing is
# spread over the fewest. The entropy of the spread is zero for a neuron of one language alone.

# %%
neurons = interp.select_by_entropy(stats, fraction=0.03)
neurons

# %% [markdown]
# Would they be selected again? *Kept* says how often a neuron is, when one group of documents is
# left out. It hangs on single groups where it is well below one.

# %%
frequency = interp.inference.selection_frequency(
    stats, lambda part: interp.select_by_entropy(part, fraction=0.03).mask
)
pd.DataFrame(
    {
        "neurons": neurons.counts(),
        "kept": {
            code: frequency[row][neurons[code]].mean().item() for row, code in enumerate(languages)
        },
    }
).round(3)

# %% [markdown]
# Where are they? The bands are jackknife intervals. With a short text they are wide: look at which
# differences between layers survive them.

# %%
profile = interp.jackknife(
    stats,
    lambda part: interp.select_by_entropy(part, fraction=0.03).layer_profile().double(),
)
ax = interp.plots.layer_profile(neurons.layer_frame(profile))

# %% [markdown]
# Would another text give the same neurons? The selections of two halves of the documents foretell
# it. One would be full agreement.

# %%
agreement = interp.selections.predicted_agreement(
    stats, lambda part: interp.select_by_entropy(part, fraction=0.03), generator
)
more = interp.selections.text_for_agreement(agreement, wanted=0.9)
print(f"expected Jaccard with a run on as much other text: {agreement:.2f}")
print(f"times as much text for a Jaccard of 0.9: {more:.0f}")

# %% [markdown]
# ## 4 Who is shared?
#
# First, neurons of two languages at once. Below the diagonal is what was found, above it what
# chance gives to sets of these sizes; bold lies beyond the interval of chance.

# %%
ax = interp.plots.overlap(neurons.overlap_frame())

# %% [markdown]
# Second, example by example, as Wang et al. (2024) ask: at the last token of a prompt, does a
# neuron fire in all six languages, in some, in one, in none? Solid lines are what is found. Dashed:
# languages that know nothing of each other, at the same firing rates. Only what lies between the
# two says that translations share something.

# %%
facts = [
    interp.read_task("babel", code).where(lambda item: item.id.startswith("fact_completion"))
    for code in languages
]
rows = interp.text.prompt_rows(interp.text.prompts_of(facts), model)
signs = interp.collect(model, rows, keep=interp.Keep(signs="gate"), progress=False).signs
shared = interp.sharing_profile(signs, generator, n_draws=5)
ax = interp.plots.sharing(shared.to_frame())

# %%
last = shared.to_frame().query("layer == layer.max()")
last[["category", "share", "independent", "excess", "excess_low", "excess_high"]].round(3)

# %% [markdown]
# ## 5 Switch them off: who suffers?
#
# Each language's neurons off in turn (rows), every language read (columns), on the other half of
# the text. If they are a language's own, the framed cells are large and the rest of their row is
# small. The last column is what as many random neurons do to the same language.

# %%
reading = interp.read_corpora(
    "babel",
    languages,
    model,
    block_length=64,
    n_shards=5,
    split="held_out",
    held_out=0.5,
    tokens=1280,
    progress=False,
)
matrix = interp.perplexity_matrix(model, neurons, reading, n_draws=1, progress=False)
ax = interp.plots.perplexity_matrix(matrix.to_frame())

# %% [markdown]
# One number for the whole picture: own language less the others, averaged over languages. The test
# deals out the names of the sets anew, so that a set that harms everybody proves nothing. Look at
# the smallest p-value that so few languages allow.

# %%
own = matrix.diagonal()
own

# %% [markdown]
# ## 6 Can they switch the language of what is written?
#
# Babel writes from nothing, under four edits towards German and Japanese: none; the language's
# neurons pushed by their difference of means; as many random neurons pushed by theirs; and the
# whole residual stream behind one layer, pushed the same way.
#
# A text counts as good if a detector that knows many languages finds the one wanted, and it is
# neither short nor repetitive nor less likely for the untouched model than natural text.

# %%
natural = {
    code: [each.text for each in read_documents("babel", code)][:200] for code in ("de", "ja")
}
guards = interp.evaluations.natural_guard(model, natural, max_tokens=24, progress=False)
means = interp.interventions.residual_means(
    model, text["train"].languages_only(languages), progress=False
)
random = neurons.random_like(generator, exclude=neurons.union())


def towards(code):
    """Ways to ask for a language, by name: what is changed while the model writes."""
    push = interp.difference_of_means(moments, code, strength=2.0)
    return {
        "no edit": None,
        "random neurons": random.change(code, push),
        "language neurons": neurons.change(code, push),
        "residual stream": interp.Change(*means.towards(code, layer=3, strength=2.0)),
    }


# %%
rows, texts = [], {}
for code in guards:
    texts[code] = interp.generated_languages(
        model, ["de", "ja"], towards(code), guards, n=16, max_new_tokens=24, progress=False
    )
    for way, written in texts[code].items():
        line = written.to_frame().set_index("language").loc[code]
        rows.append({"to": code, "way": way, "setting": ""} | line.drop("texts").to_dict())
switching = pd.DataFrame(rows)
ax = interp.plots.language_switching(switching)

# %% [markdown]
# The strokes are wide, since there are few texts: say only what they allow. Then read some. A rate
# says nothing about sense, and neither does the guard.

# %%
for way in ("no edit", "language neurons", "residual stream"):
    print(f"{way}:")
    for sample in texts["de"][way].texts[:3]:
        print("   ", sample.replace("\n", " / "))

# %% [markdown]
# ## 7 Which neurons carry an answer?
#
# A fact, asked in German; prompts begin with the token that Babel's texts begin with. First: does
# it know the answer?


# %%
def begin(prompt):
    return [model.bos_id, *model.encode(prompt)]


prompt, answer = begin("Der Tag nach Montag ist"), " Dienstag"
with torch.no_grad():
    chance = model.logits(torch.tensor([prompt]), keep=1)[0, -1].softmax(-1)
best = chance.topk(3)
for probability, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
    print(f"{probability:.2f} {model.decode([token])!r}")

# %% [markdown]
# Integrated gradients: each neuron's share of the answer's probability, at the last token, layer by
# layer. A layer's shares must add up to what switching the layer off changes; the last column says
# by how much they miss that.

# %%
reasons = interp.integrated_gradients(model, prompt, answer)
reasons.to_frame().round(4)

# %% [markdown]
# Does an attribution tell what happens? Switch the neurons with the largest shares off, each
# alone, beside as many drawn at random from the same layers.

# %%
largest = reasons.values >= reasons.values.flatten().topk(100).values.min()
top = interp.NeuronSelection(largest[None], ("de",))
drawn = top.random_like(generator, exclude=largest)["de"]
off = {
    name: interp.prompts.ablation_effect(model, prompt, answer, chosen)[chosen]
    for name, chosen in (("largest shares", largest), ("random", drawn))
}
pd.DataFrame(off).describe().loc[["count", "mean", "std", "min", "max"]].round(4)

# %% [markdown]
# And are they German? How many of them are among the neurons of German, beside what chance gives
# to as many in each layer.

# %%
german = neurons.languages_only(["de"])
found = interp.selections.jaccard_between(top, german).item()
by_chance = interp.selections.chance_jaccard(top, german)
print(f"Jaccard with the neurons of German: {found:.4f}")
print(f"by chance {by_chance.value.item():.4f}", end=", ")
print(f"95 % between {by_chance.low.item():.4f} and {by_chance.high.item():.4f}")

# %% [markdown]
# ## 8 What if a part came from another prompt?
#
# The German prompt asks about Monday, the English one about Thursday. The residual stream behind
# one layer is taken from the German prompt and put into the English one, at the last token. Does
# the answer that follows change its day, its language, or both?

# %%
crossing = interp.patch(
    model,
    begin("Der Tag nach Montag ist"),
    begin("The day after Thursday is"),
    {"Dienstag": " Dienstag", "Freitag": " Freitag", "Tuesday": " Tuesday", "Friday": " Friday"},
    controls={"another day": begin("Der Tag nach Samstag ist")},
    generator=generator,
)
moved = crossing.to_frame().pivot_table(
    index=["source", "layer"], columns="answer", values="probability", sort=False
)
moved.round(2)

# %% [markdown]
# The controls say what any German prompt does, and what a push of the same length in a random
# direction does. One pair of prompts is an anecdote: the notebook on patching averages over many.
#
# ## 9 Look at neurons
#
# A page with every neuron of a selection: rates with intervals, the text on which it fires most in
# each language, the tokens that it makes likelier. It is one file that asks nothing of the network;
# `page` as the last line of a cell shows it in the notebook.

# %%
few = interp.select_by_entropy(stats, fraction=0.001)
page = interp.neuron_page(model, stats, {"most specific": few}, run.contexts, progress=False)
path = page.save(folder / "neurons.html")
print(f"{page.n_neurons} neurons, {path.stat().st_size / 1024:.0f} KiB: open {path.name}")

# %% [markdown]
# ## 10 Hand it on
#
# What was claimed, what came out, and a verdict by a rule that was there before: a claim holds if
# the whole interval lies beyond its bar. The figures carry the numbers they were drawn from.

# %%
claim = interp.inference.Claim(
    name="own-neurons",
    statement="A language suffers most from its own neurons.",
    source="Tang et al. (2024)",
    on="Babel",
    how="rise of the own loss less that of the others, mean over languages, in nats per token",
    command="this notebook",
    value=own.mean.value.item(),
    low=own.mean.low.item(),
    high=own.mean.high.item(),
    control=matrix.control.value.diagonal().mean().item(),
    control_name="own loss with as many random neurons",
)
interp.inference.scoreboard([claim])[
    ["statement", "value", "low", "high", "control", "verdict"]
].round(3)

# %%
report = interp.write_report(
    folder / "report.html",
    "Language neurons of Babel",
    [
        interp.reports.Section(
            "Who suffers?",
            "Each language's neurons off in turn, and every language read.",
            (
                interp.reports.Picture(
                    interp.plots.perplexity_matrix, "Nats per token.", matrix.to_frame()
                ),
            ),
        ),
        interp.reports.Section(
            "Can they switch the language?",
            "Texts begun from nothing, under edits towards two languages.",
            (
                interp.reports.Picture(
                    interp.plots.language_switching, "Share of texts.", switching
                ),
            ),
        ),
    ],
    [claim],
)
print(f"{report.stat().st_size / 1024:.0f} KiB: open {report.name}")

# %% [markdown]
# Next: `patching` on what moves from one language to another, `compare_methods` on rivals of LAPE,
# `your_own_model` on everything but Babel.
