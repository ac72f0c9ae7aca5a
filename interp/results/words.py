"""The values that options accept, in Python and on the command line, and one name shared by tables.

This module imports nothing from the library. Options that no command has are defined where they
are used.
"""

from typing import Literal

# ---------------------------------------------------------------- models and their sites

Attention = Literal["native", "hooked"]
"""Hugging Face's attention, which is fast, or TransformerLens's, which exposes its internals."""

Kind = Literal[
    "pre",
    "pre_linear",
    "post",
    "mlp_out",
    "resid_pre",
    "resid_post",
    "q",
    "k",
    "v",
    "z",
    "attn_out",
    "routing",
]
"""What a site holds, in any layer. "routing": the weights of a mixture's experts."""

Observed = Literal[Kind, "act"]
"""What can be observed during a pass: the values of a site, or act(gate), which has no site."""

UnitKind = Literal[Kind, "head"]
"""What units can be chosen: those of a site, or whole attention heads, whose outputs are at "z"."""

Tokens = Literal["all", "prompt", "generated", "last"]
"""Tokens to edit."""

Towards = Literal["difference", "add", "replace"]
"""Edits of neurons towards a label: its mean minus the mean of the others is added; its mean is
added; they are set to its mean."""

# ---------------------------------------------------------------- text

Bos = Literal["auto", "none", "document", "block"]
"""What is put before text; it never counts as text.

"auto": before each block, sentence and prompt, what the model's tokenizer puts there when it
encodes a text by itself, which may be nothing. "none": nothing. "document", "block": the
beginning-of-text token, before each document or each block, whatever the tokenizer does; a sentence
or a prompt is both.
"""

Split = Literal["all", "train", "held_out"]
"""All documents, or those on one side of the split."""

Care = Literal["report", "drop", "off"]
"""Lines in other languages are counted, counted and dropped, or not detected at all."""

# ---------------------------------------------------------------- neurons

OtherUnits = Literal["heads", "head-effects", "dimensions"]
"""What can be counted of other units than neurons."""

FiresBy = Literal["gate", "activation", "output"]
"""The value whose sign decides whether a neuron fires. "gate": its pre-activation. "activation":
act(gate), which has the sign of the gate in all models but some, such as Apertus: `interp doctor`
says so. "output": act(gate), times the linear branch in a gated MLP, where the sign of that branch
matters too."""

Half = Literal["both", "top", "bottom"]
"""The best and the worst detectors of a language, or only one of the two."""

Quantity = Literal["probability", "log_probability", "logit"]
"""The quantity to explain; with two targets, that of the first minus that of the second."""

# ---------------------------------------------------------------- prompts and tasks

Layers = Literal["each", "from", "all"]
"""Each layer alone; a layer and all later ones; all at once."""

Alike = Literal["last", "tokens", "words", "all"]
"""Which positions correspond: the last tokens; tokens of the same index, one at a time;
space-separated words of the same index, one at a time; or all tokens of the same index at once."""

Normalize = Literal["none", "tokens", "bytes"]
"""What the log-likelihood of an option is divided by. "none": the likeliest text wins, which favors
short options. "tokens": nats per token, which depends on the tokenizer. "bytes": nats per UTF-8
byte of the option."""

# ---------------------------------------------------------------- figures

FigureFormat = Literal["pdf", "svg", "png"]
"""Formats of a figure: vectors with embedded fonts, vectors with letters as shapes, pixels."""

NOTHING = "nothing"
"""Name of the unedited model, among interventions."""
