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
# The steps from a model that nothing is known about to a selection of neurons that can be trusted:
# what it will cost, whether its hooks are sound, how to read text in pieces that survive a kill,
# and how to see that there is nothing to be found.
#
# So that this runs anywhere, the second cell makes a tiny checkpoint with random weights and saves
# it to a folder. Put the name of a hub model, or your own folder, in its place.

# %%
# %matplotlib inline
import gzip
import json
import tempfile
import time
from pathlib import Path

import torch

import interp
from interp.text.sources import read_documents

folder = Path(tempfile.mkdtemp())

# %%
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

letters = sorted(pre_tokenizers.ByteLevel.alphabet())
by_bytes = Tokenizer(models.BPE(vocab={each: id for id, each in enumerate(letters)}, merges=[]))
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
# ## Open it, and ask the doctor
#
# Any decoder that TransformerLens opens will do. The weights stay as they are, and so does the
# tokenizer. `attention="native"`, the default, keeps the fused attention of the bare model; what
# neurons need is seen all the same. The doctor takes two short passes per layer and should be asked
# once of every new model: look for FAIL.

# %%
model = interp.load(name)
diagnosis = interp.doctor(model)
print(str(diagnosis).replace(model.name, "your model"))

# %% [markdown]
# A model that you hold already, with its hooks, can be wrapped as it is:
#
#     bridge = TransformerBridge.boot_transformers("gpt2")
#     model = interp.wrap(bridge)
#
# ## Text of your own
#
# A folder with a file per language: `.txt` with a document in each line, `.jsonl` with a field
# "text", either of them packed with gzip. The names of the files are the codes of the languages.
# Here sentences are written there that come with the package, a few of them to the wrong file.

# %%
corpus = folder / "corpus"
corpus.mkdir()
some = {
    code: [each.text for each in read_documents("babel", code)] for code in ("en", "fr", "zh", "de")
}
mine = {code: texts[:300] for code, texts in some.items()}  # the others are for judging
(corpus / "en.txt").write_text("\n".join([*mine["en"], *mine["de"][:9]]), encoding="utf-8")
with gzip.open(corpus / "fr.txt.gz", "wt", encoding="utf-8") as file:
    file.write("\n".join(mine["fr"]))
rows = [json.dumps({"text": each}, ensure_ascii=False) for each in mine["zh"]]
(corpus / "zh.jsonl").write_text("\n".join(rows), encoding="utf-8")
languages = ("en", "fr", "zh")

# %% [markdown]
# Reading reports lines that are in another language than their file says. A percent of English in
# everything is common in web text, and it makes neurons of English look shared. With
# `hygiene="drop"` such lines are left out.
#
# Choose `n_shards` once: the groups of documents that intervals come from, and that a job array
# divides among its jobs. Twenty is a good number, here it is fewer.

# %%
reading = {"block_length": 64, "n_shards": 6, "tokens": 12_288, "progress": False}
corpora = interp.read_corpora(corpus, languages, model, **reading)
for report in corpora.hygiene.values():
    print(report)
print("tokens that count:", corpora.tokens())

# %%
corpora = interp.read_corpora(corpus, languages, model, hygiene="drop", **reading)

# %% [markdown]
# ## What will it cost?
#
# Time: counting costs a few percent of a bare forward pass, so read a little and extrapolate.
# Memory: the model, and the counts, which do not grow with the text. On disk, a file of counts for
# each shard of each language.

# %%
wanted_tokens = 1_000_000  # per language: what you would like to read
piece = interp.read_corpora(corpus, languages, model, **{**reading, "tokens": 1536})
before = time.perf_counter()
interp.collect(model, piece, progress=False)
per_second = sum(piece.tokens().values()) / (time.perf_counter() - before)

weights = sum(each.numel() * each.element_size() for each in model.bridge.parameters())
counts = corpora.n_shards * len(languages) * model.n_layers * model.d_mlp * 8
hours = len(languages) * wanted_tokens / per_second / 3600
print(f"{model.n_layers} layers of {model.d_mlp:,} neurons, {weights / 2**20:,.1f} MiB of weights")
print(f"counts: {counts / 2**20:,.1f} MiB on disk, and once in memory when they are merged")
print(f"{hours:.3f} hours for {wanted_tokens:,} tokens of each language")

# %% [markdown]
# For a model of 7 billion parameters and more, nothing changes but how it is opened:
#
#     model = interp.load("meta-llama/Llama-2-7b-hf", dtype=torch.bfloat16)
#     model = interp.load(name, dtype=torch.bfloat16, device_map="auto")
#     model = interp.load(name, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
#
# The second line spreads the layers over several GPUs, or leaves some of them on the CPU.
#
# - Lower `tokens_per_batch` when memory runs out. The numbers may change in the last bits with it,
#   so a folder that was begun with one value refuses another.
# - With `stop_when=interp.selections.until_stable(0.95)` a run ends once a repetition on other text
#   would select nearly the same neurons; that is often long before the text ends.
# - Attribution and patching want 32 bits for numbers to report, or a look at how much 16 bits move
#   them.
#
# ## Read it in pieces
#
# A run is a folder. Its pieces are written whole or not at all, so after a kill the same call goes
# on from there. Three jobs of an array read a third each, in any order, on any machine that sees
# the folder:
#
#     interp collect MODEL --text corpus/ --languages en fr zh --out runs/mine --shard 1/3
#     interp collect MODEL --text corpus/ --languages en fr zh --out runs/mine --shard 2/3
#     interp collect MODEL --text corpus/ --languages en fr zh --out runs/mine --shard 3/3
#     interp merge runs/mine
#
# The same in Python, with the second job late:

# %%
out = folder / "run"
for part in (1, 3):
    run = interp.collect(model, corpora, out, part=(part, 3), progress=False)
    print(f"after part {part}:", run.status())

# %% [markdown]
# Merging too early is refused with a sentence that says what is missing.

# %%
try:
    run.merge()
except ValueError as refused:
    print(str(refused).replace(str(out), "runs/mine"))

# %%
interp.collect(model, corpora, out, part=(2, 3), progress=False)
stats = interp.Run.open(out).merge().firing
at_once = interp.collect(model, corpora, progress=False).firing
print("the same counts as in one go:", torch.equal(stats.fired, at_once.fired))

# %% [markdown]
# A folder refuses what it was not begun with: another model, other text, other settings.

# %%
other = interp.read_corpora(corpus, languages, model, seed=1, **reading)
try:
    interp.collect(model, other, out, progress=False)
except ValueError as refused:
    print(str(refused).replace(str(out), "runs/mine"))

# %% [markdown]
# ## Find neurons, and ask how far to trust them
#
# LAPE selects from any model, this one with random weights too: each language has bytes of its own,
# so some neurons fire for one language more than for others, and they do so in any text.


# %%
def select(part):
    return interp.select_by_entropy(part, fraction=0.03)


neurons = select(stats)
agreement = interp.selections.predicted_agreement(stats, select, torch.Generator().manual_seed(0))
print(f"expected Jaccard with another run: {agreement:.2f}")
neurons

# %% [markdown]
# That neurons are found again does not make them matter. Switch them off, on text that they were
# not found on, beside as many random ones. A model with random weights knows no language, so what
# happens to the loss, of either sign, should not depend on whose neurons are off: this is what
# nothing looks like. Look at the last interval, whether it holds zero, and at the p-value.

# %%
fresh = {code: some[code][300:] for code in languages}
test = interp.read_corpora(fresh, languages, model, block_length=64, n_shards=6, tokens=3072)
matrix = interp.perplexity_matrix(model, neurons, test, n_draws=2, progress=False)
ax = interp.plots.perplexity_matrix(matrix.to_frame())

# %%
matrix.diagonal()

# %% [markdown]
# ## Keep it
#
# Results know where they come from. A selection is a file that people can read, and it exports to
# the format of the LAPE authors.

# %%
neurons.to_json(folder / "neurons.json")
again = interp.NeuronSelection.from_json(folder / "neurons.json")
neurons.to_lape_pth(folder / "neurons.pth")
print("read back:", again == neurons)
print("\n".join((folder / "neurons.json").read_text().splitlines()[:4]))

# %% [markdown]
# An edit can be written into a checkpoint that every Hugging Face program opens. It is checked
# against the hooks before it is left on disk.

# %%
baked = interp.bake(model, neurons["fr"], interp.deactivate, folder / "without-french")
ids = torch.tensor([model.encode("Il fait beau.")])
with torch.no_grad(), interp.intervene(model, neurons["fr"], interp.deactivate):
    hooked = model.logits(ids)
with torch.no_grad():
    distance = (interp.load(baked).logits(ids) - hooked).abs().max().item()
print(f"largest difference from the hooked model: {distance:.1e}")
