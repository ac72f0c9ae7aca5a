"""The `interp` command: each subcommand is a frozen dataclass, which is also its Python form."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro
from tyro.conf import Positional

from interp import artifacts
from interp.agreement import until_stable
from interp.collect import Wanted, collect, collect_part, look, merge
from interp.commands.common import ModelChoice, say
from interp.commands.crossing import Lens, Patch
from interp.commands.effects import Bake, Deactivate, Steer
from interp.commands.find import Compare, Find, show_selection
from interp.commands.tasks import Attribute, Evaluate, Share
from interp.corpora import Corpora, read_corpora, read_sentences
from interp.doctor import doctor
from interp.languages import check_languages, language
from interp.model import Kind, NeuronModel
from interp.selection import NeuronSelection
from interp.stats import FiringStats
from interp.uncertainty import jackknife

BABEL = Path(__file__).parent / "babel"
DESCRIPTION = (
    "Which neurons of a multilingual language model belong to a language, and which are shared. "
    "Try `interp demo` first; then `interp doctor`, `collect` and `find` on a model of your own."
)


@dataclass(frozen=True)
class Collect:
    """Count, in one pass over text, on how many tokens of each language every neuron fires.

    The folder is the ledger: run the same command again and it goes on where it stopped, also after
    a kill; run it with `--shard 1/4` to `--shard 4/4` on four machines and `interp merge` it.

        interp collect                                   # babel, on its own parallel sentences
        interp collect bigscience/bloom-560m --text corpus/ --languages en fr zh --out runs/bloom
    """

    choice: Annotated[ModelChoice, tyro.conf.arg(name="")]
    """The model."""

    text: str = "babel"
    """"babel", a folder of <language>.txt[.gz] or .jsonl[.gz], or a dataset on the hub."""

    languages: tuple[str, ...] = ("en", "de", "fr", "es", "zh", "ja")
    """ISO codes; the order of every axis, table and figure. LAPE depends on which are there."""

    out: Path = Path("results/collect")
    """Folder of the run: pieces while it runs, firing.safetensors when it is finished."""

    tokens: int | None = None
    """Tokens per language; by default all of the text."""

    block_length: int = 256
    """Tokens per row; documents are packed into rows without padding."""

    n_shards: int = 20
    """Random groups of documents; intervals come from leaving one out at a time."""

    bos: Literal["none", "document", "block"] = "none"
    """Where a beginning-of-text token goes; it is never counted."""

    hygiene: Literal["report", "drop", "off"] = "report"
    """Lines in another language: say how many, drop them, or do not look."""

    moments: bool = False
    """Also keep mean and spread of every activation, for interventions that set values."""

    sentences: tuple[Kind, ...] = ()
    """Read the text line by line instead of in blocks, and also average every unit of these sites
    over each line, for `interp find --method precision`. Kojima et al. search what all linear
    layers give: pre pre_linear mlp_out q k v attn_out; those in attention need --attention hooked.
    Lines longer than --block-length tokens are left out."""

    n_sentences: int | None = None
    """With --sentences: lines per language, drawn at random; by default all."""

    special_tokens: bool = False
    """With --sentences and --bos document: let the beginning-of-text token count in the averages,
    as Kojima et al. do for models whose tokenizer adds one."""

    tokens_per_batch: int = 4096
    """Tokens per forward pass; lower it when memory runs out."""

    shard: str | None = None
    """i/n: read only the i-th of n parts of the work, for job arrays; then `interp merge`."""

    until_stable: float | None = None
    """Stop once a repetition of the whole would agree with it to this Jaccard, such as 0.95."""

    def run(self) -> None:
        self.check()
        model = self.choice.open()
        corpora = self.read(model)
        for report in corpora.hygiene.values():
            if sum(report.foreign_characters.values()) > 0.01:
                say(f"{report}. Leave them out with --hygiene drop.")
        if any(corpora.too_long.values()):
            left_out = ", ".join(f"{code} {n:,}" for code, n in corpora.too_long.items() if n)
            say(f"Lines left out as longer than {self.block_length} tokens: {left_out}")
        wanted = Wanted(
            moments=self.moments,
            sentence_means=self.sentences,
            special_tokens=self.special_tokens,
        )
        # Who reads which part, and where to, changes no number.
        settings = {key: each for key, each in asdict(self).items() if key not in ("shard", "out")}
        if self.shard is not None:
            if self.until_stable is not None:
                raise ValueError(
                    "--shard and --until-stable exclude each other: whether to stop can only be "
                    "told from all parts together. Leave one out."
                )
            state = collect_part(
                model,
                corpora,
                self.out,
                _part(self.shard),
                wanted=wanted,
                tokens_per_batch=self.tokens_per_batch,
                settings=settings,
            )
            if state.missing:
                say(f"{len(state.done)} pieces are done, {len(state.missing)} missing: {self.out}")
                return
            stats = merge(self.out)
        else:
            rule = None if self.until_stable is None else until_stable(self.until_stable)
            stats = collect(
                model,
                corpora,
                self.out,
                wanted=wanted,
                tokens_per_batch=self.tokens_per_batch,
                stop_when=rule,
                settings=settings,
            )
        stopped = look(self.out).stopped_after
        if stopped is not None:
            tokens = int(stats.tokens.sum(0).min())
            say(
                f"Stable after {stopped} of {self.n_shards} shards, {tokens:,} tokens per language."
            )
        show_stats(stats)
        say(f"Counts are in {self.out / 'firing.safetensors'}. Next: interp find {self.out}")

    def check(self) -> None:
        """Refuse options that exclude each other, before a large model is loaded."""
        check_languages(self.languages)
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

    def read(self, model: NeuronModel) -> Corpora:
        if self.sentences:
            assert self.bos != "block"
            return read_sentences(
                self.text,
                self.languages,
                model,
                max_length=self.block_length,
                sentences=self.n_sentences,
                n_shards=self.n_shards,
                bos=self.bos,
                hygiene=self.hygiene,
            )
        return read_corpora(
            self.text,
            self.languages,
            model,
            block_length=self.block_length,
            tokens=self.tokens,
            n_shards=self.n_shards,
            bos=self.bos,
            hygiene=self.hygiene,
        )


@dataclass(frozen=True)
class Merge:
    """Put the pieces of a run together, when other processes have read them."""

    run_folder: Positional[Path]
    """Folder given to `interp collect --out`."""

    def run(self) -> None:
        show_stats(merge(self.run_folder))
        say(f"Counts are in {self.run_folder / 'firing.safetensors'}.")


@dataclass(frozen=True)
class Status:
    """Which pieces of a run are done and which are missing."""

    run_folder: Positional[Path]
    """Folder given to `interp collect --out`."""

    def run(self) -> None:
        state = look(self.run_folder)
        total = len(state.done) + len(state.missing)
        say(f"{len(state.done)} of {total} pieces are done.")
        for shard, code in state.missing[:10]:
            say(f"missing: shard {shard} of {code}")
        if len(state.missing) > 10:
            say(f"and {len(state.missing) - 10} more")


@dataclass(frozen=True)
class Doctor:
    """Check that a model's neuron hooks tell the truth, before anything is believed about them."""

    choice: Annotated[ModelChoice, tyro.conf.arg(name="")]
    """The model."""

    def run(self) -> None:
        diagnosis = doctor(self.choice.open())
        say(str(diagnosis))
        if not diagnosis.ok:
            raise SystemExit(1)


@dataclass(frozen=True)
class Import:
    """Turn a published List[language][layer] .pth file into a selection that a person can read.

    interp import LLaMA-2-7B.neuron.pth --languages en zh fr es vi id ja --neurons 11008
    """

    path: Positional[Path]
    """The .pth file."""

    languages: tuple[str, ...]
    """The languages of its lists, in order; the file does not say."""

    neurons: int
    """Neurons per layer (d_mlp) of the model; the file does not say."""

    out: Path = Path("neurons.json")
    """The selection."""

    def run(self) -> None:
        selection = NeuronSelection.from_lape_pth(self.path, self.languages, self.neurons)
        selection.to_json(self.out, artifacts.provenance(imported=self.path.name))
        show_selection(selection, None)
        say(f"The selection is in {self.out}.")


@dataclass(frozen=True)
class Export:
    """Write a selection as the published List[language][layer] .pth file."""

    path: Positional[Path]
    """The selection, a .json file of `interp find` or `interp import`."""

    out: Path = Path("neurons.pth")
    """The .pth file."""

    def run(self) -> None:
        selection = NeuronSelection.from_json(self.path)
        selection.to_lape_pth(self.out)
        say(f"{self.out} lists {', '.join(selection.languages)}, in this order.")


@dataclass(frozen=True)
class Babel:
    """Print the card of the shipped model: its data, recipe and measured facts."""

    def run(self) -> None:
        say((BABEL / "README.md").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Demo:
    """Find the language neurons of the shipped model, from text to selection, with no network."""

    out: Path = Path("results/demo")
    """Folder of the run."""

    def run(self) -> None:
        say("1  Do the hooks of babel tell the truth?\n")
        Doctor(ModelChoice()).run()
        say("\n2  On how many tokens of each language does every neuron fire?\n")
        Collect(ModelChoice(), out=self.out, moments=True, block_length=64).run()
        say("\n3  Which neurons fire for one language or two?\n")
        Find(self.out, fraction=0.03).run()


def show_stats(stats: FiringStats) -> None:
    """Tokens and firing per language, each mean rate with its interval over shards."""
    mean = jackknife(stats, lambda part: part.rate.mean(dim=(1, 2)))
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


COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": Demo,
    "collect": Collect,
    "merge": Merge,
    "status": Status,
    "find": Find,
    "compare": Compare,
    "deactivate": Deactivate,
    "steer": Steer,
    "bake": Bake,
    "evaluate": Evaluate,
    "share": Share,
    "attribute": Attribute,
    "patch": Patch,
    "lens": Lens,
    "doctor": Doctor,
    "import": Import,
    "export": Export,
    "babel": Babel,
}


def chosen(arguments: list[str]) -> Any:
    """The subcommand with its options; or help, or a sentence that says what is wrong with them."""
    if arguments and arguments[0] in COMMANDS:
        name = arguments[0]
        return tyro.cli(COMMANDS[name], prog=f"interp {name}", args=arguments[1:])
    lines = {name: (inspect.getdoc(each) or "").split("\n\n")[0] for name, each in COMMANDS.items()}
    every: Any = Union[  # noqa: UP007 - of a tuple that is made here
        tuple(
            Annotated[each, tyro.conf.subcommand(name, description=lines[name].replace("\n", " "))]
            for name, each in COMMANDS.items()
        )
    ]
    return tyro.cli(every, prog="interp", description=DESCRIPTION, args=arguments)


def main(arguments: list[str] | None = None) -> None:
    """Exit code 0: done; 1: the doctor found a fault; 2: one sentence says what to change."""
    command = chosen(sys.argv[1:] if arguments is None else arguments)
    try:
        command.run()
    except (ValueError, KeyError, OSError) as error:
        message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if isinstance(error, KeyError):
            message = str(error.args[0])
        # Hugging Face adds paragraphs of advice; its first line says what is wrong.
        sys.stderr.write(f"interp: {message.strip().splitlines()[0]}\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write(
            "interp: interrupted. Finished pieces are kept; the same command goes on from there.\n"
        )
        raise SystemExit(130) from None
