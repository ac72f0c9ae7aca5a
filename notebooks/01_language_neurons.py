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
# You will see which neurons of a multilingual model are specific to a language, how far to trust
# the selection, which language suffers when they are off, whether they can switch the language of
# generated text, and a page of every neuron. The model is Babel, which comes with the package: no
# download, no GPU, a minute or two.
#
# Two habits run through everything. Every number has a confidence interval over documents or
# prompts, and is compared with as many random neurons. Without this control, nearly anything looks
# like a finding.

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch

import interp

languages = ("en", "de", "fr", "es", "zh", "ja")
folder = Path(tempfile.mkdtemp())
generator = torch.Generator().manual_seed(0)
model = interp.load("babel", dtype=torch.float32)  # faster on most CPUs than the stored 16 bits
model

# %% [markdown]
# ## 1 Are the hooks correct?
#
# A hook may never run, or read another tensor than its name says. The doctor compares the hooks
# with the model's own modules. Look for a line that says FAIL; there should be none.

# %%
interp.doctor(model)

# %% [markdown]
# ## 2 On how many tokens does each neuron fire?
#
# Babel comes with sentences in six languages. Half of the documents serve to find neurons, the
# other half to evaluate them: neurons evaluated on the text they were found on look too good.
#
# `n_shards` is the number of random groups of documents. The intervals below are jackknife
# intervals, which leave out one group at a time, because the tokens of a document are not
# independent.

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
pd.DataFrame({split: corpora.tokens() for split, corpora in text.items()})

# %% [markdown]
# A neuron fires on a token if its gate is above zero. One pass over the text counts this. It also
# keeps the mean activations and the text on which each neuron fires most, which we need later. With
# a folder, a run that is killed can resume where it stopped.

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
# LAPE (Tang et al., 2024) takes the neurons that are busy in some language, and selects those whose
# firing is spread over the fewest languages. A neuron that fires for one language alone has zero
# entropy.

# %%
neurons = interp.select_by_entropy(stats, fraction=0.03)
neurons

# %% [markdown]
# Would they be selected again? *Kept* is how often a neuron is still selected when one group of
# documents is left out. If it is well below one, the selection depends on single groups.

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
# In which layers are they? The bands are jackknife intervals. They are wide, because the text is
# short: check which differences between layers exceed them.

# %%
profile = interp.jackknife(
    stats,
    lambda part: interp.select_by_entropy(part, fraction=0.03).layer_profile().double(),
)
ax = interp.plots.layer_profile(neurons.layer_frame(profile))

# %% [markdown]
# Would another text give the same neurons? The selections from two halves of the documents predict
# it. A Jaccard of one is full agreement.

# %%
agreement = interp.selections.predicted_agreement(
    stats, lambda part: interp.select_by_entropy(part, fraction=0.03), generator
)
more = interp.selections.text_for_agreement(agreement, wanted=0.9)
print(f"expected Jaccard with a run on as much other text: {agreement:.2f}")
print(f"a Jaccard of 0.9 needs {more:.0f} times as much text")

# %% [markdown]
# ## 4 Which neurons belong to two languages?
#
# Below the diagonal is the measured overlap,
# above it the overlap of random sets of these sizes; bold values lie outside the interval of
# chance.

# %%
ax = interp.plots.overlap(neurons.overlap_frame())

# %% [markdown]
# ## 5 Which language suffers when they are off?
#
# We switch each language's neurons off in turn (rows) and measure the loss on every language
# (columns), on the other half of the text. If the neurons are specific to their language, the
# framed cells are large and the rest of their row is small. The last column is the effect of as
# many random neurons on the same language.

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
# One number for the whole matrix: the effect on the own language minus that on the others, averaged
# over languages. The permutation test shuffles the labels of the sets, so a set that harms every
# language proves nothing. Note the smallest p-value that so few languages allow.

# %%
own = matrix.diagonal()
own

# %% [markdown]
# ## 6 Can they switch the language of generated text?
#
# Babel writes without a prompt, steered towards German and Japanese in four ways: no edit; the
# language's neurons pushed by their difference of means; as many random neurons pushed by theirs;
# and the whole residual stream after one layer, pushed the same way.
#
# A text counts as good if a detector of many languages finds the target language, and the text is
# neither short, nor repetitive, nor less likely under the unedited model than natural text.

# %%
natural = {
    code: [document.text for document in interp.text.read_documents("babel", code)][:200]
    for code in ("de", "ja")
}
settings = {"bos": "document", "progress": False}  # texts begin with <s>, as in training
guards = interp.evaluations.natural_guard(model, natural, max_tokens=24, **settings)
means = interp.interventions.residual_means(
    model, text["train"].languages_only(languages), progress=False
)
random = neurons.random_like(generator, exclude=neurons.union())


def towards(code):
    """Ways to steer to a language, by name: the edit in force while the model writes."""
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
        model, ["de", "ja"], towards(code), guards, n=16, max_new_tokens=24, **settings
    )
    for way, written in texts[code].items():
        line = written.to_frame().set_index("language").loc[code]
        rows.append({"to": code, "way": way, "setting": ""} | line.drop("texts").to_dict())
switching = pd.DataFrame(rows)
ax = interp.plots.language_switching(switching)

# %% [markdown]
# The intervals are wide, because there are few texts: claim no more than they allow. Then read some
# of the texts. Neither the rate nor the guard says whether they make sense.

# %%
for way in ("no edit", "language neurons", "residual stream"):
    print(f"{way}:")
    for sample in texts["de"][way].texts[:3]:
        print("   ", sample.replace("\n", " / "))

# %% [markdown]
# ## 7 Look at neurons
#
# The neuron page shows every neuron of a selection: rates with intervals, the text on which it
# fires most in each language, and the tokens that it promotes. It is one file that works offline;
# `page` as the last line of a cell shows it in the notebook.

# %%
few = interp.select_by_entropy(stats, fraction=0.001)
page = interp.neuron_page(model, stats, {"most specific": few}, run.contexts, progress=False)
path = page.save(folder / "neurons.html")
print(f"{page.n_neurons} neurons, {path.stat().st_size / 1024:.0f} KiB: open {path.name}")

# %% [markdown]
# ## 8 Report it
#
# A report lists each claim, its measurement, and a verdict by a rule fixed in advance: a claim
# holds if the whole interval lies beyond its threshold and beyond its control. The figures contain
# the numbers they were drawn from.

# %%
claim = interp.inference.Claim(
    name="own-neurons",
    statement="A language suffers most from its own neurons.",
    source="Tang et al. (2024)",
    on="Babel",
    how="rise of the own loss minus that of the others, mean over languages, in nats per token",
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
            "Which language suffers?",
            "Each language's neurons off in turn, loss on every language.",
            (
                interp.reports.Picture(
                    interp.plots.perplexity_matrix, "Nats per token.", matrix.to_frame()
                ),
            ),
        ),
        interp.reports.Section(
            "Can they switch the language?",
            "Unconditional samples, steered towards two languages.",
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
# ## What was found

# %%
rise, chance = matrix.increase.value.diagonal().mean(), matrix.control.value.diagonal().mean()
print(f"{int(neurons.union().sum())} of {neurons.union().numel():,} neurons belong to a language")
print(f"expected Jaccard with a run on as much other text: {agreement:.2f}")
print(f"own loss with them off: {rise:+.3f} nats per token, random ones {chance:+.3f}")
print(f"own minus others: {own.mean}, p = {own.test.p_value:.3f}")

# %% [markdown]
# The figure for a paper; `interp.plots.save_figure(figure, "name")` writes it as PDF and PNG.

# %%
with interp.plots.own_style():
    size = (interp.plots.DOUBLE, 2.6)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, layout="constrained")
    interp.plots.layer_profile(neurons.layer_frame(profile), ax=left)
    interp.plots.perplexity_matrix(matrix.to_frame(), ax=right)

# %% [markdown]
# Next: `02_sharing_and_attribution` shows which neurons are shared and which carry an answer,
# `03_patching_across_languages` what moves from one language to another, `04_your_own_model` works
# with models other than Babel, and `05_comparing_methods` compares LAPE with other methods.
