"""The subcommand that estimates what a run costs: plan."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import interp
from interp.commands.common import keep_of, save_table, say, torch_dtype
from interp.commands.options import Labels, Positional
from interp.results.terminal import terminal_width
from interp.results.words import Kind, OtherUnits
from interp.runs.forecasts import duration
from interp.text.labels import check_labels


@dataclass(frozen=True)
class Plan:
    """Estimate the cost of `interp collect`: memory, disk, work, hours.

    It reads only the model's config, from a folder, a GGUF file or the hub, never the weights.

        interp plan babel --languages 6 --tokens 1000000
        interp plan meta-llama/Llama-2-70b-hf --languages 100 --teraflops 400
    """

    model: Positional[str] = "babel"
    """"babel", a folder, a GGUF file, or a hub name."""

    languages: Labels = ("en", "de", "fr", "es", "zh", "ja")
    """Labels, or how many there are."""

    tokens: int = 10_000_000
    """Tokens per language."""

    block_length: int = 256
    """Tokens per row; with --sentences, per line on average."""

    n_shards: int = 20
    """Random groups of documents; disk use grows with them."""

    moments: bool = False
    """Also keep means and spreads."""

    sign_cases: bool = False
    """Also keep the signs of gate and linear branch."""

    negative_side: bool = False
    """Also keep what is written where gates are below zero."""

    histograms: bool = False
    """Also keep how act(gate) is distributed."""

    loss_effects: bool = False
    """Also keep gradient times activation of the loss."""

    units: tuple[OtherUnits, ...] = ()
    """Also count other units: heads, head-effects, dimensions."""

    sentences: tuple[Kind, ...] = ()
    """Sites to average over each line."""

    contexts: int = 0
    """Top rows to keep per neuron and language."""

    tokens_per_batch: int = 4096
    """Tokens per batch."""

    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored"
    """Weights as stored, float32, bfloat16 or float16."""

    teraflops: float = 100.0
    """Speed of your hardware for the estimate of hours, in 10¹² operations per second: about half
    of what its maker quotes for the dtype. Two CPU cores reach about 0.1."""

    out: Path | None = None
    """File for the table (.csv)."""

    def run(self) -> "interp.counting.RunPlan":
        plan = self.plan()
        say(plan.table(terminal_width()))
        if plan.tokens != self.tokens:
            say(
                f"{plan.tokens:,} tokens per label, not {self.tokens:,}, are {self.n_shards} "
                f"shards of {plan.rows:,} whole blocks of {self.block_length}."
            )
        say(
            f"The passes take {duration(3600 * plan.hours(self.teraflops))} at "
            f"{self.teraflops:g} TFLOP/s (--teraflops), not counting the time to read text."
        )
        if self.out is not None:
            save_table(plan.to_frame(), self.out)
            say(f"The table is in {self.out}.")
        return plan

    def plan(self) -> "interp.counting.RunPlan":
        if len(self.languages) == 1 and self.languages[0].isdecimal():
            n_languages = int(self.languages[0])
        else:
            n_languages = len(check_labels(self.languages))
        return interp.counting.plan_run(
            self.model,
            n_languages,
            self.tokens,
            n_shards=self.n_shards,
            row_tokens=self.block_length,
            tokens_per_batch=self.tokens_per_batch,
            keep=keep_of(self),
            dtype=torch_dtype(self.dtype),
        )
