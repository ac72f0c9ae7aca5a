"""The real models, texts and sizes of the `paper` presets, and what they cost.

`python -m experiments.deactivate_neurons paper` runs on the model named here; `--study.model` takes
another, such as any of `GIGAFLOPS`. Results go to results/<study>/paper/<model>, so those of two
models never mix. Some models are gated on the Hugging Face hub: accept their terms there, and log
in. `python -m experiments.paper_tasks` makes the tasks; text is streamed.

Hours are estimates: the operations per token that `interp plan` counts, at an assumed throughput.
No `paper` preset was run at full size here; each was run on small random models of all these
architectures (tests/test_paper_presets.py).
"""

from collections.abc import Mapping
from typing import Any

from experiments.runner import Preset
from experiments.study import LANGUAGES, Study

GIGAFLOPS: Mapping[str, float] = {
    "bigscience/bloom-560m": 0.705,
    "bigscience/bloom-7b1": 12.583,
    "bigscience/bloomz-7b1-mt": 12.583,
    "facebook/xglm-564M": 0.705,
    "meta-llama/Llama-2-7b-hf": 13.489,
    "meta-llama/Llama-3.2-1B": 2.080,
    "Qwen/Qwen3-0.6B-Base": 1.116,
    "mistralai/Mistral-7B-v0.1": 14.496,
}
"""Model → 10⁹ operations per token in rows of 2,048 tokens, as `interp plan` counts them."""

TERAFLOPS: Mapping[str, float] = {"float32": 30.0, "bfloat16": 200.0, "float16": 200.0}
"""Assumed of one H100: about half of its nominal throughput in float32, a fifth in 16 bits."""

TANG = Study(
    model="meta-llama/Llama-2-7b-hf",
    text="wikipedia",
    languages=("en", "zh", "fr", "es", "vi", "id", "ja"),
    tokens=99_999_744,
    held_out_tokens=1 << 20,
    held_out_bos="auto",
    block_length=4096,
    dtype="float16",
)
"""Tang et al. (2024): the languages, tokens, rows and precision of their LLaMA-2-7B. They do not
name their dump of Wikipedia."""

KOJIMA = Study(
    model="bigscience/bloom-560m",
    text="paws-x",
    languages=LANGUAGES,
    tokens=500_000,
    held_out_tokens=100_000,
    held_out_bos="auto",
    sentences=500,
    special_tokens=True,
)
"""Kojima et al. (2024): 500 sentences per language, whose means include the first token, if the
tokenizer puts one there. Theirs come from PAWS-X and FLORES-200; detect_languages reads the
original files with `--sense`."""

WANG = Study(
    model="bigscience/bloomz-7b1-mt",
    languages=("en", "de", "es", "fr", "ru", "th", "tr", "vi", "zh"),
    held_out_bos="auto",
    dtype="float16",
)
"""Wang et al. (2024): the languages that all their tasks have, and their model, in 16 bits, since
they do not say in how many. Only tasks are read, no text."""

TOP_SHARE = 800 / 16_384
"""Of a layer's neurons: the largest contributions that Wang et al. look at."""

FACTS, INFERENCES, EDITS = "results/tasks/mlama", "results/tasks/xnli", "results/tasks/mzsre"
"""Folders of tasks. The third, edited facts (MzsRE of ReMaKE), is not on the hub: put it there."""


def hours(study: Study, tokens: float) -> float:
    """Estimated hours for one H100 to read this many tokens, counted over all passes."""
    work = GIGAFLOPS[study.model] * 1e9 * tokens
    return work / (TERAFLOPS[study.dtype] * 1e12) / 3600


def preset(study: Study, data: str, tokens: float, more: str = "", **differences: Any) -> Preset:
    """The `paper` preset of a study; its text names the model, the data and the estimated hours.

    `tokens` counts all passes; `more` is what comes on top of them.
    """
    needed = hours(study, tokens)
    time = f"{needed:.2g} GPU hours" if needed >= 0.1 else "less than 0.1 GPU hours"
    count = f"{tokens / 1e6:,.0f} million" if tokens >= 1e6 else f"{tokens:,.0f}"
    text = (
        f"{study.model} on {data}. Estimate: {time} for {count} tokens in all passes, if an H100 "
        f"does {TERAFLOPS[study.dtype]:g} TFLOP/s in {study.dtype}{more and f'; {more}'}."
    )
    return Preset(text, study, differences)
