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
# # Your own model, your own text
#
# You will see the steps from an unknown model to a selection of neurons that you can trust: whether
# the hooks are correct, what a run will cost, how to read text in pieces that survive a kill, and
# how to recognize that there is nothing to find.
#
# So that this runs anywhere, the second cell makes a tiny checkpoint with random weights. Replace
# it with the name of a hub model, or with your own folder.

# %%
# %matplotlib inline
import gzip
import json
import tempfile
import time
from pathlib import Path

import torch

import interp

folder = Path(tempfile.mkdtemp())

# %%
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
vocab = {letter: id for id, letter in enumerate(letters)}
by_bytes = Tokenizer(models.BPE(vocab=vocab, merges=[]))
by_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
by_bytes.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=by_bytes).save_pretrained(folder / "model")

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 4}
heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
config = LlamaConfig(**sizes, **heads, vocab_size=len(letters), initializer_range=0.1)
LlamaForCausalLM(config).save_pretrained(folder / "model")

name = folder / "model"  # or "bigscience/bloom-560m", "Qwen/Qwen3-0.6B", ...

# %% [markdown]
# ## Load it, and run the doctor
#
# Any decoder that TransformerLens loads works. Weights and tokenizer stay unchanged.
# `attention="native"`, the default, keeps the fused attention of the bare model, and all neuron
# sites are still available. Run the doctor once on every new model; it takes two short passes per
# layer. Look for FAIL.

# %%
model = interp.load(name)
diagnosis = interp.doctor(model)
print(str(diagnosis).replace(model.name, "your model"))

# %% [markdown]
# Every function also takes a model that you have already opened, with its hooks:
#
#     bridge = TransformerBridge.boot_transformers("gpt2")
#     interp.doctor(bridge)
#
# ## Text of your own
#
# Your text is a folder with one file per language, named by its code: `.txt` with one document per
# line, or `.jsonl` with a field "text", both optionally gzipped. This cell writes sentences that
# come with the package, a few of them into the wrong file.

# %%
corpus = folder / "corpus"
corpus.mkdir()
sentences = {
    code: [document.text for document in interp.text.read_documents("babel", code)]
    for code in ("en", "fr", "zh", "de")
}
used = {code: texts[:300] for code, texts in sentences.items()}  # the others are held out
(corpus / "en.txt").write_text("\n".join([*used["en"], *used["de"][:9]]), encoding="utf-8")
with gzip.open(corpus / "fr.txt.gz", "wt", encoding="utf-8") as file:
    file.write("\n".join(used["fr"]))
rows = [json.dumps({"text": text}, ensure_ascii=False) for text in used["zh"]]
(corpus / "zh.jsonl").write_text("\n".join(rows), encoding="utf-8")
languages = ("en", "fr", "zh")

# %% [markdown]
# Reading reports lines in another language than that of their file. A percent of English in every
# language is common in web text, and makes neurons of English look shared. `hygiene="drop"` leaves
# such lines out.
#
# Choose `n_shards` once: it is the number of random groups of documents, which intervals are
# computed from and which a job array divides among its jobs. Twenty is a good number; here we use
# fewer.

# %%
reading = {"block_length": 64, "n_shards": 6, "tokens": 12_288, "progress": False}
corpora = interp.read_corpora(corpus, languages, model, **reading)
for report in corpora.hygiene.values():
    print(report)
print("tokens:", corpora.tokens())

# %%
corpora = interp.read_corpora(corpus, languages, model, hygiene="drop", **reading)

# %% [markdown]
# ## What will it cost?
#
# Time: counting adds at most a few percent to a bare forward pass, so time a little text and
# extrapolate. Memory: the model and the counts, which do not grow with the text. Disk: one file of
# counts for each shard of each language.

# %%
wanted_tokens = 1_000_000  # per language: what you would like to read
piece = interp.read_corpora(corpus, languages, model, **{**reading, "tokens": 1536})
start = time.perf_counter()
interp.collect(model, piece, progress=False)
per_second = sum(piece.tokens().values()) / (time.perf_counter() - start)

parameters = model.bridge.parameters()
weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
counts = corpora.n_shards * len(languages) * model.n_layers * model.d_mlp * 8
hours = len(languages) * wanted_tokens / per_second / 3600
print(f"{model.n_layers} layers of {model.d_mlp:,} neurons, {weights / 2**20:,.1f} MiB of weights")
print(f"counts: {counts / 2**20:,.1f} MiB on disk, and the same in memory for the merge")
print(f"{hours:.3f} hours for {wanted_tokens:,} tokens of each language")

# %% [markdown]
# A model of 7 billion parameters or more only needs to be loaded differently:
#
#     model = interp.load("meta-llama/Llama-2-7b-hf", dtype=torch.bfloat16)
#     model = interp.load(name, dtype=torch.bfloat16, device_map="auto")
#     model = interp.load(name, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
#
# The second line spreads the layers over several GPUs, or leaves some of them on the CPU.
#
# - Lower `tokens_per_batch` if memory runs out. It can change results in the last bits, so a folder
#   started with one value refuses another.
# - With `stop_when=interp.selections.until_stable(0.95)` a run ends once a repetition on other text
#   would select nearly the same neurons; this is often long before the text ends.
# - To report numbers from attribution and patching, use 32 bits, or check how much 16 bits change
#   them.
#
# ## Read it in pieces
#
# A run is a folder. Its pieces are written atomically, so after a kill the same call resumes. Three
# jobs of an array each read a third, in any order, on any machine that shares the folder:
#
#     interp collect MODEL --text corpus/ --languages en fr zh --out runs/mine --shard 1/3
#     interp collect MODEL --text corpus/ --languages en fr zh --out runs/mine --shard 2/3
#     interp collect MODEL --text corpus/ --languages en fr zh --out runs/mine --shard 3/3
#     interp merge runs/mine
#
# The same in Python, with the second job last:

# %%
out = folder / "run"
for part in (1, 3):
    run = interp.collect(model, corpora, out, part=(part, 3), progress=False)
    print(f"after part {part}:", run.status())

# %% [markdown]
# An early merge fails with a message that says what is missing.

# %%
try:
    run.merge()
except ValueError as refused:
    print(str(refused).replace(str(out), "runs/mine"))

# %%
interp.collect(model, corpora, out, part=(2, 3), progress=False)
stats = interp.Run.open(out).merge().firing
at_once = interp.collect(model, corpora, progress=False).firing
print("the same counts as in one run:", torch.equal(stats.fired, at_once.fired))

# %% [markdown]
# A folder refuses a model, text or settings other than those it was started with.

# %%
other = interp.read_corpora(corpus, languages, model, seed=1, **reading)
try:
    interp.collect(model, other, out, progress=False)
except ValueError as refused:
    print(str(refused).replace(str(out), "runs/mine"))

# %% [markdown]
# ## Find neurons, and check how far to trust them
#
# LAPE selects neurons from any model, even this one with random weights: each language has its own
# bytes, so some neurons fire more for one language than for others, on any text.


# %%
def select(part):
    return interp.select_by_entropy(part, fraction=0.03)


neurons = select(stats)
agreement = interp.selections.predicted_agreement(stats, select, torch.Generator().manual_seed(0))
print(f"expected Jaccard with another run: {agreement:.2f}")
neurons

# %% [markdown]
# Neurons that are found again do not necessarily matter. We switch them off on held-out text, and
# compare with as many random neurons. A model with random weights knows no language, so the change
# of the loss, of either sign, should not depend on whose neurons are off. This is what a null
# result looks like. Check whether the last interval contains zero, and look at the p-value.

# %%
held_out = {code: sentences[code][300:] for code in languages}
test = interp.read_corpora(held_out, languages, model, block_length=64, n_shards=6, tokens=3072)
matrix = interp.perplexity_matrix(model, neurons, test, n_draws=2, progress=False)
matrix

# %%
matrix.diagonal()

# %% [markdown]
# ## Save it
#
# Results store their provenance. A selection is a human-readable file, and can be exported to the
# format of the LAPE authors.

# %%
neurons.to_json(folder / "neurons.json")
again = interp.NeuronSelection.from_json(folder / "neurons.json")
neurons.to_lape_pth(folder / "neurons.pth")
print("read back:", again == neurons)
print("\n".join((folder / "neurons.json").read_text().splitlines()[:4]))

# %% [markdown]
# An edit can be written into a checkpoint that any Hugging Face program can load. It is kept only
# if its logits match those of the hooked model.

# %%
baked = interp.bake(model, neurons["fr"], interp.deactivate, folder / "without-french")
ids = torch.tensor([interp.text.prompt_ids(model, "Il fait beau.")])
with torch.no_grad(), interp.intervene(model, neurons["fr"], interp.deactivate):
    hooked = model.logits(ids)
with torch.no_grad():
    distance = (interp.load(baked).logits(ids) - hooked).abs().max().item()
print(f"largest difference from the hooked model: {distance:.1e}")

# %% [markdown]
# ## What was found

# %%
own = matrix.diagonal()
print(f"{int(neurons.union().sum())} neurons, expected Jaccard with another run {agreement:.2f}")
print(f"own minus others {own.mean}, p = {own.test.p_value:.3f}: a null result")

# %% [markdown]
# The figure for a paper, with its table beside it: `interp.plots.save(frame, "perplexity_matrix")`.

# %%
ax = interp.plots.perplexity_matrix(matrix.to_frame())
