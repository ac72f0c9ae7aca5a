"""The sentences of Kojima et al. (2024): what is read of them, and means beside the published."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers
from sklearn.metrics import average_precision_score

import interp
from experiments import detect_languages, sense
from experiments.runner import stated
from experiments.study import LANGUAGES, Study
from interp.inference.statements import judged
from tests import tiny_models

POSITIVE = {"de": ["Es ist spaet.", "Wer da?", "Es ist spaet."], "en": ["It is late.", "Who?"]}
NEGATIVE = {
    "de": ["Who is it?", "It is late.", "Go on!", "Go on!"],
    "en": ["Wer da?", "Nein.", "Und nun, was machen wir am Abend?"],
}
"""Twice the same sentence, and negatives that are positives of no language."""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "sense"
    folder.mkdir()
    for code in POSITIVE:
        sentences = {"positive": POSITIVE[code], "negative": NEGATIVE[code]}
        (folder / f"{code}.json").write_text(json.dumps({"concept": code, "sentences": sentences}))
    return folder


def by_plain_hooks(folder: Path, texts: list[str], layer: int) -> torch.Tensor:
    """The mean of each gate over a text, with every token that the tokenizer puts there."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    means: list[torch.Tensor] = []
    gate = model.model.layers[layer].mlp.gate_proj
    gate.register_forward_hook(lambda _, given, output: means.append(output[0].mean(dim=0)))
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt").input_ids
            assert ids[0, 0] == tiny_models.BOS
            model(ids)
    return torch.stack(means)


@pytest.mark.slow
def test_precision_is_that_of_the_authors_files_with_what_the_tokenizer_puts_first(
    files: Path, tmp_path: Path
):
    folder = tiny_models.build("llama", tmp_path / "model")
    model = interp.load(folder, dtype=torch.float32)
    precision, share = sense.measure(model, files, ("de", "en"))
    assert precision.languages == ("de", "en")
    assert precision.sentences.tolist() == [3, 2]
    assert share == pytest.approx((3 / 7 + 2 / 5) / 2)
    gates = precision.units("pre")
    for row, code in enumerate(("de", "en")):
        labels = [1] * len(POSITIVE[code]) + [0] * len(NEGATIVE[code])
        for layer in range(model.n_layers):
            means = by_plain_hooks(folder, POSITIVE[code] + NEGATIVE[code], layer)
            expected = [average_precision_score(labels, unit) for unit in means.T.numpy()]
            found = precision.average_precision[row, layer, gates]
            # Units of equal rank in one computation may differ by rounding in the other.
            assert (found - torch.tensor(expected, dtype=torch.float64)).abs().lt(
                1e-9
            ).double().mean() > 0.95
            medians = means[: len(POSITIVE[code])].quantile(0.5, dim=0)
            assert torch.allclose(precision.percentile()[row, layer, gates], medians, atol=1e-4)


def test_longer_sentences_are_left_out(files: Path, tmp_path: Path, monkeypatch):
    model = interp.load(tiny_models.build("llama", tmp_path / "model"), dtype=torch.float32)
    n_tokens = len(model.encode("It is late."))
    # Of five, one is longer; and with the token before it this one is, if so many are allowed.
    for most, share in ((1 + n_tokens, 2 / 4), (n_tokens, 1 / 3)):
        monkeypatch.setattr(sense, "LONGEST", most)
        assert sense.measure(model, files, ("en",))[1] == pytest.approx(share)


def test_a_missing_file_is_named(files: Path, tmp_path: Path):
    model = interp.load(tiny_models.build("llama", tmp_path / "model"), dtype=torch.float32)
    with pytest.raises(FileNotFoundError, match=r"fr\.json is missing: give the folder"):
        sense.measure(model, files, ("de", "fr"))


def measured(model: str, more: float) -> pd.DataFrame:
    """What the study writes of a model whose means are the published ones, and a bit more: the last
    so much more, the others half of that."""
    table = pd.read_csv(sense.PUBLISHED)
    rows = table[table["model"] == model].melt(["model", "set"], var_name="language")
    units = rows["set"].map({"top": 1000, "bottom": 1000, "both": 2000})
    apart = [more / 2] * (len(rows) - 1) + [more]
    ours = rows.drop(columns="model").assign(units=units, precision=rows["value"] + apart)
    return pd.concat([ours, ours.assign(units=20, precision=0.0)])


def test_the_published_means_are_those_of_eight_models_and_both_is_the_mean_of_the_ends():
    table = pd.read_csv(sense.PUBLISHED).set_index(["model", "set"])
    assert len(table) == 8 * 3
    assert tuple(table.columns) == LANGUAGES
    for model in table.index.get_level_values("model").unique():
        ends = (table.loc[(model, "top")] + table.loc[(model, "bottom")]) / 2
        assert (table.loc[(model, "both")] - ends).abs().max() <= 1.01e-4
    assert table.to_numpy().min() >= 0.0886  # all positives last
    bars = {claim.name: claim.bar_for(0.0) for claim in stated("detect_languages")}
    top, bottom = (table.xs(end, level="set").to_numpy() for end in ("top", "bottom"))
    assert bars["precision-top"] == pytest.approx(top.min(), abs=5e-4)
    assert bars["precision-bottom"] == pytest.approx(bottom.max(), abs=5e-5)


@pytest.mark.parametrize(("more", "verdict"), [(0.0004, "holds"), (0.002, "does not hold")])
def test_means_are_compared_with_those_of_the_same_model_and_size(more: float, verdict: str):
    beside = sense.beside_published(measured("bloom-560m", more), "bigscience/bloom-560m")
    assert len(beside) == 18
    apart = sorted((beside["precision"] - beside["published"]).tolist())
    assert apart == pytest.approx([more / 2] * 17 + [more])
    score = torch.rand(2, 1, 8, generator=torch.Generator().manual_seed(0)).double()
    precision = interp.scores.Precision(
        average_precision=score,
        roc_area=score,
        percentiles=torch.zeros(1, 2, 1, 8),
        percents=(50.0,),
        sentences=torch.tensor([10, 10]),
        languages=("de", "ja"),
        sites=(("pre", 8),),
    )
    found = detect_languages.measures(precision, 2, 1 / 6, beside)
    claims = judged(stated("detect_languages"), found, "here", units="2", half="1")
    named = {claim.name: claim for claim in claims}
    assert named["precision-published"].verdict == verdict
    assert named["precision-published"].value == pytest.approx(more)
    assert named["precision-top"].control == pytest.approx(1 / 6)
    assert sense.beside_published(measured("bloom-560m", more), "babel").empty


def test_the_study_reads_the_authors_files_and_says_where_it_agrees(
    files: Path, tmp_path: Path, monkeypatch, capsys
):
    folder = tiny_models.build("llama", tmp_path / "bloom-560m")
    monkeypatch.setattr(sense, "UNITS", 20)
    study = Study(model=str(folder), languages=("de", "en"), out=tmp_path)
    config = detect_languages.Config(study=study, sense=files, sizes=(20,), out=tmp_path / "out")
    detect_languages.experiment.run(config)
    published = pd.read_csv(tmp_path / "out" / "published.csv")
    assert len(published) == 3 * 2
    means = pd.read_csv(tmp_path / "out" / "precision.csv").set_index(["set", "language"])
    row = published.iloc[0]
    assert row["precision"] == means.loc[(row["set"], row["language"]), "precision"]
    assert "beside the published" in capsys.readouterr().out
    claims = interp.inference.load_claims(tmp_path / "out" / "claims.json")
    (claim,) = (claim for claim in claims if claim.name == "precision-published")
    assert claim.verdict == "does not hold"  # other sentences, another model


def test_the_preset_of_the_paper_counts_the_first_token_too():
    _, config = detect_languages.experiment.presets["paper"]
    assert config.study.special_tokens
    assert not Study().special_tokens


def test_a_mean_over_a_sentence_includes_the_first_token_if_the_study_says_so(tmp_path: Path):
    folder = tiny_models.build("llama", tmp_path / "model")
    model = interp.load(folder, dtype=torch.float32)
    (tmp_path / "text").mkdir()
    for code, lines in {"de": POSITIVE["de"] + NEGATIVE["en"], "en": NEGATIVE["de"]}.items():
        (tmp_path / "text" / f"{code}.txt").write_text("\n".join(lines))
    text = {"text": str(tmp_path / "text"), "languages": ("de", "en"), "n_shards": 1}
    with_it, without = (
        Study(**text, special_tokens=count, out=tmp_path / str(count)).sentence_means(model)
        for count in (True, False)
    )
    assert not torch.allclose(with_it.read("pre", 0), without.read("pre", 0))
