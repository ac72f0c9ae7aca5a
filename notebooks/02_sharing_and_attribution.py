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
# # Sharing and attribution
#
# You will see which neurons fire for a prompt and for its translations, how much of that firing
# rates alone explain, which neurons carry an answer, whether those are the shared ones, and what is
# lost when each kind is off. Every share has a chance baseline and every effect a random control:
# by arithmetic alone, a neuron that always fires is always shared.

# %%
# %matplotlib inline
import warnings

import matplotlib.pyplot as plt
import pandas as pd
import torch

import interp

languages = ("en", "de", "fr", "es", "zh", "ja")
generator = torch.Generator().manual_seed(0)
model = interp.load("babel", dtype=torch.float32)  # differences of probabilities need 32 bits

# %% [markdown]
# ## Which neurons do translations share?
#
# Example by example, as in Wang et al. (2024): at the last token of a prompt, does a neuron
# fire in all six languages, in some, in one, or in none? Solid lines are measured. Dashed lines are
# the baseline: languages that fire independently, at the same rates. Only the gap between the two
# shows that translations share something.

# %%
facts = [
    interp.read_task("babel", code).where(lambda item: item.id.startswith("fact_completion"))
    for code in languages
]
rows = interp.text.prompt_rows(interp.text.prompts_of(facts), model, bos="document")
signs = interp.collect(model, rows, keep=interp.Keep(signs="gate"), progress=False).signs
shared = interp.sharing_profile(signs, generator, n_draws=5)
ax = interp.plots.sharing(shared.to_frame())

# %%
last = shared.to_frame().query("layer == layer.max()")
last[["category", "share", "independent", "excess", "excess_low", "excess_high"]].round(3)

# %% [markdown]
# Are they the same neurons on every prompt? One: a neuron that is in the category on one prompt is
# in it on all.

# %%
repeated = pd.DataFrame(
    shared.repeatability.numpy(), columns=["silent", "specific", "partly", "all shared"]
)
repeated.rename_axis("layer").round(3)

# %% [markdown]
# ## Which neurons carry an answer?
#
# We ask about a fact in German. Babel's texts began with <s> in training, but its tokenizer puts
# nothing before a text, so we ask for <s> by name. First: does the model know the answer?

# %%
prompt, answer = interp.text.prompt_ids(model, "Der Tag nach Montag ist", "document"), " Dienstag"
with torch.no_grad():
    chance = model.logits(torch.tensor([prompt]), keep=1)[0, -1].softmax(-1)
best = chance.topk(3)
for probability, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
    print(f"{probability:.2f} {model.decode([token])!r}")

# %% [markdown]
# Integrated gradients give each neuron's contribution to the answer's probability, at the last
# token, layer by layer. The contributions of a layer must add up to the effect of switching that
# layer off; the last column is the error of this sum.

# %%
reasons = interp.integrated_gradients(model, prompt, answer)
reasons.to_frame().round(4)

# %% [markdown]
# Do attributions predict effects? We switch off the neurons with the largest contributions, one at
# a time, and as many random neurons of the same layers.

# %%
largest = reasons.values >= reasons.values.flatten().topk(100).values.min()
top = interp.NeuronSelection(largest[None], ("de",))
drawn = top.random_like(generator, exclude=largest)["de"]
off = {
    name: interp.prompts.ablation_effect(model, prompt, answer, chosen)[chosen]
    for name, chosen in (("largest contributions", largest), ("random", drawn))
}
pd.DataFrame(off).describe().loc[["count", "mean", "std", "min", "max"]].round(4)

# %% [markdown]
# ## Do shared neurons carry the answers?
#
# That was one prompt. Over the days of the week in all six languages: the contributions of each
# category, added up by layer. Categories differ much in size, so the table divides by the number of
# neurons. With 20 steps the sums of a few prompts are off by more than a tenth of the largest
# change, which a warning says once for each; more steps bring them closer.

# %%
days = [task.where(lambda item: "/day_" in item.id) for task in facts]
with warnings.catch_warnings(action="ignore"):
    sums = interp.evaluations.attribute_categories(model, days, bos="document", progress=False)
table = sums.to_frame()
ax = interp.plots.attribution_sums(table)

# %%
by_kind = table.groupby("category", sort=False)[["value", "neurons"]].sum()
by_kind["per thousand neurons"] = 1000 * by_kind["value"] / by_kind["neurons"]
by_kind.round(4)

# %% [markdown]
# ## What is lost without them?
#
# An attribution predicts; switching off measures. At the last token, each category is off in turn,
# and as many random neurons of the same layers. *Excess* is what the category costs beyond those.

# %%
off = interp.evaluations.ablate_categories(
    model, days, generator, tokens="last", n_draws=2, bos="document", progress=False
)
lost = off.to_frame().query("language == 'all'")
columns = ["off", "size", "probability", "probability_drop", "probability_excess"]
lost[[*columns, "probability_excess_low", "probability_excess_high"]].round(3)

# %% [markdown]
# Rows of size *equal* compare categories: equally many neurons of each are off in every layer.
#
# ## What was found

# %%
gap = last.set_index("category").loc["all shared"]
print(f"all shared in the last layer: {gap['share']:.3f}, {gap['independent']:.3f} by rates alone")
print(f"beyond rates: {gap['excess']:.3f} ({gap['excess_low']:.3f} to {gap['excess_high']:.3f})")
for name, row in by_kind.iterrows():
    print(f"{name}: contributes {row['value']:.3f} in all languages together")
equal = lost[lost["size"] == "equal"].set_index("off")["probability_excess"]
print("lost beyond random neurons, at equal size:", equal.round(3).to_dict())

# %% [markdown]
# The figure for a paper; `interp.plots.save_figure(figure, "name")` writes it as PDF and PNG.

# %%
with interp.plots.own_style():
    size = (interp.plots.DOUBLE, 2.6)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, layout="constrained")
    interp.plots.sharing(shared.to_frame(), ax=left)
    interp.plots.attribution_sums(table, ax=right)

# %% [markdown]
# Next: `03_patching_across_languages` moves activations from one prompt into another.
