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
# # From a cache
#
# You have a model of TransformerLens and an `ActivationCache`. In ten minutes you will see how
# often each neuron fires in six languages, which neurons belong to a language, what one of them
# fires on, which language suffers when they are off, which neurons a prompt and its translations
# share, and which of those carry the answer.
#
# The model is only run by `run_with_cache` and `run_with_hooks`. Rates and LAPE are computed by
# hand first, so that you see what the library computes.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

import interp

languages = ("en", "de", "fr", "es", "zh", "ja")

# %% [markdown]
# ## A model
#
# Babel is the small model that comes with the package, and `.bridge` its `TransformerBridge`, such
# as `TransformerBridge.boot_transformers("gpt2")` gives you. All other cells run with the older
# `HookedTransformer` too.

# %%
model = interp.load("babel", dtype=torch.float32).bridge

# %% [markdown]
# ## Caches
#
# The package comes with sentences in all six languages. Those of a batch have different lengths, so
# a mask says which positions are text: neither padding, nor the token that `to_tokens` puts in
# front. Counted without the mask, padding would look like a language of its own.

# %%
named = interp.wrap(model)  # the same model, which knows its special tokens
names = [f"blocks.{layer}.mlp.hook_pre" for layer in range(model.cfg.n_layers)]
documents = {code: list(interp.text.read_documents("babel", code))[:60] for code in languages}
sentences = {code: [document.text for document in documents[code]] for code in languages}


def run(texts):
    """Tokens, the mask of those that are text, and a cache of all gates."""
    tokens = model.to_tokens(texts)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=names)
    return tokens, named.text_mask(tokens), cache


read = {
    code: [run(texts[n : n + 12]) for n in range(0, 48, 12)] for code, texts in sentences.items()
}
keep = {code: [mask for _, mask, _ in batches] for code, batches in read.items()}
caches = {code: [cache for _, _, cache in batches] for code, batches in read.items()}

# %% [markdown]
# ## On how many tokens does each neuron fire?
#
# A neuron fires on a token if its gate is above zero. In a gated model such as Llama or Babel that
# is `hook_pre`; the sign of `hook_post` depends on the other branch too.
#
# Each cache is a *shard*. The tokens of one text are not independent, but batches of texts are, so
# the intervals are jackknife intervals over shards.

# %%
stats = interp.FiringStats.from_caches(caches, keep=keep)
stats

# %% [markdown]
# The same by hand, for one layer of one cache:

# %%
gate, text = caches["de"][0]["blocks.3.mlp.hook_pre"], keep["de"][0]
by_hand = (gate > 0)[text].double().mean(dim=0)
by_library = interp.counting.firing_rate(caches["de"][0], text)[3]
print("equal in all neurons:", torch.equal(by_hand, by_library))

# %% [markdown]
# ## Which neurons belong to a language?
#
# LAPE (Tang et al., 2024), by hand: how a neuron's firing divides among languages, as an entropy.
# The neurons with the lowest entropy belong to few languages. Only neurons that are busy in some
# language count: whatever fired once in the whole text has zero entropy. As in the authors' code,
# busy is a rate above an order statistic of all rates.

# %%
rate, fraction = stats.rate, 0.02
share = rate / rate.sum(dim=0)
entropy = -torch.xlogy(share, share).sum(dim=0)
threshold = rate.flatten().kthvalue(round(0.95 * rate.numel())).values
busy = rate > threshold
lowest = entropy.masked_fill(~busy.any(dim=0), torch.inf).flatten().argsort(stable=True)
chosen = torch.zeros(entropy.numel(), dtype=torch.bool)
chosen[lowest[: round(fraction * entropy.numel())]] = True
lape = busy & chosen.reshape(entropy.shape)

# %% [markdown]
# And by the library. Ties aside, it is the same set:

# %%
neurons = interp.select_by_entropy(stats, fraction=fraction)
both = (neurons.mask & lape).sum() / (neurons.mask | lape).sum()
print(f"Jaccard with the set by hand: {both:.3f}")
neurons

# %% [markdown]
# In which layers are they? The bands show how much this depends on the texts.


# %%
def select(part):
    return interp.select_by_entropy(part, fraction=fraction)


profile = interp.jackknife(stats, lambda part: select(part).layer_profile().double())
ax = interp.plots.layer_profile(neurons.layer_frame(profile))

# %% [markdown]
# ## What does one of them fire on?
#
# The busiest neuron of German: its rates in all languages, and the tokens on which its gate is
# highest. Read the words before you name the neuron.

# %%
of_german = torch.where(neurons["de"], rate[languages.index("de")], -1.0)
layer, neuron = divmod(int(of_german.argmax()), rate.shape[-1])
print(f"layer {layer}, neuron {neuron}")
pd.DataFrame({"rate": rate[:, layer, neuron].numpy()}, index=pd.Index(languages)).T.round(3)

# %%
rows = []
for tokens, mask, cache in read["de"]:
    gate = cache[f"blocks.{layer}.mlp.hook_pre"][..., neuron].masked_fill(~mask, -torch.inf)
    for row, pos in enumerate(gate.argmax(dim=1).tolist()):
        before = model.tokenizer.decode(tokens[row, max(1, pos - 6) : pos])
        token = model.tokenizer.decode(tokens[row, pos : pos + 1])
        rows.append({"gate": gate[row, pos].item(), "before": before, "token": token})
pd.DataFrame(rows).nlargest(8, "gate").round(2)

# %% [markdown]
# ## Which language suffers when they are off?
#
# A neuron is off if its output, `hook_post`, is zero. A change gives itself as hooks for
# `run_with_hooks`, here on sentences that the neurons were not selected on. The control switches
# off as many random neurons of the same layers.


# %%
def loss(texts, hooks=()):
    """Nats per token."""
    tokens = model.to_tokens(texts)
    mask = named.text_mask(tokens)[:, 1:]
    with torch.no_grad():
        logits = model.run_with_hooks(tokens, fwd_hooks=list(hooks))[:, :-1]
    return cross_entropy(logits[mask], tokens[:, 1:][mask]).item()


def rise(code, change):
    """Rise of a language's loss under a change."""
    return loss(held_out[code], change.hooks(model)) - before[code]


held_out = {code: texts[48:] for code, texts in sentences.items()}
before = {code: loss(texts) for code, texts in held_out.items()}
off = {code: neurons.change(code, interp.deactivate) for code in languages}
matrix = pd.DataFrame(
    [[rise(read, off[code]) for read in languages] for code in languages], languages, languages
)
matrix.rename_axis(index="off", columns="read").round(3)

# %%
drawn = neurons.random_like(torch.Generator().manual_seed(0), exclude=neurons.union())
control = {code: rise(code, drawn.change(code, interp.deactivate)) for code in languages}
pd.Series(control).rename_axis("random neurons off, and read").round(3).to_frame("rise")

# %% [markdown]
# Compare the diagonal with the rest of its row, and with the random neurons. The next notebook adds
# intervals and a test, which these numbers still lack.
#
# ## Which neurons do translations share?
#
# At the last token of a prompt, a neuron fires in all languages, in some, in one, or in none (Wang
# et al., 2024). The prompts differ in length, so the mask says where each ends. By chance: what
# languages would share if each neuron kept its rates but fired independently in every language.

# %%
tasks = [interp.read_task("babel/fact_completion", code) for code in languages]
calendar = [task.where(lambda item: "day_" in item.id or "month_" in item.id) for task in tasks]
prompts = interp.text.prompts_of(calendar)
asked = {code: run(list(prompts.texts[code])) for code in languages}
at_end = {code: cache for code, (_, _, cache) in asked.items()}
until = {code: mask for code, (_, mask, _) in asked.items()}

category = interp.scores.categories_from_caches(at_end, keep=until)
active = torch.stack([interp.counting.fires(at_end[code], -1, until[code]) for code in languages])
by_chance = interp.scores.chance_of_categories(active.double().mean(dim=2)).mean(dim=-1)
kinds = [kind.name.lower().replace("_", " ") for kind in interp.Sharing]
sharing = pd.DataFrame(
    {
        **{kind: (category == n).double().mean(dim=(1, 2)) for n, kind in enumerate(kinds)},
        "all shared, by chance": by_chance[interp.Sharing.ALL_SHARED],
    }
).rename_axis("layer")
sharing.round(3)

# %% [markdown]
# ## Which of them carry the answer?
#
# Integrated gradients give each neuron's contribution to the probability of the answer, at the last
# token, all layers in one pass. The sums of a layer should equal what switching that layer off
# changes.

# %%
row = next(n for n, name in enumerate(prompts.ids) if "day_after:tuesday" in name)
prompt, answer = prompts.texts["de"][row], " Mittwoch"
reasons = interp.integrated_gradients(model, model.to_tokens(prompt), answer)
print(prompt, answer)
reasons

# %%
of_prompt = category[:, row]
by_kind = pd.DataFrame(
    {
        "neurons": [int((of_prompt == n).sum()) for n in range(len(kinds))],
        "contribution": [reasons.values[of_prompt == n].sum().item() for n in range(len(kinds))],
    },
    index=pd.Index(kinds),
)
by_kind.round(3)

# %% [markdown]
# ## What was found

# %%
own = sum(matrix.loc[code, code] for code in languages) / len(languages)
others = (matrix.to_numpy().sum() / len(languages) - own) / (len(languages) - 1)
own_random = sum(control.values()) / len(languages)
print(f"{int(neurons.union().sum())} of {entropy.numel():,} neurons belong to some language")
print(f"with a language's neurons off, its loss rises by {own:.3f} nats per token,")
print(f"that of the others by {others:.3f}; with as many random neurons off, by {own_random:.3f}")
last = sharing.iloc[-1]
print(f"in the last layer {last['all shared']:.3f} of the neurons fire in all languages,", end=" ")
print(f"{last['all shared, by chance']:.3f} by chance")

# %% [markdown]
# The figure for a paper; `interp.plots.save_figure(figure, "name")` writes it as PDF and PNG.

# %%
with interp.plots.own_style():
    size = (interp.plots.DOUBLE, 2.4)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, layout="constrained")
    interp.plots.layer_profile(neurons.layer_frame(profile), ax=left)
    most = matrix.abs().to_numpy().max()
    image = right.imshow(matrix, cmap="RdBu_r", vmin=-most, vmax=most)
    right.set_xticks(range(len(languages)), languages)
    right.set_yticks(range(len(languages)), languages)
    right.set(xlabel="Language read", ylabel="Neurons off")
    figure.colorbar(image, ax=right, label="Rise of the loss (nats per token)")

# %% [markdown]
# Next: `01_language_neurons` reads a corpus, adds intervals and a test, steers, and ends with a
# report.
