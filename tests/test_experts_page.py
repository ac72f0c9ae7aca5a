"""The neuron page of a mixture: addresses, tokens of experts, what an expert's neurons promote."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from interp.cli import main
from interp.counting.collect import collect
from interp.counting.expert_tokens import LEAST_TOKENS
from interp.counting.keep import Keep
from interp.counting.run import Run
from interp.models.load import load
from interp.models.mixture_model import MixtureModel
from interp.models.units import Address
from interp.reports.neuron_page import NeuronPage, neuron_page, promoted_tokens
from interp.reports.neuronpedia import write_neuronpedia
from interp.reports.page_contexts import UNSEEN
from interp.selections.neuron_selection import NeuronSelection
from interp.text.reading import read_sentences
from tests import tiny_models
from tests.browser import open_page
from tests.campaigns.kills import LANGUAGES, made_up
from tests.expert_loops import recorded, routed_blocks
from tests.test_page import WIDE, ready, search

UNITS = ((1, 3, 5), (1, None, 4), (2, 0, 7), (0, None, 9))
"""Layer, expert and neuron of what is on the page."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """It has a dense layer, shared experts and routed ones."""
    return load(tiny_models.build("deepseek_v3", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def run(model: MixtureModel, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("run")
    text = read_sentences(made_up(60), LANGUAGES, model, n_shards=3, hygiene="off", bos="document")
    run = collect(model, text, out, keep=Keep(contexts=2), progress=False)
    of_language = [
        (n % 3, layer, model.layout.unit(layer, expert, neuron))
        for n, (layer, expert, neuron) in enumerate(UNITS)
    ]
    selection = NeuronSelection.from_triples(of_language, LANGUAGES, model.n_layers, model.d_mlp)
    selection.to_json(out / "neurons.json")
    return run


@pytest.fixture(scope="module")
def page(model: MixtureModel, run: Run) -> NeuronPage:
    assert run.folder is not None
    selection = NeuronSelection.from_json(run.folder / "neurons.json")
    return neuron_page(model, run.firing, {"LAPE": selection}, run.contexts, progress=False)


def test_rates_are_by_the_tokens_that_the_expert_got(
    model: MixtureModel, run: Run, page: NeuronPage
) -> None:
    stats, n_rates = run.firing, 0
    assert stats.experts is not None
    assert page.index["units"] == model.layout.sizes
    for row, seen in zip(page.index["neurons"], page.index["seen"], strict=True):
        layer, unit, rate = row[:3]
        address = model.layout.address(layer, unit)
        assert (layer, address.expert, address.neuron) in UNITS
        expected = stats.tokens.sum(0)
        if address.expert is not None:
            expected = stats.experts.routed[:, :, layer, address.expert].sum(0)
        assert seen == expected.tolist()
        if min(seen) < LEAST_TOKENS:
            assert rate == [None] * len(LANGUAGES)
        else:
            fired = stats.total[:, layer, unit].double() / expected
            assert rate == pytest.approx(fired.tolist(), rel=1e-4)
            n_rates += 1
    assert n_rates >= 2


def test_tokens_that_the_expert_does_not_get_are_unseen(
    model: MixtureModel, run: Run, page: NeuronPage
) -> None:
    contexts, n_unseen = run.contexts, 0
    for layer, detail in page.layers.items():
        for unit, by_language in zip(detail["neurons"], detail["contexts"], strict=True):
            address = model.layout.address(layer, unit)
            for language, shown in enumerate(by_language):
                for rank, (stretch, first, _, _, shades) in enumerate(shown):
                    assert len(detail["stretches"][stretch][3]) == len(shades) + first
                    row = int(contexts.row[language, layer, unit, rank])
                    ids = contexts.ids[row : row + 1, : int(contexts.length[row])].long()
                    gets = [
                        len(rows.token) if rows.expert is None
                        else int((rows.expert == address.expert).sum())
                        for rows, own, _ in recorded(model, ids, "pre")
                        if own == layer and (rows.expert is None) == (address.expert is None)
                    ]  # fmt: skip
                    # A letter may take several tokens, which have one shade.
                    assert len(shades) - shades.count(UNSEEN) <= gets[0]
                    assert (UNSEEN in shades) <= (address.expert is not None)
                    n_unseen += UNSEEN in shades
    assert n_unseen > 0


@pytest.mark.parametrize("name", ["deepseek_v3", "gpt_oss", "qwen3_moe", "llama4_text"])
def test_an_experts_neuron_promotes_by_its_experts_own_projection(
    name: str, tmp_path: Path
) -> None:
    """Against the model's own norm and unembedding; gpt-oss and Llama 4 store their weights the
    other way."""
    model: Any = load(tiny_models.build(name, tmp_path))
    layer, expert, neuron = 1, 2, 6
    unit = model.layout.unit(layer, expert, neuron)
    experts: Any = routed_blocks(model)[layer]
    stored = experts.down_proj.detach()
    other_way = name in ("gpt_oss", "llama4_text")
    write = stored[expert, neuron] if other_way else stored[expert, :, neuron]
    units = torch.tensor([unit, unit + 1])
    assert model.written(layer, units)[0].equal(write)
    if model.layout.layers[layer].dense:
        shared = model.parts[layer][0].module.down_proj.weight.detach()
        assert model.written(layer, torch.tensor([unit, 3]))[1].equal(shared[:, 3])
    up, down = promoted_tokens(model, layer, units, 5)
    direction = write / write.norm() * math.sqrt(model.d_model)
    hf = model.bridge.original_model
    with torch.no_grad():
        logits = hf.lm_head(hf.model.norm(direction[None])) - hf.lm_head(
            hf.model.norm(-direction[None])
        )
    order = logits[0].argsort(descending=True)
    assert up[0].equal(order[:5])
    assert down[0].equal(order.flip(0)[:5])


def test_weights_that_cannot_be_read_are_refused(model: MixtureModel) -> None:
    experts: Any = model.parts[1][1].module
    stored = experts.down_proj
    experts.down_proj = torch.nn.Parameter(stored.to(torch.uint8), requires_grad=False)
    try:
        with pytest.raises(ValueError, match=r"of layer 1 of .* are quantized or offloaded"):
            model.written(1, torch.tensor([model.layout.unit(1, 0, 0)]))
        assert model.written(1, torch.tensor([0])).shape == (1, model.d_model)  # a shared one
    finally:
        experts.down_proj = stored
    with pytest.raises(ValueError, match="Layer 1 has 144 neurons, so none is 150"):
        model.written(1, torch.tensor([150]))


@pytest.mark.slow
def test_the_page_of_a_mixture_is_read_in_a_browser(run: Run, tmp_path: Path) -> None:
    assert run.folder is not None
    out = tmp_path / "neurons.html"
    main(["page", str(run.folder), "--out", str(out)])
    with open_page(f"{out}#L1E3N5", viewport=WIDE) as (shown, seen):
        ready(shown)
        assert shown.inner_text("h2") == "Layer 1, expert 3, neuron 5"
        assert "Routed to expert 3" in shown.inner_text("main")
        assert "up to 4 experts" in shown.inner_text("#about")
        assert shown.locator(".context .unseen").count() > 0
        names = shown.locator("#list a > span:first-child").all_inner_texts()
        assert sorted(names) == ["L0N9", "L1 E3 N5", "L1N4", "L2 E0 N7"]
        assert search(shown, "l1 e3") == "1 of 4 neurons"
        assert search(shown, "L1") == "2 of 4 neurons"
        assert search(shown, "L1N4") == "1 of 4 neurons"
        assert shown.inner_text("h2") == "Layer 1, neuron 4"
        assert "Routed to" not in shown.inner_text("main")
        assert shown.locator(".context .unseen").count() == 0
        shown.keyboard.press("?")
        assert seen.errors == []
        assert len(seen.requests) == 1


@pytest.mark.slow
def test_the_figure_of_an_experts_neuron_has_the_rates_of_the_page(
    run: Run, page: NeuronPage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n_shown = 0
    for (layer, expert, neuron), row in zip(
        sorted(UNITS, key=lambda unit: (unit[0], -1 if unit[1] is None else unit[1])),
        page.index["neurons"],
        strict=True,
    ):
        name = Address(layer, expert, neuron).name
        main(["figure", str(run.folder), "--neuron", name, "--out", str(tmp_path)])
        table = pd.read_csv(tmp_path / f"neuron_rates-{name}.csv")
        assert ("expert" in table) == (expert is not None)
        assert table["rate"].isna().all() == (row[2][0] is None)
        if row[2][0] is not None:
            assert table["rate"].tolist() == pytest.approx(row[2], rel=1e-4)
            n_shown += 1
    assert n_shown >= 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["figure", str(run.folder), "--neuron", "L1E9N5", "--out", str(tmp_path)])
    assert "There is no layer 1, expert 9, neuron 5" in capsys.readouterr().err


def test_neuronpedia_has_no_place_for_experts(
    model: MixtureModel, run: Run, tmp_path: Path
) -> None:
    assert run.folder is not None
    selection = NeuronSelection.from_json(run.folder / "neurons.json")
    with pytest.raises(ValueError, match="is a mixture of experts, and this layout names"):
        write_neuronpedia(model, run.firing, selection, run.contexts, tmp_path, name="tiny")
    assert not list(tmp_path.iterdir())


def test_effects_are_read_by_address(model: MixtureModel, run: Run) -> None:
    assert run.folder is not None
    selection = NeuronSelection.from_json(run.folder / "neurons.json")
    table = pd.DataFrame(
        [(1, None, 4, "de", 0.5), (1, 3, 5, "en", 0.25)],
        columns=["layer", "expert", "neuron", "language", "value"],
    )
    shown = neuron_page(
        model, run.firing, {"LAPE": selection}, run.contexts, effects=table, progress=False
    )
    effects = dict(
        zip(
            ((row[0], row[1]) for row in shown.index["neurons"]),
            shown.index["effects"],
            strict=True,
        )
    )
    rows = list(run.firing.languages)
    assert effects[1, 4][rows.index("de")][0] == 0.5
    assert effects[1, model.layout.unit(1, 3, 5)][rows.index("en")][0] == 0.25
    assert sum(values is not None for values in effects.values()) == 2
    with pytest.raises(ValueError, match="The effects have no column expert"):
        neuron_page(
            model,
            run.firing,
            {"LAPE": selection},
            run.contexts,
            effects=table.drop(columns="expert"),
        )


def test_the_strongest_contexts_name_the_neuron(model: MixtureModel, run: Run) -> None:
    assert run.contexts.units == model.layout.layers
    for language, row in enumerate(run.contexts._cells().rows):
        address = Address.of(str(row[2]))
        assert row[1] == str(address.layer)
        unit = model.layout.unit(*address)
        strongest = run.contexts.gate[language, ..., 0]
        assert strongest[address.layer, unit] == strongest.max()
