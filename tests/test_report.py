"""The report: one file, nothing from outside, text stays text, numbers and figures as they were."""

import base64
import hashlib
import io
import itertools
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from experiments import board as study_board
from experiments import report as study_report
from interp import plots
from interp.commands.report import Report
from interp.counting.stats import FiringStats
from interp.inference.claims import Claim, save_claims
from interp.inference.statements import Statement
from interp.reports.html import MOST_ROWS, data_table, prose, settings_list
from interp.reports.kinds import KINDS, kind_of
from interp.reports.report import Picture, Section, write_report
from interp.reports.sections import claims_in, models_of, names_of, sections_in
from interp.results import artifacts
from interp.results.display import counted, number_texts
from interp.selections.neuron_selection import NeuronSelection
from interp.selections.select import select_by_entropy
from tests.browser import open_page
from tests.figure_tables import tasks_table

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp; \"'"

CLAIM = Claim(
    name="diagonal",
    statement="A language's neurons matter most to that language.",
    source="Somebody (2024)",
    on="a made-up model",
    how="own language minus others, nats per token",
    command="python -m nothing",
    value=0.2,
    low=0.1,
    high=0.3,
    control=0.012,
    control_name="random neurons",
)


@pytest.fixture(autouse=True)
def no_windows() -> Iterator[None]:
    mpl.use("agg")
    yield
    assert plt.get_fignums() == []  # who draws a figure for the page closes it


class Page(HTMLParser):
    """Elements with their attributes, and the text between them."""

    def __init__(self, source: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.style = ""
        self._inside = ""
        self._in_cell = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._inside = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside == "style":
            self.style += data
            self._inside = ""
            return
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def profile_table() -> pd.DataFrame:
    rows = itertools.product(range(2), ("en", "de"))
    return pd.DataFrame(
        [
            {"layer": layer, "language": code, "neurons": 3 + layer, "low": 2.0, "high": 5.5}
            for layer, code in rows
        ]
    )


def written(path: Path, *sections: Section, **more: Any) -> Page:
    return Page(write_report(path, "A title", sections, **more).read_text(encoding="utf-8"))


def example(tmp_path: Path) -> Page:
    frame = pd.DataFrame({"name": ["a"], "rate": [0.5], "rate_low": [0.4], "rate_high": [0.75]})
    section = Section(
        "Which neurons?",
        "What was asked.",
        (Picture(plots.layer_profile, "Neurons by layer.", profile_table()),),
        {"Rates.": frame},
        {"model": {"weights": "abc", "dtype": "float32"}},
    )
    return written(tmp_path / "report.html", section, section, claims=[CLAIM], date="2026-01-02")


# ---------------------------------------------------------------- one file, closed


def test_the_page_asks_nothing_of_the_network(tmp_path: Path):
    page = example(tmp_path)
    targets = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data", "srcset", "poster")
    ]
    assert len(targets) > 8
    assert [each for each in targets if not each.startswith(("#", "data:"))] == []
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_the_policy_allows_this_style_sheet_and_images_inside_the_file_alone(tmp_path: Path):
    page = example(tmp_path)
    (policy,) = (
        each["content"]
        for each in page.all("meta")
        if each.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert rules["style-src"] == f"'sha256-{digest}'"
    assert page.all("script") == []
    names = {name for _, attributes in page.elements for name in attributes}
    assert not any(name.startswith("on") for name in names)
    assert "style" not in names  # the policy would not let it through


def test_what_comes_from_a_corpus_stays_text(tmp_path: Path):
    frame = pd.DataFrame({HOSTILE: [HOSTILE], f"{HOSTILE}_low": [1]})
    profile = profile_table().assign(text=HOSTILE)
    section = Section(
        f"{HOSTILE} title",
        f"{HOSTILE} text\n\n    {HOSTILE} code\n\n- {HOSTILE} list",
        (Picture(plots.layer_profile, f"{HOSTILE} caption", profile),),
        {f"{HOSTILE} table": frame},
        {HOSTILE: {HOSTILE: {HOSTILE: HOSTILE}}},
    )
    words = ("name", "statement", "source", "on", "how", "command", "control_name")
    numbers = {name: getattr(CLAIM, name) for name in ("value", "low", "high", "control")}
    claim = Claim(**numbers, **{word: f"{HOSTILE} {word}" for word in words})
    path = tmp_path / "report.html"
    write_report(path, HOSTILE, [section], [claim], HOSTILE, HOSTILE, {HOSTILE: HOSTILE})
    page = Page(path.read_text(encoding="utf-8"))
    assert page.all("script") == []
    assert all(each["src"].startswith("data:image/svg+xml;base64,") for each in page.all("img"))
    for word in ("title", "text", "code", "list", "caption", "table", *words[1:]):
        assert f"{HOSTILE} {word}" in page.text, word
    assert [HOSTILE, "1"] in page.rows


def test_half_a_character_does_not_stop_the_report(tmp_path: Path):
    half = "\ud83d"  # what a model may leave when it stops in the middle
    frame = pd.DataFrame({"text": pd.Series([half], dtype=object)})
    assert (
        "Here: ?"
        in written(tmp_path / "a.html", Section("A", f"Here: {half}", (), {half: frame})).text
    )


@pytest.mark.slow
def test_equal_input_gives_an_equal_file(tmp_path: Path):
    example(tmp_path)
    first = (tmp_path / "report.html").read_bytes()
    example(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first
    with pytest.raises(ValueError, match="nothing to write"):
        write_report(tmp_path / "none.html", "A title")
    assert not (tmp_path / "none.html").exists()


# ---------------------------------------------------------------- what is on it


def test_every_heading_is_in_the_contents_and_has_a_place_of_its_own(tmp_path: Path):
    page = example(tmp_path)
    places = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(places) == len(set(places))
    links = [each["href"] for each in page.all("a") if each["href"].startswith("#")]
    assert {link.removeprefix("#") for link in links} == set(places)
    assert len(page.all("h2")) == 4  # claims, twice the section, how it was made
    assert page.text.count("Which neurons?") == 4
    other = written(tmp_path / "b.html", Section("Report"), Section("日本語"), Section("…"))
    assert [each["id"] for each in other.all("h2")][:3] == ["report-2", "日本語", "section"]


def test_the_scoreboard_says_verdict_value_interval_control_rule_and_command(tmp_path: Path):
    fails = Claim(**{**vars(CLAIM), "bar": 0.4, "statement": "Another."})
    other = Claim(**{**vars(CLAIM), "source": "Nobody", "bar": 0.2, "control": math.nan})
    page = written(tmp_path / "a.html", claims=[CLAIM, other, fails])
    verdicts = [row[0].split("q ")[0] for row in page.rows if "q " in row[0]]
    assert verdicts == ["holds", "does not hold", "cannot tell"]  # by source, as they first appear
    (row,) = (row for row in page.rows if row[0].startswith("holds"))
    for said in ("0.2", "0.1 to 0.3", "nats per token", "whole interval is above 0"):
        assert said in row[2]
    assert row[3] == "0.012random neurons"
    assert row[0].startswith("holds")
    assert "q 0.0" in row[0]
    assert "Measured with code that is not that of a commit" in page.text
    paired = Claim(
        **{**vars(CLAIM), "difference": 0.1, "difference_low": 0.0, "difference_high": 0.2},
    )
    paired = replace(paired, over="documents", commit="1234")
    shown = written(tmp_path / "b.html", claims=[paired])
    (row,) = (row for row in shown.rows if row[0].startswith("no more than its control"))
    assert "0.1 to 0.3 over documents" in row[2]
    assert "difference 0.1 (0 to 0.2)" in row[3]
    assert "All were measured with committed code." in shown.text
    assert "3 claims: 1 holds, 1 does not, 1 undecided." in page.text
    assert "Somebody (2024) 2 claims: 1 holds, 1 does not" in page.text
    assert page.text.count("python -m nothing") == 2  # once for each source


def test_a_mark_shows_interval_and_control_on_their_side_of_the_bar(tmp_path: Path):
    page = written(tmp_path / "a.html", claims=[CLAIM])
    paths = {each["class"]: each["d"] for each in page.all("path")}
    bar = float(re.findall(r"M([\d.]+)", paths["bar"])[0])
    low, high = map(float, re.findall(r"[MH]([\d.]+)", re.sub(r" \d+", "", paths["reach"])))
    ring, value = (float(each["cx"]) for each in page.all("circle"))
    assert bar < ring < low < value < high
    assert (value - bar) / (high - bar) == pytest.approx(0.2 / 0.3, abs=0.01)
    unknown = Claim(**{**vars(CLAIM), "value": math.nan, "low": math.nan, "high": math.nan})
    gone = written(tmp_path / "b.html", claims=[unknown])
    assert gone.all("svg") == []
    assert "unknown" in gone.text


def test_a_figure_brings_its_numbers_as_a_table_and_as_a_file(tmp_path: Path):
    page = example(tmp_path)
    images = page.all("img")
    assert len(images) == 2
    assert all(each["alt"].endswith("Neurons by layer.") for each in images)
    svg = base64.b64decode(images[0]["src"].partition(",")[2])
    assert b"<svg" in svg
    links = {each["download"]: each["href"] for each in page.all("a") if "download" in each}
    text = base64.b64decode(links["layer_profile.csv"].partition(",")[2]).decode()
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(text)), profile_table())
    assert ["1", "de", "4", "2", "5.5"] in page.rows


@pytest.mark.slow
def test_saved_figures_and_those_already_drawn_are_taken_too(tmp_path: Path):
    plots.save(profile_table(), tmp_path / "layer_profile-mine")
    ax = plots.layer_profile(profile_table())
    pictures = (
        Picture(tmp_path / "layer_profile-mine.csv", "Drawn anew."),
        Picture(tmp_path / "layer_profile-mine.png", "As it is."),
        Picture(ax, "Drawn before."),
    )
    page = written(tmp_path / "a.html", Section("A", pictures=pictures))
    plt.close(ax.get_figure(root=True))  # the caller's figure was left open
    kinds = [each["src"].partition(";")[0] for each in page.all("img")]
    assert kinds == ["data:image/svg+xml", "data:image/png", "data:image/svg+xml"]
    files = [each["download"] for each in page.all("a") if "download" in each]
    assert files == ["layer_profile-mine.csv", "layer_profile-mine.csv"]
    assert page.all("img")[0]["width"] == page.all("img")[1]["width"]
    for picture, message in (
        (Picture(tmp_path / "none.csv", ""), "is missing"),
        (Picture(tmp_path / "layer_profile-mine.pdf", ""), "is not a saved figure"),
        (Picture(plots.overlap, ""), "overlap has no table to draw"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            write_report(tmp_path / "b.html", "A title", [Section("A", pictures=(picture,))])


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([0.12345, 0.00012, -0.5], ["0.123", "0.000", "\N{MINUS SIGN}0.500"]),
        ([12.345, math.nan], ["12.35", ""]),
        ([1234.5, 1.25], ["1,234", "1"]),
        ([3.0, 20480.0], ["3", "20,480"]),
        ([0.1, 0.2, 0.5], ["0.1", "0.2", "0.5"]),
        ([0.00138], ["0.00138"]),
        ([-1e-9, 0.5], ["0.0", "0.5"]),
        ([], []),
        ([math.nan, math.inf], ["", "inf"]),
    ],
)
def test_numbers_have_the_digits_that_their_column_needs(values: list[float], texts: list[str]):
    assert number_texts(values) == texts


def test_an_interval_stands_beside_its_value():
    frame = pd.DataFrame(
        {
            "code": ["a", None],
            "rate": [0.5, 0.25],
            "rate_low": [0.4, math.nan],
            "rate_high": [0.75, math.nan],
            "low": [1, 2],
            "is_busy": [True, False],
        }
    )
    page = Page(data_table(frame, "Rates"))
    assert page.rows[0] == ["code", "rate", "low", "is busy"]
    assert page.rows[1] == ["a", "0.50", "0.40 to 0.75", "1", "yes"]
    assert page.rows[2][1:] == ["0.25", "", "2", "no"]
    kinds = [each.get("class", "") for each in page.all("td")]
    assert kinds[:4] == ["", "number", "interval", "number"]


def test_a_long_table_is_cut_on_the_page_and_whole_in_the_file(tmp_path: Path):
    frame = pd.DataFrame({"n": range(MOST_ROWS + 5)})
    page = written(tmp_path / "a.html", Section("A", tables={"Many": frame}))
    assert [str(MOST_ROWS - 1)] in page.rows
    assert [str(MOST_ROWS)] not in page.rows
    assert f"The first {MOST_ROWS} of {MOST_ROWS + 5} rows" in page.text
    (link,) = (each["href"] for each in page.all("a") if "download" in each)
    whole = base64.b64decode(link.partition(",")[2]).decode()
    assert whole.splitlines()[-1] == str(MOST_ROWS + 4)


def test_prose_has_paragraphs_code_and_lists():
    text = prose("One\nline, `x < 1`.\n\n    a = 1\n    b\n\n- first\n  item\n- second\n\n")
    assert text.splitlines() == [
        '<p dir="auto">One line, <code>x &lt; 1</code>.</p>',
        '<pre tabindex="0">a = 1',
        "b</pre>",
        '<ul><li dir="auto">first',
        '  item</li><li dir="auto">second</li></ul>',
    ]
    assert prose("") == ""


def test_settings_are_shown_with_their_names_and_long_lists_counted():
    page = Page(
        settings_list({"model": {"n_layers": 6}, "ids": list(range(99)), "run": {"a": {"b": None}}})
    )
    assert page.text == "modeln layers 6ids99 valuesrunab none"
    assert Page(settings_list({"edit": {"site": "post", "values": {}}})).all("dl") == [{}]
    assert settings_list({"settings": {}}) == "<dl></dl>"


# ---------------------------------------------------------------- the command


def run_folder(folder: Path, generator: torch.Generator, fraction: float = 0.1) -> Path:
    """What `interp collect` and `interp find` leave, by hand."""
    tokens = torch.tensor([[100, 120]] * 4)
    rate = torch.rand(1, 2, 2, 50, generator=generator)
    noise = torch.rand(4, 2, 2, 50, generator=generator) * 0.1
    fired = ((rate + noise).clamp(max=1) * tokens[:, :, None, None]).long()
    stats = FiringStats(fired=fired, tokens=tokens, languages=("en", "de"))
    stats.save(folder / "firing.safetensors", {"model": {"weights": "abc"}})
    settings = {"method": "LAPE", "fraction": fraction, "busy_quantile": 0.5}
    selection = select_by_entropy(stats, fraction, 0.5)
    selection.to_json(folder / "neurons.json", {"settings": settings})
    return folder


@pytest.mark.slow
def test_a_run_becomes_sections_with_its_own_numbers(tmp_path: Path, generator: torch.Generator):
    folder = run_folder(tmp_path / "run", generator)
    (folder / "pieces").mkdir()
    shutil.copy(folder / "firing.safetensors", folder / "pieces" / "firing.safetensors")
    (folder / "other.csv").write_text("a,b\n1,2\n")
    save_claims([CLAIM], folder / "claims.json")
    firing, belonging = sections_in([folder])
    (rates,) = firing.tables.values()
    assert rates["tokens"].tolist() == [400, 480]
    rate = FiringStats.load(folder / "firing.safetensors").rate.mean(dim=(1, 2))
    assert rates["firing rate"].tolist() == pytest.approx(rate.tolist())
    assert (rates["firing rate_low"] < rates["firing rate"]).all()
    assert firing.origin == {"model": {"weights": "abc"}}
    (counts,) = belonging.tables.values()
    assert "Neurons were selected by LAPE at a fraction of 0.1" in belonging.text
    assert belonging.finding.startswith("10 of 100 neurons belong to 2 labels")
    assert "of a language's neurons are selected again" in belonging.certainty
    assert counts["neurons"].sum() >= 10
    assert (counts["kept"] > 0.3).all()
    profile, _ = belonging.pictures
    assert profile.table is not None
    assert profile.table["low"].notna().all()
    Report((folder,)).run()
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert len(page.all("img")) == 2
    assert "interp report" in page.text
    assert "1 claim: 1 holds" in page.text


def test_a_table_says_how_many_neurons_a_language_shares_with_no_other(tmp_path: Path):
    mask = torch.tensor([[[True, True, False, True]], [[False, True, True, False]]])
    NeuronSelection(mask, ("en", "de")).to_json(tmp_path / "neurons.json", {})
    (belonging,) = sections_in([tmp_path])
    (counts,) = belonging.tables.values()
    assert counts[["neurons", "of no other"]].to_numpy().tolist() == [[3, 2], [2, 1]]


def test_a_report_says_of_which_models_it_is():
    run = {"name": "/somewhere/small", "n_layers": 6, "d_mlp": 2048, "languages": ["en", "zh"]}
    inside = {"settings": {"run": run | {"languages": ["zh", "ja"]}}}
    sections = [Section("A", origin=run), Section("B", origin=inside), Section("C")]
    assert models_of(sections) == (
        "Model: `small`, 6 layers of 2,048 neurons. Languages: English, Chinese, Japanese."
    )
    assert models_of([Section("C", origin={"name": "no run"})]) == ""
    read = run | {"tokens": {"en": 2560, "zh": 1280}, "settings": {"text": "/somewhere/news"}}
    told = models_of([Section("A", origin=run), Section("B", origin=read)])
    assert told.endswith(
        "Chinese. Neurons were counted over `news`: 1,280 to 2,560 tokens of each."
    )


def test_an_interval_is_shown_only_if_the_counts_give_the_selection(
    tmp_path: Path, generator: torch.Generator
):
    folder = run_folder(tmp_path / "run", generator)
    other = run_folder(tmp_path / "other", generator)
    shutil.copy(other / "firing.safetensors", folder / "firing.safetensors")
    _, belonging = sections_in([folder])
    profile, _ = belonging.pictures
    assert profile.table is not None
    assert profile.table["low"].isna().all()
    assert "kept" not in next(iter(belonging.tables.values()))


def test_several_results_of_a_kind_share_a_section_and_are_told_apart(
    tmp_path: Path, generator: torch.Generator
):
    for name in ("one", "two"):
        run_folder(tmp_path / name, generator, {"one": 0.1, "two": 0.2}[name])
    firing, belonging = sections_in([tmp_path / "two", tmp_path / "one"])
    assert list(firing.origin) == ["two", "one"]
    assert firing.text.count("A neuron fires") == 1
    assert "`two`: 20 of 100" in belonging.finding
    assert "`one`: 10 of 100" in belonging.finding
    assert [each.caption.partition(".")[0] for each in belonging.pictures] == ["two"] * 2 + [
        "one"
    ] * 2
    inside = tmp_path / "a" / "b" / "x.csv"
    assert names_of([tmp_path / "a" / "x.csv", tmp_path / "a" / "y.csv"]) == ["x.csv", "y.csv"]
    assert names_of([tmp_path / "a" / "x.csv", inside]) == ["a", "b"]


def test_a_folder_with_nothing_to_show_is_refused_in_a_sentence(tmp_path: Path):
    (tmp_path / "notes.csv").write_text("")
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(ValueError, match="holds nothing that a report can show: give a folder"):
        sections_in([tmp_path])
    with pytest.raises(FileNotFoundError, match="is missing: give the folder of a run"):
        sections_in([tmp_path / "none"])
    with pytest.raises(ValueError, match="name the folders"):
        Report(()).run()
    save_claims([CLAIM], tmp_path / "claims.json")
    assert sections_in([tmp_path]) == []
    assert claims_in([tmp_path]) == [CLAIM]


INTERVALS = {"drop_low": 0.0, "drop_high": 0.2, "low": 0.1, "high": 0.9}
SPANS = {
    f"{name}_{end}": 0.5
    for name in ("increase", "random", "rate", "good", "difference", "divergence")
    for end in ("low", "high")
}
WORDS = {
    "off": ("nothing", "en", "de"),
    "read": ("en", "de"),
    "language": ("en", "de"),
    "to": ("en", "de"),
    "layer": (0, 1, 2),
    "category": ("silent", "all shared"),
    "condition": ("no edit", "neurons"),
    "way": ("no edit", "neurons"),
    "fraction": (0.01, 0.02),
    "a": ("neurons",),
    "b": ("others", "more"),
    "under": ("locked", "random neurons"),
    "task": ("facts", "sums"),
    "source": ("a", "b"),
    "part": ("mlp_out",),
    "span": ("x",),
    "answer": (" ja", " nein"),
    "setting": ("1 %",),
    "quantity": ("probability",),
    "unit": ("bytes",),
    "place": (0,),
    "extent": ("each",),
    "row": ("concept", "language"),
    "method": ("LAPE", "random"),
    "measure": ("effect", "recovery"),
    "tokens": (1000.5, 2000.0),
}


def table_for(columns: tuple[str, ...]) -> pd.DataFrame:
    """A table that has these columns: every combination of names, the same number everywhere."""
    words = WORDS | ({"change": ("half of the text", "without en")} if "jaccard" in columns else {})
    names = [name for name in words if name in columns]
    frame = pd.DataFrame(list(itertools.product(*(words[name] for name in names))), columns=names)
    frame = frame.assign(**SPANS, **({} if "difference" in columns else INTERVALS), neurons=3)
    if "off" in names and "read" in names:
        frame["own"] = frame["off"] == frame["read"]
    missing = [name for name in columns if name not in frame]
    return frame.assign(**dict.fromkeys(missing, 0.25))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.files[0])
def test_every_kind_of_table_is_known_and_drawn(kind, tmp_path: Path):
    frame = table_for(kind.columns)
    path = tmp_path / kind.files[-1]
    frame.to_csv(path, index=False)
    assert kind_of(path, pd.read_csv(path)) is kind
    assert kind_of(path, frame.drop(columns=kind.columns[-1])) is None
    assert kind_of(path, frame[:0]) is None
    assert (kind_of(tmp_path / "other.csv", frame) is None) == ("*.csv" not in kind.files)
    (section,) = sections_in([tmp_path])
    assert section.title == kind.title
    page = written(tmp_path / "a.html", section)
    assert page.all("img")[0]["src"].startswith("data:image/svg+xml")
    assert f"({counted(len(kind.rows(frame)), 'row')})" in page.text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.result], ids=lambda k: k.result)
def test_a_table_is_what_the_result_beside_it_says(kind, tmp_path: Path):
    path, frame = tmp_path / "mine.csv", pd.DataFrame({"a": [1]})
    assert kind_of(path, frame) is None
    artifacts.save(tmp_path / "mine.safetensors", kind.result, {}, {}, {})
    assert kind_of(path, frame) is kind
    artifacts.save(tmp_path / "mine.safetensors", "Precision", {}, {}, {})
    assert kind_of(path, table_for(kind.columns)) is None
    (tmp_path / "mine.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"mine\.safetensors is damaged .*recreate it"):
        kind_of(path, frame)


def test_one_text_of_each_way_is_shown_and_its_language_named(tmp_path: Path):
    (kind,) = (kind for kind in KINDS if kind.texts and "condition" in kind.columns)
    table_for(kind.columns).to_csv(tmp_path / "rates.csv", index=False)
    texts = pd.DataFrame(
        {
            "condition": ["no edit", "no edit", "neurons"],
            "to": ["en", "de", "en"],
            "language": ["fr", "de", "en"],
            "text": [HOSTILE, "zweiter", "third"],
        }
    )
    texts.to_csv(tmp_path / "texts.csv", index=False)
    (section,) = sections_in([tmp_path])
    page = written(tmp_path / "a.html", section)
    assert ["no edit", "en", "fr", HOSTILE] in page.rows
    assert ["neurons", "en", "en", "third"] in page.rows
    assert not any("zweiter" in row for row in page.rows)
    assert len(page.all("img")) == 1


# ---------------------------------------------------------------- the studies


def study_results(folder: Path) -> Path:
    tiny = folder / "deactivate_neurons" / "tiny"
    tiny.mkdir(parents=True)
    pd.DataFrame({"a": [1.5], "b": ["x"]}).to_csv(tiny / "small.csv", index=False)
    pd.DataFrame({"a": range(99)}).to_csv(tiny / "large.csv", index=False)
    save_claims([CLAIM], tiny / "claims.json")
    (folder / "map_shared_neurons" / "babel").mkdir(parents=True)
    (folder / "no_study" / "tiny").mkdir(parents=True)
    return folder


def test_a_study_is_told_by_its_question_its_tables_and_its_claims(tmp_path: Path):
    results, out = study_results(tmp_path / "results"), tmp_path / "report.html"
    study_report.main(study_report.Config("tiny", results, out))
    page = Page(out.read_text(encoding="utf-8"))
    assert "Which languages suffer when one language's neurons are switched off" in page.text
    assert "Tang et al. (2024) find" in page.text
    assert "python -m experiments.deactivate_neurons tiny" in page.text
    assert ["1.5", "x"] in page.rows
    assert "large.csv (99 rows)" in page.text
    assert ["98"] not in page.rows
    assert "Which neurons are shared between languages" not in page.text  # not run with this preset


def test_results_without_a_study_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no study with the preset paper"):
        study_report.main(study_report.Config("paper", study_results(tmp_path / "results")))


def test_every_study_begins_with_its_question():
    for path in study_report.EXPERIMENTS.glob("*.py"):
        if path.stem not in ("__init__", "study", "papers", "runner"):
            title, text = study_report.question(path.stem)
            assert len(title) > 10, path
            assert "python -m" not in text, path


# ---------------------------------------------------------------- in a browser


@pytest.mark.slow
def test_a_browser_shows_and_prints_it_without_a_request(tmp_path: Path):
    hostile = Section(HOSTILE, HOSTILE, (), {HOSTILE: pd.DataFrame({"text": [HOSTILE * 9]})})
    drawn = Section("A", pictures=(Picture(plots.layer_profile, "By layer.", profile_table()),))
    path = tmp_path / "report.html"
    write_report(path, HOSTILE, [drawn, hostile] * 3, [CLAIM], HOSTILE)
    size = "image => [image.naturalWidth, image.getBoundingClientRect().width]"
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    with open_page(path, viewport={"width": 1280, "height": 900}) as (page, seen):
        natural, wide = page.locator("img").first.evaluate(size)
        assert natural > 100
        assert page.evaluate(paper) == "rgb(255, 255, 255)"
        page.emulate_media(color_scheme="dark")
        assert page.evaluate(paper) != "rgb(255, 255, 255)"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
        page.locator("summary").first.click()
        assert page.locator("details[open] table").first.is_visible()
        printed = page.pdf(format="A4")
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == 390  # tables scroll inside
        narrow = page.locator("img").first.evaluate(size)[1]
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") > 1
    assert narrow < wide < 736
    assert not seen.errors
    assert [each for each in seen.requests if not each.startswith("data:")] == [path.as_uri()]


@pytest.mark.slow
def test_a_wide_figure_scrolls_where_the_screen_is_narrow(tmp_path: Path):
    narrow = Picture(plots.layer_profile, "By layer.", profile_table())
    wide = Picture(plots.accuracy_lost, "On tasks.", tasks_table())
    path = write_report(tmp_path / "report.html", "A", [Section("A", pictures=(narrow, wide))])
    with open_page(path, viewport={"width": 390, "height": 800}) as (page, _):
        one, other = page.locator("img").all()
        assert one.bounding_box()["width"] < 390
        assert other.bounding_box()["width"] > 500
        box = page.locator(".scroll:has(img)")
        assert box.count() == 1
        assert box.get_attribute("aria-label") == "Figure 2"
        assert box.evaluate("(box) => box.scrollWidth > box.clientWidth")
        assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.slow
def test_settings_run_on_where_they_are_printed(tmp_path: Path):
    origin = {"model": {"a": {"b": 1}, "c": 2}, "commit": "x"}
    path = write_report(tmp_path / "report.html", "A", [Section("A", origin=origin)], origin=origin)
    with open_page(path) as (page, _):
        page.locator("summary").click()
        height = page.locator("details dl").first.bounding_box()["height"]
        page.emulate_media(media="print")
        assert page.locator("details dl").first.bounding_box()["height"] < height / 2


@pytest.mark.slow
def test_a_refused_style_would_be_seen(tmp_path: Path):
    path = write_report(tmp_path / "report.html", "A title", [Section("A")])
    text = path.read_text(encoding="utf-8").replace("<h1", '<h1 style="color: red"')
    path.write_text(text, encoding="utf-8")
    with open_page(path) as (_, seen):
        pass
    assert any("Content Security Policy" in error for error in seen.errors)


def statement(name: str, command: str = "python -m nothing") -> Statement:
    words = {"source": "Somebody (2024)", "measures": "a number", "holds": "above 0"}
    words |= {"over": "documents", "no_control": "none", "says": f"It is so: {name}."}
    return Statement(name=name, command=command, **words)


STATED = [
    statement("diagonal"),
    statement("diagonal", "python -m another"),
    statement("diagonal-size"),
]
HERE = replace(CLAIM, name="xnli-diagonal", stated_as="diagonal", commit="12")


def test_a_statement_waits_until_a_claim_of_its_own_name_and_command_was_measured():
    assert study_board.unmeasured([HERE], STATED) == tuple(STATED[1:])
    size = replace(HERE, stated_as="diagonal-size")
    assert study_board.unmeasured([size], STATED) == tuple(STATED[:2])  # not by a part of its name
    assert study_board.unmeasured([], STATED) == tuple(STATED)


def test_the_board_counts_by_paper_and_model_and_says_what_waits():
    claims = [HERE, replace(HERE, name="b", on="elsewhere", bar=0.5), replace(HERE, control=0.2)]
    lines = study_board.counts(claims).splitlines()
    assert lines[0] == (
        "| paper | on | put up | holds | no more than its control | does not hold | cannot tell |"
    )
    assert lines[2] == "| Somebody (2024) | a made-up model | 2 | 1 | 1 | 0 | 0 |"
    assert lines[3] == "| Somebody (2024) | elsewhere | 1 | 0 | 0 | 1 | 0 |"
    shown = study_board.page({"gemma": claims}, STATED)
    assert "2 of the 3 statements" in shown
    assert "- `python -m another`: diagonal" in shown
    assert "All were measured with committed code." in shown
    assert "Not covered by any command" in shown
    dirty = study_board.page({"babel": [replace(HERE, commit="12-dirty")]}, STATED)
    assert "Measured with code that is not that of a commit: xnli-diagonal." in dirty


def test_the_board_has_a_row_for_each_statement_and_a_column_for_each_model():
    other = replace(HERE, on="Gemma, facts", low=-1.0)
    measured = {"babel": [HERE], "gemma": [other, replace(other, on="Gemma, pairs")]}
    table = study_board.by_model(measured, STATED).splitlines()
    assert table[0] == "| claim | Babel | Gemma 3 270M |"
    (row,) = table[2:]
    claim, babel, gemma = row.strip("| ").split(" | ")
    assert claim == f"{CLAIM.statement} *Somebody (2024)*"
    assert babel.startswith("**holds**, ")
    assert gemma.startswith("Gemma, facts: **cannot tell**, ")
    assert "<br>Gemma, pairs: **cannot tell**" in gemma
    counted = study_board.summary(measured).splitlines()
    assert counted[3] == "| Babel | 1 | 1 | 0 | 0 | 0 |"
    assert counted[4] == "| Gemma 3 270M | 2 | 0 | 0 | 0 | 2 |"


def test_what_was_measured_is_kept_by_model_and_the_page_made_again(tmp_path: Path):
    results, measured = tmp_path / "results", tmp_path / "measured"
    for folder, name in (
        ("deactivate_neurons/babel", "a"),
        ("deactivate_neurons/gemma/gemma3-270m", "b"),
        ("deactivate_neurons/tiny", "c"),
        ("read_published_masks", "d"),
    ):
        save_claims([replace(HERE, name=name)], results / folder / "claims.json")
    study_board.keep(results, measured)
    found = study_board.kept(measured)
    names = {preset: [claim.name for claim in claims] for preset, claims in found.items()}
    assert names == {"published": ["d"], "babel": ["a"], "gemma": ["b"]}
    assert len(list(measured.rglob("*.json"))) == 3
    study_board.keep(tmp_path / "nothing", measured)  # what was kept stays
    assert study_board.kept(measured) == found


def test_the_page_and_the_readme_are_what_was_measured():
    found = study_board.kept()
    assert study_board.PAGE.read_text(encoding="utf-8") == study_board.page(found)
    readme = study_board.README.read_text(encoding="utf-8")
    assert study_board.summary(found) in readme, "run python -m experiments.board"


def test_the_board_names_what_holds_and_may_be_a_false_discovery():
    barely = [replace(CLAIM, name=f"c{n}", bar=0.098, control=math.nan) for n in range(2)]
    assert {claim.verdict for claim in barely} == {"holds"}
    assert "no claim that holds has one above 0.05" in study_board.doubtful(barely)
    blind = [replace(CLAIM, value=0.0, low=-1.0, high=1.0, control=math.nan) for _ in range(9)]
    assert "hold by chance: c0, c1" in study_board.doubtful([*barely, *blind])
    counted = replace(barely[0], low=0.2, high=0.2)
    assert "the 2 claims that have an interval" in study_board.doubtful([*barely, counted])


def test_every_statement_of_every_study_is_on_the_board():
    named = [statement.name for statement in study_board.every_statement()]
    assert {"lape-related", "precision-tenfold", "exclusive", "untold-facts-known"} <= set(named)
    assert all(statement.command for statement in study_board.every_statement())
