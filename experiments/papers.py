"""The real models, texts and sizes of the presets `paper`, and what they cost.

`python -m experiments.deactivate_neurons paper` runs on the model that stands here, and on another
with `--study.model`, such as each of `GIGAFLOPS`; results go to results/<study>/paper/<model>, so
those of two models never meet. Some models are behind a gate of the Hugging Face hub: accept their
terms there, and log in. Tasks are made by `python -m experiments.paper_tasks`, text is streamed.

Hours are estimates: the operations that `interp plan` counts per token, at a throughput that is
assumed. No preset `paper` was run at full size here. All were run through on small models with
random weights, of every one of these architectures (tests/test_paper_presets.py).
"""

from collections.abc import Mapping
from typing import Any

from experiments.runner import Preset
from experiments.study import LANGUAGES, Study

GIGAFLOPS: Mapping[str, float] = {
    "bigscience/bloom-560m": 0.705,
    "facebook/xglm-564M": 0.705,
    "meta-llama/Llama-2-7b-hf": 13.489,
    "meta-llama/Llama-3.2-1B": 2.080,
    "Qwen/Qwen3-0.6B-Base": 1.116,
    "mistralai/Mistral-7B-v0.1": 14.496,
}
"""Model → 10⁹ operations for a token in rows of 2,048, as `interp plan` counts them."""

TERAFLOPS: Mapping[str, float] = {"float32": 30.0, "bfloat16": 200.0}
"""Assumed of one H100: about half of what its maker names in float32, a fifth in bfloat16."""

TANG = Study(
    model="meta-llama/Llama-2-7b-hf",
    text="wikipedia",
    languages=("en", "zh", "fr", "es", "vi", "id", "ja"),
    tokens=99_999_744,
    held_out_tokens=1 << 20,
    block_length=2048,
    dtype="bfloat16",
)
"""Tang et al. (2024): the languages and tokens of their LLaMA-2-7B. Their articles are of a dump
that they do not name, in rows of 4,096 tokens."""

KOJIMA = Study(
    model="bigscience/bloom-560m",
    text="paws-x",
    languages=LANGUAGES,
    tokens=500_000,
    held_out_tokens=100_000,
    sentences=500,
)
"""Kojima et al. (2024): 500 sentences per language. Theirs are of PAWS-X and FLORES-200; `--sense`
of detect_languages takes their own."""

WANG = Study(
    model="bigscience/bloom-560m", languages=("en", "de", "es", "fr", "ru", "th", "tr", "vi", "zh")
)
"""Wang et al. (2024): the languages that their tasks have in common. Their model is BLOOMZ with 7
billion parameters; its text is not read."""

FACTS, INFERENCES = "results/tasks/mlama", "results/tasks/xnli"
"""Folders of tasks. The third task of Wang et al., edited facts, is not on the hub."""


def hours(study: Study, tokens: float) -> float:
    """Estimate of the hours in which one H100 reads so many tokens, those of all passes."""
    work = GIGAFLOPS[study.model] * 1e9 * tokens
    return work / (TERAFLOPS[study.dtype] * 1e12) / 3600


def preset(study: Study, data: str, tokens: float, more: str = "", **differences: Any) -> Preset:
    """The preset `paper` of a study, with model, data, and what its passes take in its text.

    `tokens` are those of all passes; `more`: what comes on top of them.
    """
    took = hours(study, tokens)
    long = f"{took:.2g} GPU hours" if took >= 0.1 else "less than 0.1 GPU hours"
    count = f"{tokens / 1e6:,.0f} million" if tokens >= 1e6 else f"{tokens:,.0f}"
    text = (
        f"{study.model} on {data}. Estimate: {long} for {count} tokens in all passes, if an H100 "
        f"does {TERAFLOPS[study.dtype]:g} TFLOP/s in {study.dtype}{more and f'; {more}'}."
    )
    return Preset(text, study, differences)
