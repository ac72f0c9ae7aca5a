"""Answers that leave their language are noticed, and neurons that were planted are found."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
from torch import Tensor

import interp
from interp.cli import main
from interp.evaluations import language_lock, writing
from interp.evaluations.confusion import Confusion, language_confusion, more_passes
from interp.evaluations.language_lock import (
    LOCKED,
    RANDOM,
    LanguageLock,
    LockSearch,
    _fewest,
    _Judge,
    lock_language,
)
from interp.interventions.baked_weights import Weights
from interp.interventions.edits import Change
from interp.models.neuron_model import NeuronModel
from interp.prompts.contributions import top_neurons
from interp.results.words import NOTHING
from interp.text.language_id import switch_point
from interp.text.lapses import first_lapse

GERMAN = "Der Zug nach Wien fährt heute erst am späten Abend ab"
ENGLISH = "because nobody has repaired the bridge over the river yet"
CHINESE = "今天的火车晚上才开。我们在站台等"


# ---------------------------------------------------------------- where a text leaves


def test_the_first_line_in_another_language_is_found():
    assert first_lapse(f"{GERMAN}.\n{GERMAN}.", "de") is None
    lapse = first_lapse(f"{GERMAN}.\n{ENGLISH}.\n{ENGLISH}.", "de")
    assert lapse is not None
    assert (lapse.kind, lapse.start, lapse.language) == ("line", len(GERMAN) + 2, "en")
    assert first_lapse("Yes.\nNo.", "de") is None, "too short to judge"
    with pytest.raises(ValueError, match="The detector cannot recognize 'poetry': give the tag"):
        first_lapse(GERMAN, "poetry")


def test_within_a_line_the_likeliest_split_is_taken():
    line = f"{GERMAN} {ENGLISH} {ENGLISH}"
    assert switch_point(line, "de", "en") == len(GERMAN)
    assert switch_point(ENGLISH, "de", "en") == 0
    lapse = first_lapse(line, "de")
    assert lapse is not None
    assert lapse.start == len(GERMAN)


def test_latin_words_are_lapses_where_the_language_is_written_otherwise():
    assert first_lapse(CHINESE, "zh") is None
    mixed = f"{CHINESE} platform {CHINESE}"
    lapse = first_lapse(mixed, "zh")
    assert lapse is not None
    assert (lapse.kind, mixed[lapse.start :][:9]) == ("word", " platform")
    assert first_lapse(mixed, "zh", prompt="What is a Platform?") is None
    assert first_lapse(mixed, "answers", tags={"answers": "zh"}) == lapse
    assert first_lapse(f"{CHINESE} ICE {CHINESE}", "zh") is None, "abbreviations are no words"


def test_rates_are_those_of_the_benchmark():
    texts = [CHINESE, f"{CHINESE} platform", ENGLISH, CHINESE]
    confusion = language_confusion(texts, "zh")
    assert (confusion.line_pass_rate.count, confusion.line_pass_rate.of) == (3, 4)
    assert (confusion.word_pass_rate.count, confusion.word_pass_rate.of) == (2, 3)
    assert confusion.left_at.tolist() == [-1, len(CHINESE), 0, -1]
    assert confusion.depth.isnan().tolist() == [True, False, False, True]
    assert language_confusion([GERMAN], "de").word_pass_rate.of == 0, "Latin letters in any case"
    assert language_confusion([CHINESE], "answers", tags={"answers": "zh"}).word_pass_rate.of == 1
    better = more_passes(language_confusion([CHINESE] * 4, "zh"), confusion)
    assert better.value == 0.5
    assert better.low < 0.5 < better.high
    with pytest.raises(ValueError, match="cannot be paired with 4"):
        more_passes(language_confusion([CHINESE], "zh"), confusion)


# ---------------------------------------------------------------- planted drift


class Planted(NamedTuple):
    """Babel with neurons that turn German into English."""

    folder: Path
    neurons: Tensor
    prompts: list[str]


LAYER, N_PLANTED = 2, 3


def mlp_inputs(model: NeuronModel, plain: torch.nn.Module, code: str) -> Tensor:
    """What the layer's MLP reads on text of a language: [token d_model]."""
    corpora = interp.read_corpora(
        "babel", [code], model, block_length=64, n_shards=2, tokens=2560, progress=False
    )
    seen: list[Tensor] = []
    gate = plain.get_submodule(f"model.layers.{LAYER}.mlp.gate_proj")
    handle = gate.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, 1)))
    with torch.no_grad():
        plain(input_ids=corpora.rows[code].ids.long())
    handle.remove()
    return torch.cat(seen)


def towards_english(model: NeuronModel) -> Tensor:
    """The mean of the residual stream after the layer in English minus that in German."""
    corpora = interp.read_corpora(
        "babel", ["en", "de"], model, block_length=64, n_shards=2, tokens=2560, progress=False
    )
    mean = interp.interventions.residual_means(model, corpora, progress=False).mean[:, LAYER]
    return (mean[0] - mean[1]).float()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("planted"), strength=1.5)


def plant(folder: Path, strength: float) -> Planted:
    """Neurons of one layer fire in German context and push the stream towards English.

    On German text they add `strength` times the difference of means, all together.
    """
    model = interp.load("babel", dtype=torch.float32)
    weights = Weights(model)
    weights.tensors = {name: tensor.clone() for name, tensor in weights.tensors.items()}
    plain = weights.runnable()
    german, english = (mlp_inputs(model, plain, code) for code in ("de", "en"))
    middle = (german.mean(dim=0) + english.mean(dim=0)) / 2
    direction = german.mean(dim=0) - english.mean(dim=0)
    direction -= middle * (direction @ middle) / (middle @ middle)
    direction *= 4 / (german @ direction).mean()
    mlp = plain.get_submodule(f"model.layers.{LAYER}.mlp")
    written = mlp.get_parameter("down_proj.weight").norm(dim=0)
    ids = written.argsort()[:N_PLANTED]
    noise = torch.randn(N_PLANTED, len(direction), generator=torch.Generator().manual_seed(0))
    rows = direction + 0.1 * direction.norm() * noise / noise.norm(dim=1, keepdim=True)
    with torch.no_grad():
        mlp.get_parameter("gate_proj.weight")[ids] = rows
        mlp.get_parameter("up_proj.weight")[ids] = rows
        active = torch.nn.functional.silu(german @ rows.T) * (german @ rows.T)
        column = strength * towards_english(model) / active.sum(dim=1).mean()
        mlp.get_parameter("down_proj.weight")[:, ids] = column[:, None]
    plain.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    neurons = torch.zeros(model.n_layers, model.d_mlp, dtype=torch.bool)
    neurons[LAYER, ids] = True
    documents = [document.text for document in interp.text.read_documents("babel", "de")]
    prompts = [" ".join(text.split()[:3]) for text in documents[::25]][:24]
    return Planted(folder, neurons, prompts)


@pytest.mark.campaign
def test_planted_drift_is_found_and_removed(planted: Planted):
    model = interp.load(planted.folder, dtype=torch.float32)
    text = interp.read_corpora(
        "babel", ["de", "en"], model, block_length=64, n_shards=5, tokens=1280, progress=False
    )
    tasks = [interp.read_task("babel/fact_completion", code) for code in ("de", "en")]
    tasks = [task.where(lambda item: "day_after" in item.id) for task in tasks]
    search = LockSearch(candidates=40, points=6)
    lock = lock_language(
        model,
        planted.prompts,
        "de",
        text=text,
        tasks=tasks,
        search=search,
        max_new_tokens=20,
        bos="document",
        progress=False,
    )
    lapses = int((~lock.confusion[NOTHING].passes).sum())
    assert lapses >= 6, "there was little to remove"
    found = top_neurons(lock.effect, N_PLANTED) & planted.neurons
    # Two of three are measured, see the log; all three are not needed to remove the drift.
    assert int(found.sum()) >= N_PLANTED - 1
    assert lock.removed >= 0.9
    assert lock.gain.low > 0
    assert int(lock.confusion[RANDOM].passes.sum()) <= len(planted.prompts) // 2 - lapses + 1
    assert int((lock.change.masks["post"] & ~planted.neurons).sum()) <= 1
    assert lock.losses is not None
    assert (lock.losses.increase.value[1] < 0.01).all()
    frame = lock.to_frame().set_index(["measure", "under"])
    assert frame.loc[("answers that stay", LOCKED), "difference"] == pytest.approx(
        lock.gain.value.item()
    )
    accuracy = frame[frame.index.get_level_values(0).str.startswith("accuracy")]
    assert len(accuracy) == 2
    assert (accuracy["difference"] >= -0.01).all()


@pytest.mark.slow
def test_the_command_writes_an_adapter_and_its_price_and_resumes(
    planted: Planted, tmp_path: Path, monkeypatch, capsys
):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(planted.prompts[:12]), encoding="utf-8")
    command = ["lock", str(file), str(planted.folder), "--language", "de", "--bos", "document"]
    command += ["--candidates", "20", "--most", "16", "--text", "babel", "--labels", "de"]
    command += ["--tokens", "2560", "--max-new-tokens"]
    written, asked = [], []
    monkeypatch.setattr(writing, "_write", noted(writing._write, written))
    save = language_lock._save
    monkeypatch.setattr(language_lock, "_save", noted(save, asked))
    main([*command, "20", "--out", str(tmp_path / "lock")])
    assert not (tmp_path / "lock" / "pieces").exists()
    whole, every, n_asked = contents(tmp_path / "lock"), len(written), len(asked)
    assert n_asked >= 4

    asked.clear()
    monkeypatch.setattr(language_lock, "_save", noted(save, asked, stop_at=n_asked))
    with pytest.raises(SystemExit) as stop:
        main([*command, "20", "--out", str(tmp_path / "cut")])
    assert stop.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("to resume.")
    main([*command, "20", "--out", str(tmp_path / "cut"), "--dry-run"])
    assert re.search(r"passes over 120 tokens, [\d,]+ of [\d,]+ left", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        main([*command, "21", "--out", str(tmp_path / "cut")])
    assert (
        "started with another --max-new-tokens (--max-new-tokens: was 20" in capsys.readouterr().err
    )
    written.clear()
    main([*command, "20", "--out", str(tmp_path / "cut")])
    assert len(written) == every - 1, "the searched answers were written again"
    assert len(asked) == n_asked + 1, "what-ifs were asked again"
    assert contents(tmp_path / "cut") == whole
    with pytest.raises(SystemExit):
        main([*command, "20", "--out", str(tmp_path / "cut")])
    assert "price.csv" in capsys.readouterr().err
    (tmp_path / "cut" / "price.csv").unlink()
    main([*command, "20", "--out", str(tmp_path / "cut")])
    said = capsys.readouterr().out
    assert "answers that stay" in said
    found = "No adapter is written" not in said
    assert (tmp_path / "lock" / "adapter" / "adapter_config.json").is_file() == found
    price = pd.read_csv(tmp_path / "lock" / "price.csv")
    assert list(price["under"]) == [LOCKED, LOCKED, RANDOM, RANDOM, LOCKED]
    assert len(pd.read_csv(tmp_path / "lock" / "random-neurons.csv")) == 6
    assert ("Not shown to help" in said) == (price["difference_low"].iloc[0] <= 0)


def noted(function: Any, calls: list[Path], stop_at: int = 0) -> Any:
    """The function, which notes the files that it writes; one of them is stopped by Ctrl-C."""

    def call(path: Path, *arguments: Any) -> None:
        calls.append(path)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        function(path, *arguments)

    return call


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("most", "n_useful", "sizes"),
    [(1, 9, [1]), (2, 9, [1, 2]), (3, 9, [1, 2, 3]), (4, 9, [1, 2, 4]), (128, 5, [1, 2, 4, 5])],
)
def test_numbers_of_neurons_double_up_to_the_most(most, n_useful, sizes):
    assert LockSearch(most=most).sizes(n_useful) == sizes


class Written(_Judge):
    """Answers that were written beforehand, one set for each number of neurons."""

    def answers(self, chosen: Any, under: Any, name: str) -> dict[str, Confusion]:
        left: Any = self.prompts
        return dict.fromkeys(under, language_confusion(left.pop(0), "de"))


def test_an_edit_that_removes_no_lapse_is_none():
    model = interp.load("babel")
    before, worse, better = ([GERMAN] * stay + [ENGLISH] * (3 - stay) for stay in (1, 0, 2))
    confusion, search = language_confusion(before, "de"), LockSearch(most=2)
    effect = torch.tensor([[0.1, 0.4, 0.3, -0.2]], dtype=torch.float64)

    def search_in(*written: list[str]) -> Any:
        judge = Written(model, list(written), "de", 8, "auto", None, None, False, Path())
        return _fewest(judge, [0, 1, 2], confusion, effect, search)

    def found(tried: dict[int, float]) -> bool:
        nothing = Change({"post": torch.zeros(1, 4, dtype=torch.bool)}, interp.deactivate)
        return LanguageLock(
            change=nothing, effect=effect, tried=tried, confusion={}, losses=None, answers=[]
        ).found

    change, tried = search_in(worse, before)
    assert tried == pytest.approx({0: 1 / 3, 1: 0, 2: 1 / 3})
    assert not found(tried)
    change, tried = search_in(better, worse)
    assert change.masks["post"].tolist() == [[False, True, False, False]]
    assert tried == pytest.approx({0: 1 / 3, 1: 2 / 3, 2: 0})
    assert found(tried)


def test_what_cannot_be_locked_is_named(planted: Planted):
    model = interp.load("babel", dtype=torch.float32)
    settings = {"max_new_tokens": 20, "bos": "document", "progress": False}
    with pytest.raises(ValueError, match=r"None of the 3 answers .* leaves de: give prompts"):
        lock_language(model, planted.prompts[:6], "de", **settings)
    with pytest.raises(ValueError, match="give three or more"):
        lock_language(model, planted.prompts[:2], "de", **settings)
    for wrong in ({"candidates": 0}, {"removes": 0.0}, {"removes": 1.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LockSearch(**wrong)
