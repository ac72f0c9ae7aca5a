"""The words that options may be, in Python and on the command line, and one that tables share.

Nothing is imported for them. Words that no command asks for are defined where they are used.
"""

from typing import Literal

# ---------------------------------------------------------------- models and their sites

Attention = Literal["native", "hooked"]
"""Hugging Face's own attention, which is fast; or TransformerLens', which shows its inside."""

Kind = Literal[
    "pre", "pre_linear", "post", "mlp_out", "resid_pre", "resid_post", "q", "k", "v", "attn_out"
]
"""What a site holds, whatever its layer."""

Tokens = Literal["all", "prompt", "generated", "last"]
"""Tokens that are edited."""

# ---------------------------------------------------------------- text

Bos = Literal["none", "document", "block"]
"""Beginning-of-text tokens: nowhere, before each document, or first in each block."""

Split = Literal["all", "train", "held_out"]
"""All documents, or those on one side of the split."""

Care = Literal["report", "drop", "off"]
"""Lines in other languages are counted, counted and left out, or not looked for."""

# ---------------------------------------------------------------- neurons

FiresBy = Literal["gate", "output"]
"""By what a neuron fires on a prompt. "gate": its pre-activation, whose sign says whether it is
open. "output": what it hands on, act(gate), times the linear branch where there is one; there the
sign of the linear branch decides too. Without one both have the same sign."""

Half = Literal["both", "top", "bottom"]
"""The best detectors of a language and the worst, or one of these ends alone."""

Quantity = Literal["probability", "log_probability", "logit"]
"""What is explained; with two targets, the first one's minus the second one's."""

# ---------------------------------------------------------------- prompts and tasks

Layers = Literal["each", "from", "all"]
"""One layer alone; a layer and all behind it; all at once."""

Alike = Literal["last", "tokens", "words", "all"]
"""The last token; each token with that of the same number; each word, as spaces part them, with
that of the same number; or all tokens together, each with that of the same number."""

Start = Literal["auto", "bos", "eos", "none"]
"""What stands before a text: the beginning-of-text token, the end-of-text token, or nothing.

"auto": the first of the two that the tokenizer has. BLOOM has both and learned from the second
alone: "eos" is right there.
"""

Normalize = Literal["none", "tokens", "bytes"]
"""What the log-likelihood of an option is divided by. "none": the likeliest text wins, and short
options have it easier. "tokens": nats per token, which depends on the tokenizer. "bytes": nats per
byte of UTF-8 of the option."""

NOTHING = "nothing"
"""Name of the model as it is, among interventions."""
