"""A report's findings: their numbers by hand, what they leave out, and the first screen."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch

from interp import plots
from interp.commands.report import Report, what_is_next
from interp.evaluations.losses import Losses
from interp.evaluations.perplexity import PerplexityMatrix
from interp.inference.intervals import Estimate
from interp.reports.findings import (
    CERTAINTY,
    certainty_of,
    leading,
    of_kept,
    of_matrix,
    of_matrix_test,
    of_rate,
    of_rates,
    of_selection,
    of_tasks,
    own_and_others,
)
from interp.reports.report import Picture, Section, write_report
from interp.results.words import NOTHING
from interp.selections.neuron_selection import NeuronSelection
from tests.browser import open_page
from tests.test_report import Page, profile_table


def matrix_of(more: torch.Tensor, neurons: tuple[int, ...] = (5, 7)) -> PerplexityMatrix:
    """Two languages; `more` are nats per token added in each shard: [shard off read]."""
    tokens = torch.full((len(more), 2), 100)
    untouched = torch.full((len(more), 1, 2), 400.0, dtype=torch.float64)
    losses = Losses(
        nats=torch.cat([untouched, untouched + 100 * more], dim=1),
        tokens=tokens,
        bytes=3 * tokens,
        interventions=(NOTHING, "de", "fr"),
        languages=("de", "fr"),
    )
    random = untouched[:, None] + torch.full((len(more), 1, 2, 2), 1.0, dtype=torch.float64)
    return PerplexityMatrix(losses=losses, random=random, neurons=neurons, edit=("deactivate",) * 2)


CLEAR = torch.tensor([[[0.5, 0.01], [0.03, 0.3]], [[0.52, 0.01], [0.03, 0.28]]]).double()
NOISE = torch.tensor([[[1.2, 0.0], [0.0, 1.1]], [[-0.8, 0.1], [0.1, -0.7]]]).double()


def test_own_and_others_are_means_of_cells_without_sets_that_are_empty_or_unread():
    rows = [
        (NOTHING, "de", False, 0, 0.0, math.nan),
        (NOTHING, "fr", False, 0, 0.0, math.nan),
        ("de", "de", True, 5, 0.4, 0.02),
        ("de", "fr", False, 5, 0.1, 0.5),
        ("fr", "de", False, 0, 9.0, 9.0),  # no neurons: nothing was off
        ("fr", "fr", True, 0, 9.0, 9.0),
        ("poetry", "de", False, 3, 7.0, 7.0),  # not read: it has no own text
        ("poetry", "fr", False, 3, 7.0, 7.0),
    ]
    frame = pd.DataFrame(rows, columns=["off", "read", "own", "neurons", "increase", "random"])
    assert own_and_others(frame) == (0.4, 0.1, 0.02)
    assert own_and_others(frame[frame["off"] == "poetry"])[0] != 0.4
    assert of_matrix(frame[frame["off"].isin([NOTHING, "poetry"])]) == ""


def test_a_matrix_says_what_rises_and_whether_that_is_clear():
    matrix = matrix_of(CLEAR)
    assert of_matrix(matrix.to_frame(), matrix) == (
        "With a language's neurons off, the loss on that language rises by 0.4 nats per token on "
        "average, on the other languages by 0.02, and with as many random neurons off by 0.01."
    )
    assert "(+0.360 to +0.400)" not in of_matrix_test(matrix)
    assert "Own language against the others: +0.380 nats (" in of_matrix_test(matrix)
    noise = matrix_of(NOISE)
    unclear = "Whether it rises more on that language than on others, this text does not tell."
    assert of_matrix(noise.to_frame(), noise).endswith(unclear)
    assert unclear not in of_matrix(matrix.to_frame(), matrix)
    falling = matrix_of(-CLEAR)
    assert "the loss on that language changes by -0.4 nats" in of_matrix(falling.to_frame())
    alone = matrix_of(CLEAR, neurons=(5, 0))
    assert of_matrix_test(alone) == ""
    assert "rises by 0.51 nats" in of_matrix(alone.to_frame(), alone)


def test_rates_are_of_the_language_asked_for_beside_every_other_condition():
    rows = [
        ("neurons", "de", "de", 1.0, 0.5),
        ("neurons", "de", "fr", 0.0, 0.0),  # not what was asked for
        ("neurons", "fr", "fr", 0.5, 0.25),
        ("no edit", "de", "de", 0.1, 0.1),
        ("no edit", "fr", "fr", 0.3, 0.1),
    ]
    frame = pd.DataFrame(rows, columns=["condition", "to", "language", "rate", "good"])
    assert of_rates(frame) == (
        "Pushed by a language's neurons, 75 % of texts are in that language, and 38 % are good "
        "text too; without an edit 10 %."
    )
    assert of_rates(frame[frame["condition"] == "no edit"]) == ""


def test_a_selection_says_how_many_whose_and_where():
    mask = torch.zeros(2, 3, 50, dtype=torch.bool)
    mask[0, 2, :6] = True
    mask[1, 2, 4:6] = True  # shared: counted once among all
    mask[1, 0, :2] = True
    assert of_selection(NeuronSelection(mask, ("de", "ja"))) == (
        "8 of 150 neurons belong to 2 labels, most to German (6), fewest to Japanese (4); 75 % of "
        "them are in layer 2."
    )
    none = NeuronSelection(torch.zeros_like(mask), ("de", "ja"))
    assert of_selection(none) == "None of 150 neurons belongs to a language."
    assert of_selection(NeuronSelection(mask[:1], ("de",))).startswith(
        "6 of 150 neurons belong to German; 100 % of them"
    )


def test_what_is_kept_leaves_out_languages_without_neurons():
    assert "0.50 to 0.90 of a language's neurons are selected again, least of German" in of_kept(
        {"de": 0.5, "fr": 0.9, "ja": math.nan}
    )
    assert of_kept({"ja": math.nan}) == ""


def test_rates_of_firing_go_from_the_least_to_the_most():
    value = torch.tensor([0.2, 0.1, 0.3])
    rate, one = (Estimate(part, part, part, part, level=0.95) for part in (value, value[:1]))
    assert of_rate(rate, ["de", "fr", "ja"]) == (
        "A neuron fires on 10.0 % (French) to 30.0 % (Japanese) of tokens on average."
    )
    assert "on 20.0 % of tokens" in of_rate(one, ["de"])


def test_tasks_lose_accuracy_from_the_untouched_model_and_so_do_random_neurons():
    rows = [
        ("facts", "de", NOTHING, 0.8, 0.0, math.nan),
        ("facts", "fr", NOTHING, 0.6, 0.0, math.nan),
        ("facts", "de", "de", 0.5, 0.3, 0.78),
        ("facts", "fr", "de", 0.59, 0.01, 0.1),
        ("facts", "de", "fr", 0.79, 0.01, 0.1),
        ("facts", "fr", "fr", 0.5, 0.1, 0.58),
    ]
    frame = pd.DataFrame(rows, columns=["task", "language", "off", "accuracy", "drop", "random"])
    assert of_tasks(frame) == (
        "With a language's neurons off, accuracy on tasks in that language falls by 20 points on "
        "average, in other languages by 1, and with as many random neurons off by 2."
    )
    assert of_tasks(frame[frame["off"] == NOTHING]) == ""


# ---------------------------------------------------------------- the first screen


def drawn(title: str, finding: str) -> Section:
    picture = Picture(plots.layer_profile, f"Neurons of {title}.", profile_table())
    return Section(title, "Text.", (picture, picture), finding=finding, certainty=f"{title} sure.")


def test_the_most_telling_finding_leads_with_its_figure_and_no_other():
    plain = Section("plain", "No finding.")
    sections = [plain, drawn("counts", "Counts."), drawn("matrix", "`a`: It rises.\n\n`b`: Not.")]
    first, rest = leading(sections, ["matrix", "counts"])
    assert first is not None
    assert (first.title, first.finding, len(first.pictures)) == ("matrix", "`a`: It rises.", 1)
    assert rest[:2] == sections[:2]
    assert rest[2].finding == "`b`: Not."
    assert len(rest[2].pictures) == 1
    assert rest[2].text == "Text.\n\nFigure 1, at the top, shows this."
    assert leading([plain], ["plain"]) == (None, [plain])
    other, _ = leading(sections[:2], ["matrix"])
    assert other is not None
    assert other.title == "counts"


def test_what_sections_say_of_their_certainty_is_a_list_of_its_own():
    sure = certainty_of([drawn("a", ""), Section("b"), drawn("c", "")])
    assert sure is not None
    assert sure.title == CERTAINTY
    assert [line[:8] for line in sure.text.split("\n")] == ["- a sure", "- c sure", "- Interv"]
    assert certainty_of([Section("b")]) is None


def test_what_comes_next_is_what_the_run_lacks(tmp_path: Path):
    run = tmp_path / "my run"
    run.mkdir()
    record = {"wanted": {"moments": True, "contexts": 0}, "languages": ["de", "fr"], "n_shards": 2}
    (run / "run.json").write_text(json.dumps(record))
    (run / "firing.safetensors").write_bytes(b"")
    (first, last) = what_is_next([run]).split("\n")
    assert first.startswith(f"- `interp find '{run}'`: select the language neurons")
    assert last.startswith(f"- `interp figure '{run}'`: draw")
    (run / "neurons.json").write_text("{}")
    steps = what_is_next([tmp_path]).split("\n")  # the folder above it
    assert [step.split()[2] for step in steps] == ["deactivate", "write", "stability", "figure"]
    assert '"A PROMPT" --off de`: show what the model writes' in steps[1]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["laptop", "phone"])
def test_the_first_screen_shows_a_finding_and_its_figure(size: tuple[int, int], tmp_path: Path):
    matrix = matrix_of(CLEAR)
    caption = "Increase in loss, in nats per token, by neurons off and language read. " * 2
    picture = Picture(plots.perplexity_matrix, caption, matrix.to_frame())
    section = Section("Which suffers?", "Text.", (picture,), finding=of_matrix(matrix.to_frame()))
    first, rest = leading([section], [])
    path = write_report(tmp_path / "report.html", "Neurons", rest, date="2026-01-02", first=first)
    with open_page(path, viewport={"width": size[0], "height": size[1]}) as (page, seen):
        boxes = [page.locator(place).bounding_box() for place in (".first > p", ".first img")]
        assert page.evaluate("document.documentElement.scrollWidth") == size[0]
    words, image = boxes
    assert words["y"] + words["height"] <= image["y"]
    assert image["y"] + image["height"] <= size[1]
    assert image["height"] > 100
    assert not seen.errors


@pytest.mark.slow
def test_the_command_tells_a_story_in_order(tmp_path: Path):
    folder = tmp_path / "run"
    matrix = matrix_of(CLEAR)
    matrix.save(folder / "matrix.safetensors")
    matrix.to_frame().to_csv(folder / "matrix.csv", index=False)
    Report((folder,)).run()
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    told = [
        "With a language's neurons off, the loss on that language rises by 0.4",
        "A language's neurons off: which language suffers?",
        CERTAINTY,
        "Own language against the others: +0.380",
        "What to do next",
        "interp figure",
        "How this was made",
    ]
    body = page.text[page.text.index(told[0]) :]
    places = [body.rindex(words) for words in told]
    assert places == sorted(places)
    assert body.count(told[0]) == 1
    assert len(page.all("img")) == 1
