"""The subcommand that reads text and counts: collect."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import interp
from interp.commands.common import (
    WITHOUT_RAY,
    ModelChoice,
    OnRay,
    cut_short,
    keep_of,
    open_model,
    say,
    say_how_text_begins,
    say_table,
)
from interp.commands.forecasts import of_counting
from interp.commands.options import Labels
from interp.commands.remembered import is_run, memory_of
from interp.results.words import Bos, Care, FiresBy, Kind, OtherUnits, Split
from interp.text.counterfactuals import split_label
from interp.text.labels import check_labels
from interp.text.languages import names_beside, tagged, worded
from interp.text.sources import check_text

if TYPE_CHECKING:
    import pandas

_NOT_SETTINGS = ("shard", "out", "keep_pieces", "on", "tags")
"""Options that change no result: who reads, which part, into which folder, what stays there, and
tags, which are recorded beside the settings."""


@dataclass(frozen=True)
class Collect:
    """Count, for each language, the tokens on which each neuron fires.

    interp collect babel --moments --contexts 8 --out runs/babel
    interp collect bigscience/bloom-560m --text corpus/ --languages en fr zh
    """

    choice: ModelChoice
    """The model."""

    text: str | None = None
    """Folder of <label>.txt, .txt.gz, .jsonl, .jsonl.gz.

    For Babel by default its own sentences, "babel"."""

    languages: Labels = ()
    """Labels: de, sr-Latn, poetry; by default all of the text.

    All axes keep this order. LAPE depends on which labels are compared."""

    tags: tuple[str, ...] = ()
    """Language of a label's text: poetry=en; kept by the run.

    What follows on the run knows it from there. It changes no count: the same command with other
    tags reads nothing again."""

    counterfactuals: bool = False
    """Also read the text rewritten, for `interp explain`."""

    out: Path = Path("results/collect")
    """Folder of the run; run again to resume.

    It holds pieces during the run, and firing.safetensors at the end."""

    tokens: int | None = None
    """Tokens per language; by default all of the text."""

    block_length: int = 256
    """Tokens per row; rows are packed without padding."""

    n_shards: int = 20
    """Random groups of documents, for jackknife intervals.

    The jackknife leaves out one group at a time."""

    split: Split = "all"
    """all documents, or half of them: train or held_out.

    The other half is for `interp deactivate`."""

    bos: Bos | None = None
    """What begins text: auto, none, document, block [auto].

    auto: before each block or line, what the tokenizer puts there when it encodes a text by
    itself; document, block: <bos> before each. It is never counted, and what follows on the run
    begins text in the same way."""

    hygiene: Care = "report"
    """Lines in another language: report, drop, or off."""

    fires_by: FiresBy = "gate"
    """What is above zero: gate, activation or output.

    activation, which is act(gate), for models where `interp doctor` says that its sign is not that
    of the gate."""

    moments: bool = False
    """Also keep means and spreads, for edits that set values."""

    sign_cases: bool = False
    """Also keep signs of both branches (--method sign-cases)."""

    negative_side: bool = False
    """Also keep output below zero (--method negative-side)."""

    histograms: bool = False
    """Also keep distributions (--method dln, divergence).

    That takes 1.6 kB per neuron, label and shard: see `interp plan`."""

    loss_effects: bool = False
    """Also keep gradients of the loss (--method loss-effects).

    It takes three times as long."""

    units: tuple[OtherUnits, ...] = ()
    """Also count other units: heads, head-effects, dimensions.

    For --method head-norms, lahis and dimensions. Heads need --attention hooked, and head-effects
    take as long as --loss-effects."""

    sentences: tuple[Kind, ...] = ()
    """Also average by line.

    For --method precision. Kojima et al. search the outputs of all linear layers: pre pre_linear
    mlp_out q k v attn_out.
    The sites in attention need --attention hooked. Lines longer than --block-length tokens are
    left out."""

    n_sentences: int | None = None
    """With --sentences: lines per language; by default all.

    Drawn at random."""

    special_tokens: bool = False
    """With --sentences: average what begins a line too.

    Kojima et al. do this for models whose tokenizer adds one."""

    contexts: int = 0
    """Top rows to keep per neuron, for `interp page`.

    Per language; 8 is plenty."""

    tokens_per_batch: int = 4096
    """Tokens per batch; lower it if memory runs out."""

    shard: str | None = None
    """i/n: read only part i of n; then `interp merge`.

    1/4 to 4/4 are for four machines. Parts on one machine: set OMP_NUM_THREADS to the share of its
    cores that each gets."""

    keep_pieces: bool = False
    """Keep the pieces after they are merged, to merge again.

    By default they are deleted once the results are checked: they hold nothing else, and most of
    the disk."""

    until_stable: float | None = None
    """Stop once predicted agreement reaches this Jaccard.

    0.95, for example. It is the agreement with a selection from other text of the same size."""

    on: OnRay = WITHOUT_RAY
    """Where the work runs."""

    def run(self) -> "pandas.DataFrame | None":
        memory = self.choice.memory
        choice = self.choice.of(memory)
        text = memory.take_text(self.text, choice.model)
        filled = replace(
            self,
            choice=choice,
            text=text,
            languages=memory.take("languages", self.languages, interp.text.labels_in(text)),
            bos=memory.take_bos(self.bos),
        )
        filled = replace(filled, tags=self.tags or filled.tags_before())
        filled = replace(filled, languages=filled.check())
        with tagged(tags_given(filled.tags)):
            model, ray = open_model(self.choice, memory, self.on)
            return filled.collect(model, ray)

    def collect(
        self, model: "interp.NeuronModel", ray: "interp.runs.Ray | None"
    ) -> "pandas.DataFrame | None":
        """Collect with all settings given, and print what was counted."""
        from interp.models.load import is_faster_in_bfloat16

        chosen = self.choice.dtype not in (None, "auto")
        faster = not chosen and is_faster_in_bfloat16(model.dtype, model.device)
        hint = ", and bfloat16 is up to three times as fast on this CPU" if faster else ""
        say(f"{model.name} in {model.precision}; --dtype changes it{hint}")
        corpora = self.read(model)
        for report in corpora.hygiene.values():
            if sum(report.foreign_characters.values()) > 0.01:
                say(f"{report}. Drop them with --hygiene drop.")
        if sentence := cut_short(self.tokens, corpora):
            say(sentence)
        own = [label for label in self.languages if split_label(label)[1] is None]
        if self.hygiene != "off" and (unchecked := set(own) - corpora.hygiene.keys()):
            say(
                "Not checked for lines in other languages, which the detector cannot recognize: "
                f"{', '.join(sorted(unchecked))}."
            )
        if any(corpora.too_long.values()):
            left_out = ", ".join(f"{code} {n:,}" for code, n in corpora.too_long.items() if n)
            say(f"Lines left out (longer than {self.block_length} tokens): {left_out}")
        if not self.on.goes_ahead(
            lambda: of_counting(model, corpora, self.keep, self.tokens_per_batch, self.out),
            "fewer --tokens, or --until-stable 0.95",
        ):
            return None
        settings = {key: value for key, value in asdict(self).items() if key not in _NOT_SETTINGS}
        rule = (
            None if self.until_stable is None else interp.selections.until_stable(self.until_stable)
        )
        run = interp.collect(
            model,
            corpora,
            self.out,
            keep=self.keep,
            part=None if self.shard is None else _part(self.shard),
            tokens_per_batch=self.tokens_per_batch,
            stop_when=rule,
            settings=settings,
            ray=ray,
        )
        state = run.status()
        if state.missing:
            say(f"{len(state.done)} pieces are done, {len(state.missing)} are missing: {self.out}")
            return None
        stats = run.firing if self.shard is None else run.merge().firing
        if state.stopped_after is not None:
            tokens = int(stats.tokens.sum(0).min())
            per = worded("tokens per language", stats.languages)
            say(f"Stable after {state.stopped_after} of {self.n_shards} shards, {tokens:,} {per}.")
        say_how_text_begins(model, corpora.bos)
        if stats.fires_by != "gate":
            say(f"A neuron fires where its {stats.fires_by} is above zero.")
        table = counts_table(stats)
        show_counts(table)
        if not self.keep_pieces and not self.sentences and (freed := run.tidy()):
            say(f"The merged pieces are deleted ({freed / 1e6:,.1f} MB); --keep-pieces keeps them.")
        say(f"Counts are in {self.out / 'firing.safetensors'}.")
        return table

    def tags_before(self) -> tuple[str, ...]:
        """The tags that the run which is resumed has remembered."""
        before = memory_of(self.out if is_run(self.out) else None).recorded.get("tags", {})
        return tuple(f"{x}={tag}" for x, tag in before.items() if x in self.languages)

    @property
    def keep(self) -> "interp.Keep":
        return replace(keep_of(self), fires_by=self.fires_by, special_tokens=self.special_tokens)

    def check(self) -> tuple[str, ...]:
        """The labels; refuses options that exclude each other, before a large model is loaded."""
        text = self.text or "babel"
        languages = check_labels(self.languages, tags_given(self.tags))
        check_text(text, languages)
        if self.counterfactuals:
            languages = interp.text.with_counterfactuals(text, languages)
        self.on.check()
        if self.until_stable is not None and not 0 < self.until_stable <= 1:
            raise ValueError(
                f"--until-stable is {self.until_stable:g}: give a share, above 0 and up to 1, such "
                "as 0.95."
            )
        if self.on.ray is not None and self.shard is not None:
            raise ValueError(
                "--ray and --shard exclude each other: Ray divides the work itself. Leave one out."
            )
        if self.shard is not None and self.until_stable is not None:
            raise ValueError(
                "--shard and --until-stable exclude each other: when to stop depends on all parts "
                "together. Leave one out."
            )
        if self.sentences and self.tokens is not None:
            raise ValueError(
                "--tokens is for blocks, but --sentences reads line by line: use --n-sentences."
            )
        if not self.sentences and (self.n_sentences is not None or self.special_tokens):
            raise ValueError(
                "--n-sentences and --special-tokens need --sentences with the sites to average, "
                "such as --sentences pre."
            )
        return languages

    def read(self, model: "interp.NeuronModel") -> "interp.Corpora":
        text, length = self.text or "babel", self.block_length
        reading: dict[str, Any] = {
            "n_shards": self.n_shards,
            "bos": self.bos or "auto",
            "split": self.split,
            "held_out": 0.5,
            "hygiene": self.hygiene,
            "tags": tags_given(self.tags),
        }
        if self.sentences:
            reading |= {"max_length": length, "sentences": self.n_sentences}
            return interp.read_sentences(text, self.languages, model, **reading)
        reading |= {"block_length": length, "tokens": self.tokens}
        return interp.read_corpora(text, self.languages, model, **reading)


def counts_table(stats: "interp.FiringStats") -> "pandas.DataFrame":
    """Tokens and mean firing rate per language, with its interval over shards."""
    from interp.results.frames import tidy

    rate = interp.jackknife(stats, lambda part: part.mean_rate)
    return tidy({"language": stats.languages}, {"tokens": stats.tokens.sum(0), "rate": rate})


def show_counts(table: "pandas.DataFrame") -> None:
    names = names_beside(list(table["language"]))
    head = [worded("language", table["language"]), *[""] * len(names[0])]
    rows = [[*head, "tokens", "firing rate", "95 % interval"]]
    for row, name in zip(table.to_dict("records"), names, strict=True):
        interval = f"{row['rate_low']:.4f} to {row['rate_high']:.4f}"
        label, tokens = row["language"], f"{row['tokens']:,}"
        rows.append([label, *name, tokens, f"{row['rate']:.4f}", interval])
    say_table(rows, stay=len(head))


def tags_given(options: Sequence[str]) -> dict[str, str]:
    """--tags poetry=en as a mapping; an empty tag says that the label is no language."""
    pairs = [option.partition("=") for option in options]
    if wrong := [label for label, sign, _ in pairs if not (label and sign)]:
        raise ValueError(f"--tags takes LABEL=TAG, such as poetry=en, not {wrong[0]!r}.")
    return {label: tag for label, _, tag in pairs}


def _part(text: str) -> tuple[int, int]:
    index, slash, n = text.partition("/")
    if not (slash and index.isdecimal() and n.isdecimal()):
        raise ValueError(f"--shard is i/n, such as 2/8, not {text!r}.")
    return int(index), int(n)
