"""The subcommands that read text: collect, and what its folder of pieces is asked."""

from dataclasses import asdict, dataclass
from pathlib import Path

import interp
from interp.commands.common import HERE, ModelChoice, OnRay, say
from interp.commands.options import Positional
from interp.results.words import Bos, Care, Kind, Split
from interp.text.languages import check_languages, language

_WHO_READS = ("shard", "out", "on")


@dataclass(frozen=True)
class Collect:
    """Count on how many tokens of each language every neuron fires.

    The folder is the ledger: the same command goes on where it stopped, also after a kill. Run it
    with --shard 1/4 to --shard 4/4 on four machines and `interp merge` it, or with --ray on a
    cluster.

        interp collect                             # babel, on its own sentences
        interp collect bigscience/bloom-560m --text corpus/ --languages en fr zh
    """

    choice: ModelChoice
    """The model."""

    text: str = "babel"
    """"babel", or a folder of <language>.txt, .txt.gz, .jsonl or .jsonl.gz."""

    languages: tuple[str, ...] = ("en", "de", "fr", "es", "zh", "ja")
    """ISO codes, the order of all axes.

    LAPE depends on which are there."""

    out: Path = Path("results/collect")
    """Folder of the run.

    Pieces while it runs, firing.safetensors when it is finished."""

    tokens: int | None = None
    """Tokens per language; by default all of the text."""

    block_length: int = 256
    """Tokens per row; rows are packed without padding."""

    n_shards: int = 20
    """Random groups of documents, for intervals.

    These come from leaving one out at a time."""

    split: Split = "all"
    """all of the documents, or half: train, held_out.

    The other half is for `interp deactivate`."""

    bos: Bos = "none"
    """<bos> before each document, block or none.

    It is never counted."""

    hygiene: Care = "report"
    """Lines in another language: report, drop, or off."""

    moments: bool = False
    """Keep means and spreads, for edits that set values."""

    sentences: tuple[Kind, ...] = ()
    """Read line by line, and average the units of these sites, for `interp find --method
    precision`.

    Kojima et al. search what all linear layers give: pre pre_linear mlp_out q k v attn_out; those
    in attention need --attention hooked. Lines longer than --block-length tokens are left out."""

    n_sentences: int | None = None
    """With --sentences: lines per language; by default all.

    They are drawn at random."""

    special_tokens: bool = False
    """With --sentences --bos document: average <bos> too.

    Kojima et al. do so for models whose tokenizer adds one."""

    contexts: int = 0
    """Strongest rows kept per neuron, for `interp page`.

    Of each language; 8 are many."""

    tokens_per_batch: int = 4096
    """Tokens per pass; lower it if memory runs out."""

    shard: str | None = None
    """i/n: the i-th of n parts alone; then `interp merge`."""

    until_stable: float | None = None
    """Stop when a repetition would agree to this Jaccard.

    Such as 0.95."""

    on: OnRay = HERE
    """Who reads."""

    def run(self) -> None:
        self.check()
        model, ray = self.on.open(self.choice)
        corpora = self.read(model)
        for report in corpora.hygiene.values():
            if sum(report.foreign_characters.values()) > 0.01:
                say(f"{report}. Leave them out with --hygiene drop.")
        if any(corpora.too_long.values()):
            left_out = ", ".join(f"{code} {n:,}" for code, n in corpora.too_long.items() if n)
            say(f"Lines left out as longer than {self.block_length} tokens: {left_out}")
        keep = interp.Keep(
            moments=self.moments,
            sentence_means=self.sentences,
            special_tokens=self.special_tokens,
            contexts=self.contexts,
        )
        # Who reads which part, and where to, changes no number.
        settings = {key: each for key, each in asdict(self).items() if key not in _WHO_READS}
        rule = (
            None if self.until_stable is None else interp.selections.until_stable(self.until_stable)
        )
        run = interp.collect(
            model,
            corpora,
            self.out,
            keep=keep,
            part=None if self.shard is None else _part(self.shard),
            tokens_per_batch=self.tokens_per_batch,
            stop_when=rule,
            settings=settings,
            ray=ray,
        )
        state = run.status()
        if state.missing:
            say(f"{len(state.done)} pieces are done, {len(state.missing)} missing: {self.out}")
            return
        stats = run.firing if self.shard is None else run.merge().firing
        if state.stopped_after is not None:
            tokens = int(stats.tokens.sum(0).min())
            say(
                f"Stable after {state.stopped_after} of {self.n_shards} shards, {tokens:,} tokens "
                "per language."
            )
        show_stats(stats)
        say(f"Counts are in {self.out / 'firing.safetensors'}. Next: interp find {self.out}")

    def check(self) -> None:
        """Refuse options that exclude each other, before a large model is loaded."""
        check_languages(self.languages)
        self.on.check()
        if self.on.ray is not None and self.shard is not None:
            raise ValueError(
                "--ray takes no --shard beside it: Ray deals out the work itself. Leave one out."
            )
        if self.shard is not None and self.until_stable is not None:
            raise ValueError(
                "--shard and --until-stable exclude each other: whether to stop can only be told "
                "from all parts together. Leave one out."
            )
        if self.sentences and (self.tokens is not None or self.bos == "block"):
            raise ValueError(
                "--tokens and --bos block are for blocks, and --sentences reads line by line: use "
                "--n-sentences and --bos document."
            )
        if not self.sentences and (self.n_sentences is not None or self.special_tokens):
            raise ValueError(
                "--n-sentences and --special-tokens go with --sentences and the sites to average, "
                "such as --sentences pre."
            )

    def read(self, model: "interp.NeuronModel") -> "interp.Corpora":
        if self.sentences:
            assert self.bos != "block"
            return interp.read_sentences(
                self.text,
                self.languages,
                model,
                max_length=self.block_length,
                sentences=self.n_sentences,
                n_shards=self.n_shards,
                bos=self.bos,
                split=self.split,
                held_out=0.5,
                hygiene=self.hygiene,
            )
        return interp.read_corpora(
            self.text,
            self.languages,
            model,
            block_length=self.block_length,
            tokens=self.tokens,
            n_shards=self.n_shards,
            bos=self.bos,
            split=self.split,
            held_out=0.5,
            hygiene=self.hygiene,
        )


@dataclass(frozen=True)
class Merge:
    """Put the pieces of a run together that several processes read.

    interp merge runs/bloom
    """

    run_folder: Positional[Path]
    """Folder given to `interp collect --out`."""

    def run(self) -> None:
        show_stats(interp.Run.open(self.run_folder).merge().firing)
        say(f"Counts are in {self.run_folder / 'firing.safetensors'}.")


@dataclass(frozen=True)
class Status:
    """Say which pieces of a run are done, running, missing or bad.

    Every finished piece is read and checked.

        interp status runs/bloom
    """

    run_folder: Positional[Path]
    """Folder given to `interp collect --out`."""

    def run(self) -> None:
        run = interp.Run.open(self.run_folder)
        state, stopped_after = run.verify(), run.status().stopped_after
        total = sum(map(len, (state.done, state.running, state.missing, state.bad)))
        say(
            f"{len(state.done)} of {total} pieces are done, {len(state.running)} running, "
            f"{len(state.missing)} missing, {len(state.bad)} bad."
        )
        if stopped_after is not None:
            say(f"The run was stable after {stopped_after} shards, and reads no more.")
        for (shard, code), who in state.running.items():
            say(f"running: shard {shard} of {code} ({who})")
        for (shard, code), what in state.bad.items():
            say(f"bad: shard {shard} of {code}: {what}")
        for shard, code in state.missing[:10]:
            say(f"missing: shard {shard} of {code}")
        if len(state.missing) > 10:
            say(f"and {len(state.missing) - 10} more")


def show_stats(stats: "interp.FiringStats") -> None:
    """Tokens and firing per language, each mean rate with its interval over shards."""
    mean = interp.jackknife(stats, lambda part: part.rate.mean(dim=(1, 2)))
    say("language          tokens   firing rate  95 % interval")
    rows = zip(
        stats.languages,
        stats.tokens.sum(0).tolist(),
        mean.value.tolist(),
        mean.low.tolist(),
        mean.high.tolist(),
        strict=True,
    )
    for code, tokens, value, low, high in rows:
        name = language(code).name
        say(f"{code}  {name:<10}  {tokens:>10,}   {value:>11.4f}  {low:.4f} to {high:.4f}")


def _part(text: str) -> tuple[int, int]:
    index, slash, n = text.partition("/")
    if not (slash and index.isdecimal() and n.isdecimal()):
        raise ValueError(f"--shard is i/n, such as 2/8, not {text!r}.")
    return int(index), int(n)
