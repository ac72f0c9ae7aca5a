"""The neuron page: what is on it, and that nothing in it can run or reach out."""

import base64
import gzip
import html
import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from interp.cli import main
from interp.commands.page import Page
from interp.counting.collect import collect
from interp.counting.keep import Keep
from interp.counting.stats import FiringStats
from interp.counting.top_contexts import TopContexts
from interp.inference.intervals import jackknife
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.reports import neuron_page as page_module
from interp.reports.neuron_page import NeuronPage, neuron_page, promoted_tokens
from interp.reports.page_contexts import SHADES, _leave_out_cut_words, pieces, word_edges
from interp.scores.lape import language_entropy
from interp.selections.neuron_selection import NeuronSelection
from interp.text.reading import read_corpora, read_sentences
from tests import tiny_models
from tests.browser import open_page

LANGUAGES = ("en", "zh", "ja", "ar")
EVIL = "</script><img src=x onerror=document.title=1>"
LINES = {
    "en": [f"{word} {EVIL}" for word in ("one", "two", "red", "sea", "cat", "dog", "sun", "ice")],
    "zh": [f"{word}在图书馆里看书。" for word in ("我", "你", "他", "她", "狗", "猫", "人", "鸟")],
    "ja": [f"{word}は駅で待つ。" for word in ("私", "君", "彼", "犬", "猫", "鳥", "母", "父")],
    "ar": [f"{word} في المدرسة" for word in ("أنا", "هو", "هي", "كلب", "قط", "أم", "أب", "نحن")],
}
NEURONS = [(0, 0, 3), (0, 2, 8), (1, 1, 40), (2, 1, 40), (2, 2, 150), (3, 2, 9)]
WIDE = {"width": 1440, "height": 900}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NeuronModel:
    return load(tiny_models.build("llama", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def run(model: NeuronModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept contexts, and a selection in its folder."""
    out = tmp_path_factory.mktemp("run")
    text = read_sentences(LINES, LANGUAGES, model, n_shards=4, hygiene="off")
    collect(model, text, out, keep=Keep(contexts=3), progress=False)
    selection = NeuronSelection.from_triples(NEURONS, LANGUAGES, model.n_layers, model.d_mlp)
    selection.to_json(out / "neurons.json", {"settings": {"method": "LAPE"}})
    return out


@pytest.fixture(scope="module")
def parts(run: Path) -> tuple[FiringStats, NeuronSelection, TopContexts]:
    return (
        FiringStats.load(run / "firing.safetensors"),
        NeuronSelection.from_json(run / "neurons.json"),
        TopContexts.load(run / "contexts.safetensors"),
    )


@pytest.fixture(scope="module")
def made(model: NeuronModel, parts: tuple) -> NeuronPage:
    stats, selection, contexts = parts
    effects = pd.DataFrame(
        [{"layer": 1, "neuron": 40, "language": "zh", "value": 0.02, "low": 0.01, "high": 0.03}]
    )
    return neuron_page(
        model,
        stats,
        {"LAPE": selection},
        contexts,
        effects=effects,
        before=60,
        after=60,
        progress=False,
    )


@pytest.fixture(scope="module")
def saved(made: NeuronPage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.save(tmp_path_factory.mktemp("page") / "neurons.html")


def ready(page: Any) -> int:
    """Milliseconds from the start of loading to a page that can be read."""
    page.wait_for_selector("html[data-ready]", state="attached")
    return int(page.get_attribute("html", "data-ready"))


def search(page: Any, text: str) -> str:
    page.fill("#query", text)
    page.wait_for_selector(f'html[data-searched="{text}"]', state="attached")
    return page.inner_text("#status")


def unpacked(text: str, name: str) -> dict[str, Any]:
    found = re.search(f'id="{name}">([^<]*)<', text)
    assert found is not None
    return json.loads(gzip.decompress(base64.b64decode(found.group(1))))


# ---------------------------------------------------------------- what is on it


def test_rates_intervals_scores_and_members_are_those_of_the_results(made, parts):
    stats, selection, _ = parts
    rate, entropy = jackknife(stats, lambda part: part.rate), language_entropy(stats.rate)
    place = selection.union().nonzero().tolist()
    assert len(made.index["neurons"]) == len(place) == made.n_neurons == 5
    for row, (layer, neuron) in zip(made.index["neurons"], place, strict=True):
        assert row[:2] == [layer, neuron]
        at = (slice(None), layer, neuron)
        assert row[2] == pytest.approx(rate.value[at].tolist(), rel=1e-4)
        assert row[3] == pytest.approx(rate.low[at].clamp_min(0).tolist(), rel=1e-4)
        assert row[4] == pytest.approx(rate.high[at].clamp_max(1).tolist(), rel=1e-4)
        assert row[5] == pytest.approx([float(entropy[layer, neuron])], rel=1e-4)
        assert row[6] == [[0, code] for code in selection.mask[at].nonzero().flatten().tolist()]
    effects = made.index["effects"]
    assert effects[place.index([1, 40])] == [None, [0.02, 0.01, 0.03], None, None]
    assert effects[0] is None


def test_contexts_are_the_text_around_them_with_the_gates_as_shades(made, model, parts):
    """Windows are longer than any line here, so a context is the whole of its line."""
    _, _, contexts = parts
    n_seen = 0
    for layer, detail in made.layers.items():
        for neuron, by_language in zip(detail["neurons"], detail["contexts"], strict=True):
            peak = float(contexts.gate[:, layer, neuron].max())
            for language, shown in enumerate(by_language):
                kept = contexts.gate[language, layer, neuron]
                assert len(shown) == int((kept > 0).sum())
                for rank, (stretch, first, strongest, gate, shades) in enumerate(shown):
                    code, source, text, sizes, _ = detail["stretches"][stretch]
                    row = int(contexts.row[language, layer, neuron, rank])
                    assert (code, source) == (language, contexts.sources[row])
                    assert text in LINES[LANGUAGES[language]]
                    assert (first, sum(sizes)) == (0, len(text))
                    assert gate == pytest.approx(float(kept[rank]), rel=1e-3)
                    share = (SHADES.index(shades[strongest])) / (len(SHADES) - 1)
                    assert -1e-3 <= share - gate / peak <= 1 / (len(SHADES) - 1) + 1e-3
                    assert SHADES.index(max(shades)) == SHADES.index(shades[strongest])
                    before = contexts.ids[row, : contexts.position[language, layer, neuron, rank]]
                    begin = sum(sizes[:strongest])
                    assert text.encode()[: len(text[:begin].encode())] in _bytes_of(model, before)
                    n_seen += 1
    assert n_seen > 20


def _bytes_of(model: NeuronModel, ids: torch.Tensor) -> bytes:
    """UTF-8 of tokens, which may end inside a letter."""
    return b"".join(page_module.token_bytes(model)[id] for id in ids.tolist())


def test_pieces_are_the_text_whatever_tokens_cut_it(generator):
    """Letters of one to four bytes, cut anywhere; cut letters at either end are left out."""
    text = "a中é🙂文 بb"
    whole = text.encode()
    for _ in range(300):
        cuts = torch.randperm(len(whole) - 1, generator=generator)[:6].sort().values + 1
        ends = [0, *cuts.tolist(), len(whole)]
        spelled = [whole[a:b] for a, b in pairwise(ends)] + [b""]
        empty = len(spelled) - 1  # a special token, which says nothing
        stretch = pieces([*range(empty), empty], spelled)
        assert stretch.text == text
        assert sum(stretch.sizes) == len(text) + 1  # 🙂 counts twice in JavaScript
        assert stretch.piece.tolist() == sorted(stretch.piece.tolist())
        assert len(stretch.sizes) == stretch.piece[-1] + 1
        later = pieces(range(1, empty), spelled)
        rest = whole[ends[1] :]
        while rest and rest[0] & 0xC0 == 0x80:
            rest = rest[1:]
        assert later.text == rest.decode()
        earlier = pieces(range(empty - 1), spelled)
        assert earlier.text == whole[: ends[-2]].decode(errors="ignore")
        assert len(earlier.sizes) == earlier.piece[-1] + 1


def test_words_that_a_window_cuts_are_left_out():
    """The window has `before` tokens on both sides; the last row's script has no spaces."""
    spelled = [
        b" the",
        b" elec",
        b"tion",
        b".",
        b" Thr",
        b"ee",
        "\u4eca".encode(),
        "\u5929".encode(),
    ]
    edges = word_edges(spelled)

    def shown(ids: list[int], position: int, before: int, start: int = 0) -> list[int]:
        window = [position - before <= at <= position + before for at in range(len(ids))]
        real = np.array([True] * (2 * before + 1))
        starts = np.arange(len(ids)) == start
        _leave_out_cut_words(real, np.array(ids, np.int32), starts, position, before, edges)
        assert all(window[at + position - before] for at in np.flatnonzero(real))
        return (np.flatnonzero(real) + position - before).tolist()

    text = [0, 1, 2, 3, 4, 5, 0, 0]
    assert shown(text, 3, 1) == [3]  # "tion" and "Thr" are parts of words
    assert shown(text, 3, 2) == [1, 2, 3, 4, 5]
    assert shown(text, 2, 1) == [1, 2, 3]
    assert shown(text, 5, 1) == [4, 5, 6]
    assert shown(text, 4, 1) == [3, 4, 5]
    assert shown([1, 2, 2, 2, 2, 2, 2, 2, 0], 7, 1) == [6, 7, 8]  # the peak's own word stays
    assert shown([6, 7, 6, 7, 6], 2, 1) == [1, 2, 3]
    assert shown(text, 3, 1, start=2) == [2, 3]  # a document starts, so "tion" is no part


def test_the_part_of_a_letter_is_within_a_word():
    edges = word_edges(["é".encode()[:1], b"a ", b"", b"\n"])
    assert edges.begins.tolist() == [True, True, False, False]
    assert edges.ends.tolist() == [True, False, False, False]


def test_promoted_tokens_are_read_through_norm_and_unembedding(model):
    hf = model.bridge.original_model
    neurons = torch.tensor([3, 8])
    up, down = promoted_tokens(model, 2, neurons, 5)
    write = model.w_out(2)[neurons]
    write = write / write.norm(dim=-1, keepdim=True) * math.sqrt(model.d_model)
    with torch.no_grad():
        logits = hf.lm_head(hf.model.norm(write)) - hf.lm_head(hf.model.norm(-write))
    order = logits.argsort(dim=-1, descending=True)
    assert torch.equal(up, order[:, :5])
    assert torch.equal(down, order.flip(-1)[:, :5])


def test_equal_results_are_equal_pages(made, model, parts, saved, tmp_path):
    stats, selection, contexts = parts
    again = neuron_page(model, stats, {"LAPE": selection}, contexts, progress=False)
    assert again.html() != made.html()  # without effects, with shorter windows
    assert saved.read_text(encoding="utf-8") == made.html()
    assert made.save(tmp_path / "copy.html").read_bytes() == saved.read_bytes()
    assert str(tmp_path) not in json.dumps(again.index)
    assert again.index["title"] == f"Neurons of {Path(model.name).name}"  # not where it lies


def test_what_does_not_go_together_is_refused(model, parts):
    stats, selection, contexts = parts
    few = FiringStats(fired=stats.fired[:, :2], tokens=stats.tokens[:, :2], languages=LANGUAGES[:2])
    with pytest.raises(
        ValueError, match=r"contexts are of .* in en, zh, ja, ar, but .* in en, zh:"
    ):
        neuron_page(model, few, {"LAPE": selection.languages_only(["en"])}, contexts)
    empty = NeuronSelection(torch.zeros_like(selection.mask), LANGUAGES)
    with pytest.raises(ValueError, match=r"\(LAPE\) have no neurons"):
        neuron_page(model, stats, {"LAPE": empty}, contexts)
    foreign = NeuronSelection(selection.mask[:1], ("fr",))
    with pytest.raises(ValueError, match="LAPE has neurons of fr"):
        neuron_page(model, stats, {"LAPE": foreign}, contexts)
    effects = pd.DataFrame({"layer": [0], "neuron": [3], "language": ["en"]})
    with pytest.raises(ValueError, match="no column value"):
        neuron_page(model, stats, {"LAPE": selection}, contexts, effects=effects)


def test_one_shard_has_rates_without_intervals(model, parts):
    stats, selection, contexts = parts
    one = neuron_page(model, stats.shards([0]), {"LAPE": selection}, contexts, progress=False)
    assert one.index["neurons"][0][3] == [None] * 4


@pytest.mark.slow
def test_the_page_knows_where_documents_start(model, tmp_path):
    """Of running text; three tokens a line, so that every window holds the start of some."""
    short = {
        code: [f"{line[:1]}{n}." for n, line in enumerate(lines)] for code, lines in LINES.items()
    }
    settings = {"block_length": 8, "n_shards": 2, "hygiene": "off", "bos": "none"}
    text = read_corpora(short, LANGUAGES, model, **settings)
    run = collect(model, text, tmp_path, keep=Keep(contexts=1), progress=False)
    selection = NeuronSelection.from_triples(NEURONS, LANGUAGES, model.n_layers, model.d_mlp)
    page = neuron_page(model, run.firing, {"LAPE": selection}, run.contexts, progress=False)
    n_starts = 0
    for detail in page.layers.values():
        for _, _, shown, sizes, starts in detail["stretches"]:
            at = {sum(sizes[:piece]) for piece in starts}
            dots = {n for n, letter in enumerate(shown, 1) if letter == "."}
            assert at - {len(shown)} == dots - {len(shown)}
            n_starts += len(starts)
    assert n_starts > 5
    with open_page(page.save(tmp_path / "page.html"), viewport=WIDE) as (opened, seen):
        ready(opened)
        first = opened.locator(".context p").first.inner_text()
        assert re.fullmatch(r"[^¶]*\.(¶[^¶]+)+", first)
        assert seen.errors == []


@pytest.mark.slow
def test_the_figure_of_a_neuron_has_the_rates_of_the_page(run, made, tmp_path, capsys):
    main(["figure", str(run), "--neuron", "L1N40", "l2n9", "--out", str(tmp_path)])
    assert "2 figures (.pdf)" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {
        f"neuron_rates-{name}.{ending}" for name in ("L1N40", "L2N9") for ending in ("csv", "pdf")
    }
    table = pd.read_csv(tmp_path / "neuron_rates-L1N40.csv")
    (row,) = (row for row in made.index["neurons"] if row[:2] == [1, 40])
    assert table["language"].tolist() == list(LANGUAGES)
    for name, values in zip(("rate", "low", "high"), row[2:5], strict=True):
        assert table[name].tolist() == pytest.approx(values, rel=1e-4)
    assert table["belongs"].tolist() == [code in ("zh", "ja") for code in LANGUAGES]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["neuron_rates"], r"Of which neuron\? Name it, as in --neuron L5N7"),
        (["overlap", "--neuron", "L1N4"], "--neuron draws neuron_rates and not overlap"),
        (["--neuron", "1.4"], "There is no neuron '1.4': give a layer and a neuron"),
        (["--neuron", "L3N4"], "There is no neuron L3N4 in .*, which has layers 0 to 2 of"),
    ],
)
def test_a_neuron_that_is_not_there_is_not_drawn(run, more, sentence, capsys):
    with pytest.raises(SystemExit):
        main(["figure", str(run), *more])
    assert re.search(sentence, capsys.readouterr().err)


# ---------------------------------------------------------------- in a browser


@pytest.mark.slow
def test_the_page_shows_neurons_and_asks_for_nothing(saved):
    with open_page(saved, viewport=WIDE) as (page, seen):
        ready(page)
        assert page.inner_text("#status") == "5 neurons"
        assert page.locator("#list a").count() == 5
        for neuron in ("L1N40", "L2N9"):
            page.click(f'[data-id="{neuron}"]')
            page.wait_for_selector(f'html[data-shows="{neuron}"]', state="attached")
            assert page.url.endswith(f"#{neuron}")
        assert page.inner_text("h2") == "Layer 2, neuron 9"
        assert page.locator(".badge").all_inner_texts() == ["Arabic"]
        assert page.locator("h4").all_inner_texts() == [  # its own language first
            "Arabic العربية", "English", "Chinese 中文", "Japanese 日本語"
        ]  # fmt: skip
        assert "how many of the neurons on this page" in page.inner_text("#meaning")
        assert "%" in page.locator(".bars").first.inner_text()
        # The map: six memberships of five neurons.
        cells = page.locator("#map td").all_inner_texts()
        assert sum(int(cell) for cell in cells if cell.strip()) == len(NEURONS)
        page.click('#map button[title="layer 1, Chinese: 1"]')
        assert page.inner_text("#status") == "1 of 5 neurons"
        assert page.inner_text("h2") == "Layer 1, neuron 40"
        assert "+0.020" in page.inner_text("main")
        assert seen.errors == []
        assert seen.requests == [saved.as_uri()]


@pytest.mark.slow
def test_text_of_the_corpus_stays_text(saved):
    with open_page(saved, viewport=WIDE) as (page, seen):
        ready(page)
        n = 0
        for neuron in page.locator("#list a").all():
            neuron.click()
            lines = page.locator('.context p[lang="en"]').all_inner_texts()
            assert all(EVIL in line for line in lines)
            n += len(lines)
            assert page.locator("img").count() == 0
        assert n >= 5
        assert page.title().startswith("Neurons of ")
        # Even a script that gets into the page does not run: the policy names the one that may.
        page.evaluate(
            "() => { const s = document.createElement('script');"
            " s.textContent = 'document.title = 1'; document.body.append(s); }"
        )
        assert page.title().startswith("Neurons of ")
        assert len(seen.errors) == 1
        assert "Content Security Policy" in seen.errors[0]
        assert seen.requests == [saved.as_uri()]


@pytest.mark.slow
def test_names_and_tokens_that_are_markup_stay_text(made, tmp_path):
    """As if every string on the page, and every single token of it, were an attack."""
    index, layers = json.loads(json.dumps(made.index)), json.loads(json.dumps(made.layers))
    index |= {"title": EVIL, "selections": [EVIL], "scores": [EVIL]}
    for each in index["languages"]:
        each |= {"name": EVIL, "endonym": EVIL}
    for detail in layers.values():
        detail["stretches"] = [[0, EVIL, EVIL, [len(EVIL)], []]]
        detail["contexts"] = [[[[0, 0, 0, 1.0, "z"]]] * 4 for _ in detail["neurons"]]
        detail["up"] = detail["down"] = [[EVIL] for _ in detail["neurons"]]
    hostile = NeuronPage(EVIL, index, {int(layer): each for layer, each in layers.items()})
    with open_page(hostile.save(tmp_path / "hostile.html"), viewport=WIDE) as (page, seen):
        ready(page)
        assert page.locator(".context .peak").all_inner_texts() == [EVIL] * 4
        assert page.locator("h1").inner_text() == page.title() == EVIL
        assert page.locator(".tokens li").first.inner_text() == EVIL
        page.keyboard.press("?")
        assert page.locator("img").count() == 0
        assert seen.errors == []
        assert len(seen.requests) == 1


@pytest.mark.slow
def test_scripts_run_the_way_they_are_written(saved):
    with open_page(saved, viewport=WIDE) as (page, seen):
        ready(page)
        for code, direction in (("zh", "ltr"), ("ja", "ltr"), ("ar", "rtl")):
            context = page.locator(f'.context p[lang="{code}"]').first
            assert context.inner_text() in LINES[code]
            found = context.evaluate("(node) => getComputedStyle(node).direction")
            assert found == direction
        assert seen.errors == []


@pytest.mark.slow
def test_text_keeps_the_direction_of_its_language_when_it_begins_with_a_foreign_name(
    made, tmp_path
):
    layers = json.loads(json.dumps(made.layers))
    for detail in layers.values():
        detail["stretches"] = [
            [code, source, f"Ada {text}", [4 + sizes[0], *sizes[1:]], starts]
            for code, source, text, sizes, starts in detail["stretches"]
        ]
    page = NeuronPage("x", made.index, {int(layer): each for layer, each in layers.items()})
    with open_page(page.save(tmp_path / "foreign.html"), viewport=WIDE) as (shown, _):
        ready(shown)
        lines = shown.locator('.context p[lang="ar"]')
        assert lines.first.inner_text().startswith("Ada ")
        found = lines.evaluate_all("(all) => all.map((each) => getComputedStyle(each).direction)")
        assert set(found) == {"rtl"}


@pytest.mark.slow
def test_nothing_in_the_boxes_is_cut_off(made, tmp_path):
    names = {"selections": ["LAPE"], "scores": ["entropy (nats)"]}
    saved = NeuronPage("x", made.index | names, made.layers).save(tmp_path / "boxes.html")
    with open_page(saved, viewport=WIDE) as (page, _):
        ready(page)
        missing = page.locator("#filters select").evaluate_all(
            """(all) => all.flatMap((box) => [...box.options].map((option) => {
                const text = document.createElement("span");
                text.style.font = getComputedStyle(box).font;
                text.textContent = option.textContent;
                document.body.append(text);
                return text.getBoundingClientRect().width + 26 - box.clientWidth;
            }))"""
        )
        assert len(missing) > 8
        assert max(missing) <= 0


@pytest.mark.slow
def test_the_keyboard_alone_reaches_everything(saved):
    active = "() => document.activeElement."
    with open_page(saved, viewport=WIDE) as (page, seen):
        ready(page)
        page.keyboard.press("Tab")
        assert page.evaluate(active + "textContent") == "Skip to the neuron"
        page.keyboard.press("Enter")
        assert page.evaluate(active + "tagName") == "MAIN"
        # The map is one stop, and after pressing a cell the keyboard is where it was.
        page.locator("#map button").first.focus()
        assert page.locator("#map button[tabindex='0']").count() == 1
        for key in ("Down", "Down", "Right", "Right", "Left", "Up", "Down"):
            page.keyboard.press(f"Arrow{key}")
        assert page.evaluate(active + "title") == "layer 1, Chinese: 1"
        assert page.locator("#map button[tabindex='0']").count() == 1
        page.keyboard.press("Enter")
        assert page.inner_text("#status") == "1 of 5 neurons"
        page.wait_for_function("() => document.querySelector('h2').innerText.endsWith(' 40')")
        assert page.inner_text("h2") == "Layer 1, neuron 40"
        assert page.evaluate(active + "title") == "layer 1, Chinese: 1"
        page.keyboard.press("Enter")
        assert page.inner_text("#status") == "5 neurons"
        # So is the list.
        assert page.locator("#list a[tabindex='0']").count() == 1
        names = page.locator("#list a").evaluate_all("(all) => all.map((each) => each.dataset.id)")
        page.click(f'[data-id="{names[0]}"]')
        page.keyboard.press("ArrowDown")
        page.wait_for_selector(f'html[data-shows="{names[1]}"]', state="attached")
        assert page.evaluate(active + "dataset.id") == names[1]
        layer, neuron = re.findall(r"\d+", names[1])
        assert (
            page.inner_text("#announcement") == f"Layer {layer}, neuron {neuron}"
        )  # for screen readers
        assert seen.errors == []


@pytest.mark.slow
def test_light_text_can_be_read_on_the_strongest_heat(saved):
    for scheme in ("light", "dark"):
        with open_page(f"{saved}#L1N40", viewport=WIDE, color_scheme=scheme) as (page, _):
            ready(page)
            paint = page.evaluate(
                """() => {
                    const peaks = [...document.querySelectorAll(".context .peak")];
                    const heat = (each) => Number(each.style.getPropertyValue("--heat-share"));
                    peaks.sort((a, b) => heat(b) - heat(a));
                    const style = (node) => getComputedStyle(node);
                    return [style(peaks[0]).color, style(peaks[0]).backgroundColor,
                            style(document.body.parentElement).backgroundColor];
                }"""
            )
            ink, heat, ground = ([float(n) for n in re.findall(r"[\d.]+", each)] for each in paint)
            share = heat[3] if len(heat) > 3 else 1.0
            behind = [share * a + (1 - share) * b for a, b in zip(heat, ground, strict=False)]
            one, other = sorted((luminance(ink), luminance(behind)))
            assert (other + 0.05) / (one + 0.05) > 4.5, (scheme, paint)


def luminance(color: list[float]) -> float:
    """By the definition of WCAG 2, of red, green and blue up to 255."""
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (each / 255 for each in color[:3])
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.slow
def test_search_by_number_by_text_and_by_keys(saved):
    with open_page(f"{saved}#L2N8", viewport=WIDE) as (page, seen):
        ready(page)
        assert page.inner_text("h2") == "Layer 2, neuron 8"
        page.keyboard.press("/")
        assert page.evaluate("() => document.activeElement.id") == "query"
        assert search(page, "L2N9") == "1 of 5 neurons"
        assert page.inner_text("h2") == "Layer 2, neuron 9"
        assert search(page, "l1") == "1 of 5 neurons"
        assert search(page, "nowhere to be found") == "0 of 5 neurons"
        assert search(page, "图书馆") != "0 of 5 neurons"
        assert "图" in "".join(page.locator(".hit").all_inner_texts())
        page.keyboard.press("Escape")
        page.wait_for_selector('html[data-searched=""]', state="attached")
        assert page.inner_text("#status") == "5 neurons"
        first = page.inner_text("h2")
        page.keyboard.press("ArrowRight")
        assert page.inner_text("h2") != first or page.inner_text(".turn").startswith("← 5")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("?")
        assert page.locator("dialog").is_visible()
        assert seen.errors == []


@pytest.mark.slow
def test_light_dark_and_narrow(saved):
    grounds = []
    for scheme in ("light", "dark"):
        with open_page(saved, color_scheme=scheme, viewport={"width": 390, "height": 800}) as (
            page,
            seen,
        ):
            ready(page)
            grounds.append(
                page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
            )
            wide = page.evaluate("() => document.documentElement.scrollWidth")
            assert wide <= 390  # nothing hangs over
            page.click("#unfold")
            assert page.locator("#list a").first.is_visible()
            assert seen.errors == []
    light, dark = (sum(map(int, re.findall(r"\d+", ground)[:3])) for ground in grounds)
    assert light > 600
    assert dark < 150


@pytest.mark.slow
def test_many_neurons_are_a_folder_that_opens_from_the_disk(made, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "ONE_FILE", 4)
    index = made.save(tmp_path / "neurons.html")
    assert index == tmp_path / "neurons" / "index.html"
    assert "too many for a notebook" in made._repr_html_()
    names = sorted(path.name for path in index.parent.iterdir())
    assert names == ["index.html", "layer-0.js", "layer-1.js", "layer-2.js"]
    with open_page(f"{index}#L1N40", viewport=WIDE) as (page, seen):
        ready(page)
        here = index.parent.as_uri()
        assert seen.requests == [index.as_uri(), f"{here}/layer-1.js"]
        page.click('[data-id="L2N9"]')
        page.wait_for_selector('html[data-shows="L2N9"]', state="attached")
        assert page.locator('.context p[lang="ar"]').count() > 0
        assert search(page, "图书馆") != "0 of 5 neurons"
        assert seen.errors == []
        assert all(each.startswith(f"{here}/") for each in seen.requests)


@pytest.mark.slow
def test_two_thousand_neurons_open_in_two_seconds(made, tmp_path):
    """Every layer a copy of one of the three, until there are 2000 neurons."""
    rows = made.index["neurons"]
    n_copies = 2000 // len(rows)
    layers, neurons = {}, []
    for layer, detail in made.layers.items():
        mine = [row for row in rows if row[0] == layer]
        many = {name: each * n_copies for name, each in detail.items() if name != "stretches"}
        many["neurons"] = list(range(len(many["neurons"])))
        layers[layer] = many | {"stretches": detail["stretches"] * 100}
        neurons += [[layer, n, *row[2:]] for n, row in enumerate(mine * n_copies)]
    index = made.index | {"neurons": neurons, "effects": None}
    saved = NeuronPage("many", index, layers).save(tmp_path / "many.html")
    with open_page(saved, viewport=WIDE) as (page, _):
        times = [ready(page)]
        page.reload()
        times.append(ready(page))
        assert page.inner_text("#status") == "2,000 neurons"
    assert min(times) < 2000


@pytest.mark.slow
def test_a_notebook_shows_the_same_page_in_a_frame(made, tmp_path):
    outer = tmp_path / "notebook.html"
    shown = made._repr_html_()
    assert 'sandbox="allow-scripts"' in shown
    outer.write_text(f"<!doctype html><h1>Notebook</h1>{shown}", encoding="utf-8")
    with open_page(outer) as (page, seen):
        frame = page.frame_locator("iframe")
        frame.locator('[data-id="L2N9"]').click()
        frame.locator('html[data-shows="L2N9"]').wait_for(state="attached")
        assert frame.locator("h2").inner_text() == "Layer 2, neuron 9"
        assert seen.errors == []


def test_the_policy_lets_nothing_in(made):
    text = made.html()
    found = re.search('Content-Security-Policy" content="([^"]*)"', text)
    assert found is not None
    policy = dict(part.strip().split(" ", 1) for part in html.unescape(found[1]).split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    for source in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/=]{44}'", policy[source])
    assert EVIL not in text
    assert EVIL in json.dumps(unpacked(text, "layer-1"))


# ---------------------------------------------------------------- interp page


@pytest.mark.slow
def test_the_command_writes_the_page_of_a_run(run, capsys):
    Page(run).run()
    said = capsys.readouterr().out
    assert said.endswith(f"neurons are on the page. Open it in a browser: {run / 'neurons.html'}\n")
    assert said.splitlines()[1].startswith("5 neurons")
    index = unpacked((run / "neurons.html").read_text(encoding="utf-8"), "index")
    assert index["selections"] == ["LAPE"]  # the method, as the file says
    other = run / "neurons-by-hand.json"
    other.write_bytes((run / "neurons.json").read_bytes())
    Page(run, selections=(run, other)).run()
    index = unpacked((run / "neurons.html").read_text(encoding="utf-8"), "index")
    assert index["selections"] == ["LAPE", "by-hand"]


def test_the_command_says_what_is_missing(model, run, parts, tmp_path):
    with pytest.raises(ValueError, match=r"the same name \(LAPE, LAPE\)"):
        Page(run, selections=(run, run)).run()
    bare = tmp_path / "bare"
    bare.mkdir()
    parts[0].save(bare / "firing.safetensors")
    with pytest.raises(ValueError, match=r"kept no contexts: .* `interp collect --contexts 8`"):
        Page(bare).run()
    (bare / "contexts.safetensors").write_bytes((run / "contexts.safetensors").read_bytes())
    with pytest.raises(FileNotFoundError, match="Make it with: interp find"):
        Page(bare).run()
