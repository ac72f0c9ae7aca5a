"""Report sections for the files that runs write: one for each kind of result, in a fixed order."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas

from interp import plots
from interp.counting.run import Run
from interp.counting.stats import FiringStats
from interp.evaluations.perplexity import PerplexityMatrix
from interp.inference.claims import Claim, load_claims
from interp.inference.intervals import jackknife, selection_frequency
from interp.plots.style import labels_in
from interp.reports.captions import overlap_caption, with_intervals
from interp.reports.findings import of_kept, of_matrix, of_matrix_test, of_rate, of_selection
from interp.reports.kinds import KINDS, TableKind, header_of, kind_of
from interp.reports.report import Picture, Section
from interp.results.bars import tqdm
from interp.runs.folder import read_plan
from interp.selections.explanation import Explanation
from interp.selections.neuron_selection import FORMAT, NeuronSelection
from interp.selections.select import select_by_entropy
from interp.text.languages import as_labels, called, label_name

INNER = ("pieces", "checkpoints", "history")
"""Folders inside a run's folder that hold parts of its results."""

FIRING = "How often do neurons fire?"
BELONGING = "Which neurons belong to which language?"


UNCOUNTED = "What does the model write with a label's neurons changed?"
OF_TABLES = (*(kind.title for kind in KINDS), UNCOUNTED)
"""Titles of the sections that are made from tables, in their order."""


def sections_in(paths: Sequence[Path]) -> list[Section]:
    """A section for each kind of result in these folders, in a fixed order.

    A folder with nothing to show, not even a claim, is an error.
    """
    order = titles(FIRING, BELONGING, *OF_TABLES)
    by_title: dict[str, list[tuple[Path, Section]]] = {title: [] for title in order}
    for path in paths:
        files = tqdm(files_in(path), "reading results", unit="file")
        sections = [(file, section) for file in files for section in sections_of(file)]
        if not sections and not claims_in([path]):
            raise ValueError(
                f"{path} holds nothing that a report can show: give a folder that interp collect, "
                "find, deactivate, steer, evaluate, share, attribute, patch or lens has written."
            )
        for file, section in sections:
            by_title[section.title].append((file, section))
    return [merged(parts) for parts in by_title.values() if parts]


def titles(*order: str) -> tuple[str, ...]:
    """Titles of sections, each followed by that of results whose labels are not languages."""
    forms = (form for title in order for form in (title, as_labels(title)))
    return tuple(dict.fromkeys(forms))


def models_of(sections: Sequence[Section]) -> str:
    """A paragraph for each model of the results: its size, its languages, and the text read."""
    languages: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for run in (run for section in sections for run in runs_in(section.origin)):
        size = f"{run['n_layers']} layers of {run['d_mlp']:,} neurons"
        size = f"`{_last_name(run['name'])}`, {size}"
        known = languages.setdefault(size, [])
        known += [code for code in run["languages"] if code not in known]
        texts[size] = texts.get(size) or _text_of(run)
    return "\n\n".join(
        f"Model: {size}. {called(codes).capitalize()}: {', '.join(map(label_name, codes))}."
        f"{texts[size]}"
        for size, codes in languages.items()
    )


def _text_of(run: Mapping[str, Any]) -> str:
    """Which text a counting run read, and how much of it; empty: it does not record that."""
    settings, tokens = run.get("settings"), run.get("tokens")
    text = settings.get("text") if isinstance(settings, Mapping) else None
    if not isinstance(text, str) or not isinstance(tokens, Mapping) or not tokens:
        return ""
    least, most = min(tokens.values()), max(tokens.values())
    amount = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f" Neurons were counted over `{_last_name(text)}`: {amount} tokens of each."


def _last_name(path: str) -> str:
    """The name of a model or text, without the folders of a machine."""
    return Path(path).name if Path(path).is_absolute() else path


def runs_in(origin: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The settings of counting runs, however deeply they are nested."""
    if {"name", "n_layers", "d_mlp", "languages"} <= set(origin):
        yield origin
    for value in origin.values():
        if isinstance(value, Mapping):
            yield from runs_in(value)


def merged(parts: Sequence[tuple[Path, Section]]) -> Section:
    """One section of all results of a kind; several results are named after their folders."""
    (_, first), *others = parts
    if not others:
        return first
    names = names_of([file for file, _ in parts])
    named = [(name, section) for name, (_, section) in zip(names, parts, strict=True)]
    said = {
        what: _said({name: getattr(section, what) for name, section in named})
        for what in ("finding", "text", "certainty")
    }
    return Section(
        first.title,
        **said,
        pictures=tuple(
            replace(picture, caption=f"{name}. {picture.caption}")
            for name, section in named
            for picture in section.pictures
        ),
        tables={
            f"{name}. {caption}": frame
            for name, section in named
            for caption, frame in section.tables.items()
        },
        origin={name: section.origin for name, section in named if section.origin},
    )


def _said(texts: Mapping[str, str]) -> str:
    """The paragraphs that all have, once, then the others, each after its name."""
    every = [block for text in texts.values() for block in text.split("\n\n") if block]
    common = [block for block in dict.fromkeys(every) if every.count(block) == len(texts)]
    own = [
        f"`{name}`: {block}"
        for name, text in texts.items()
        for block in text.split("\n\n")
        if block and block not in common
    ]
    return "\n\n".join([*common, *own])


def names_of(files: Sequence[Path]) -> list[str]:
    """Names that distinguish the files: their folders if these differ, else the files."""
    folders = [file.resolve().parent for file in files]
    common = Path(os.path.commonpath(folders))
    if len(set(folders)) == len(files):
        names = [folder.relative_to(common).as_posix() for folder in folders]
        return [common.name if name == "." else name for name in names]
    return [file.resolve().relative_to(common).as_posix() for file in files]


def claims_in(paths: Sequence[Path]) -> list[Claim]:
    """The claims of every claims.json in these folders."""
    files = [file for path in paths for file in files_in(path) if file.name == "claims.json"]
    return [claim for file in files for claim in load_claims(file)]


def files_in(path: Path) -> list[Path]:
    """The files of a run, without hidden files and the parts of its results."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is missing: give the folder of a run.")
    return [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and not any(part in INNER or part[0] == "." for part in file.relative_to(path).parts)
    ]


def sections_of(file: Path) -> Iterator[Section]:
    """The report section of one file of a run, if it has one."""
    if file.name == "firing.safetensors":
        if "signs" not in Run.open(file.parent).kept:  # with signs, counts are a by-product
            yield firing_section(file)
    elif file.suffix == ".json" and is_selection(file):
        yield selection_section(file)
    elif file.suffix == ".csv":
        frame = plots.read_table(file)
        kind = kind_of(file, frame)
        if kind is not None:
            yield table_section(file, frame, kind)


def about(labels: Sequence[str], section: Section) -> Section:
    """The section; where one of the labels is no language it says label, in headings too."""
    if called(labels) == "languages":
        return section
    said = {
        name: as_labels(getattr(section, name), labels)
        for name in ("title", "text", "finding", "certainty")
    }
    pictures = (replace(one, caption=as_labels(one.caption)) for one in section.pictures)
    tables = {as_labels(caption): _of_labels(frame) for caption, frame in section.tables.items()}
    return replace(section, **said, pictures=tuple(pictures), tables=tables)


# ---------------------------------------------------------------- counts and selections


def firing_section(file: Path) -> Section:
    """The tokens that were read, and how often neurons fire on them."""
    stats = Run.open(file.parent).firing
    rate = jackknife(stats, lambda part: part.mean_rate)
    frame = pandas.DataFrame(
        {
            "language": [label_name(code) for code in stats.languages],
            "code": stats.languages,
            "tokens": stats.tokens.sum(dim=0).tolist(),
            "firing rate": rate.value.tolist(),
            "firing rate_low": rate.low.tolist(),
            "firing rate_high": rate.high.tolist(),
        }
    )
    n_layers, d_mlp = stats.rate.shape[1:]
    text = (
        f"A neuron fires on a token when its {stats.fires_by} is above zero. {n_layers} layers of "
        f"{d_mlp:,} neurons were counted in {stats.n_shards} random groups of documents; "
        "intervals are over these groups."
    )
    caption = "Tokens read, and the share of them on which a neuron fires, averaged over neurons."
    finding = of_rate(rate, stats.languages)
    section = Section(FIRING, text, (), {caption: frame}, origin_of(file), finding)
    return about(stats.languages, section)


def _of_labels(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The table, headed by label; without codes if these are the labels themselves."""
    table: Any = frame.rename(columns={"language": "label"})
    same = "code" in table and (table["code"] == table["label"]).all()
    return table.drop(columns="code") if same else table


def is_selection(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return f'"format": "{FORMAT}"' in opened.read(200)


def selection_section(file: Path) -> Section:
    """How many neurons each language has, in which layers, and how many languages share."""
    selection = NeuronSelection.from_json(file)
    origin: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")).get("provenance", {})
    settings: dict[str, Any] = origin.get("settings", {})
    counts = selection.counts()
    alone = selection.languages_per_neuron() == 1
    table: dict[str, Sequence[Any]] = {
        "language": [label_name(code) for code in selection.languages],
        "code": selection.languages,
        "neurons": list(counts.values()),
        "of no other": [int((selection[code] & alone).sum()) for code in selection.languages],
    }
    method, fraction = settings.get("method"), settings.get("fraction")
    chosen = f" by {method}" if method else ""
    chosen += f" at a fraction of {fraction:g}" if isinstance(fraction, float) else ""
    text = f"Neurons were selected{chosen}. A neuron may belong to several languages."
    stats = counts_of(file, selection, settings)
    interval, certainty = None, ""
    if stats is not None:
        select = entropy_rule(settings)
        kept = selection_frequency(stats, lambda part: select(part).mask)
        table["kept"] = [
            kept[row][chosen].mean().item() for row, chosen in enumerate(selection.mask)
        ]
        text += (
            " Kept: how often a neuron is selected again when one group of documents is left out."
        )
        certainty = of_kept(dict(zip(selection.languages, table["kept"], strict=True)))
        interval = jackknife(stats, lambda part: select(part).layer_profile().double())
    profile = selection.layer_frame(interval)
    strokes = ", with 95 % intervals over documents" if interval is not None else ""
    caption = f"Neurons of each language in each layer{strokes}."
    caption = with_intervals(caption, plots.layer_profile, profile) if strokes else caption
    pictures = [Picture(plots.layer_profile, caption, profile)]
    if len(selection.languages) > 1:
        shared = selection.overlap_frame()
        pictures.append(Picture(plots.overlap, overlap_caption(shared), shared))
    tables = {"Neurons of each language.": pandas.DataFrame(table)}
    finding = of_selection(selection)
    section = Section(BELONGING, text, tuple(pictures), tables, origin, finding, certainty)
    return about(selection.languages, section)


def entropy_rule(
    settings: Mapping[str, Any],
) -> Callable[["FiringStats"], "NeuronSelection"]:
    fraction, busy_quantile = settings["fraction"], settings["busy_quantile"]
    return lambda part: select_by_entropy(part, fraction, busy_quantile)


def counts_of(
    file: Path, selection: NeuronSelection, settings: Mapping[str, Any]
) -> FiringStats | None:
    """The counts of a selection by entropy, if they are in its folder and reproduce it."""
    if settings.get("method") != "LAPE" or not file.with_name("firing.safetensors").is_file():
        return None
    stats = Run.open(file.parent).firing
    return stats if entropy_rule(settings)(stats) == selection and stats.n_shards > 1 else None


# ---------------------------------------------------------------- tables


def table_section(file: Path, frame: pandas.DataFrame, kind: TableKind) -> Section:
    """The figure of a table, with the other results stored next to it."""
    rows = kind.rows(frame)
    drawings = [(kind.draw, kind.caption, rows)]
    drawings += [(draw, caption, rows_of(frame)) for draw, caption, rows_of in kind.more]
    title, text = kind.title, kind.text
    finding, certainty, tables = kind.finding(rows), "", {}
    stored, texts = file.with_suffix(".safetensors"), file.with_name("texts.csv")
    if kind.result == PerplexityMatrix.kind and stored.is_file():
        matrix = PerplexityMatrix.load(stored)
        finding, certainty = of_matrix(frame, matrix), of_matrix_test(matrix)
    if kind.result == Explanation.kind and stored.is_file():
        text += "\n\n" + Explanation.load(stored).sentences()
    if kind.texts and texts.is_file():
        first = first_texts(plots.read_table(texts))
        tables["The first text of each condition, without any selection."] = first
    pictures = tuple(
        Picture(draw, with_intervals(caption, draw, drawn), drawn)
        for draw, caption, drawn in drawings
        if len(drawn)
    )
    if not pictures:
        title = UNCOUNTED
        text = (
            "Texts written with each label's neurons changed, and the controls. No label is a "
            "language that the detector knows, so none could be counted."
        )
    elif kind.texts and "to" in frame and (unknown := sorted({*frame["to"]} - {*rows["to"]})):
        text += f"\n\nNot counted, since the detector does not know them: {', '.join(unknown)}."
    section = Section(title, text, pictures, tables, origin_of(file), finding, certainty)
    columns = [frame[name] for name in kind.labels if name in frame]
    return about([label for column in columns for label in labels_in(column)], section)


def first_texts(frame: pandas.DataFrame) -> pandas.DataFrame:
    """One text of each condition, the first in the table."""
    table: Any = frame
    names = [name for name in ("condition", "way", "setting") if name in table]
    first = table.groupby(names, sort=False, dropna=False).head(1)
    shown = first[[*names, "to", "language", "text"]]
    return shown.rename(columns={"to": "asked for", "language": "found"})


def origin_of(file: Path) -> dict[str, Any]:
    """Where a result comes from, according to its .safetensors or its folder's run.json."""
    origin = json.loads(header_of(file).get("provenance", "{}"))
    if origin or not file.with_name("run.json").is_file():
        return origin
    return read_plan(file.parent)
