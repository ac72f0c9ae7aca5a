"""The same sentences by language and by topic: texts, numbers and claims, and a whole run."""

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import interp
from experiments import compare_labels as study
from experiments.compare_labels import LANGUAGES, TOPICS
from experiments.runner import stated
from interp.evaluations import PerplexityMatrix
from interp.inference.intervals import Estimate
from interp.inference.statements import judged


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    topics = ["sports", "science/technology", "sports", "travel"] * 5
    rows = "".join(f"{number}\ttrain\t{topic}\n" for number, topic in enumerate(topics))
    (tmp_path / "meta.tsv").write_text(f"index_id\tsplit\tcategory\n{rows}")
    for code in ("en", "de"):
        lines = [f"{code} sentence {number}, {topic}" for number, topic in enumerate(topics)]
        (tmp_path / f"{code}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_same_sentences_are_labelled_by_language_and_by_topic(folder: Path):
    found = study.labelled(str(folder), ["en", "de"], seed=0)
    for first, second in found.values():
        everything = [text for half in (first, second) for texts in half.values() for text in texts]
        assert len(set(everything)) == len(everything) == 40
        numbers = [
            {text.split()[2] for texts in half.values() for text in texts}
            for half in (first, second)
        ]
        assert not numbers[0] & numbers[1]  # translations are in one half
    assert list(found[LANGUAGES][0]) == ["en", "de"]
    first, _ = found[TOPICS]
    assert list(first) == ["science and technology", "sports", "travel"]
    assert all(text.endswith(", travel") for text in first["travel"])
    assert {text[:2] for text in first["travel"]} == {"en", "de"}
    assert study.labelled(str(folder), ["en", "de"], seed=1) != found


def test_babel_has_three_topics():
    topics = study.topics_of("babel")
    assert {topic: topics.count(topic) for topic in topics} == dict.fromkeys(
        ("home", "world", "life"), 200
    )


def test_text_that_is_not_parallel_or_has_no_topics_is_refused(folder: Path, tmp_path: Path):
    (folder / "de.txt").write_text("one line\n")
    with pytest.raises(ValueError, match=r"de has 1 sentences in .*, but 20 have a topic: a line"):
        study.labelled(str(folder), ["en", "de"], seed=0)
    (folder / "meta.tsv").write_text("index_id\tsplit\n0\ttrain\n")
    with pytest.raises(ValueError, match="has the columns index_id, split: the topic"):
        study.topics_of(str(folder))
    with pytest.raises(FileNotFoundError, match=r"meta\.tsv is missing: it has a row for"):
        study.topics_of(str(tmp_path / "elsewhere"))


def selection(mask: list[list[int]]) -> interp.NeuronSelection:
    chosen = torch.zeros(len(mask), 1, 10, dtype=torch.bool)
    for row, neurons in enumerate(mask):
        chosen[row, 0, neurons] = True
    return interp.NeuronSelection(chosen, tuple("abc"[: len(mask)]))


def test_the_share_that_is_in_another_set_is_of_the_label_s_own_neurons():
    one = selection([[0, 1, 2, 3], [4], []])
    other = selection([[0, 9], [3]]).union()
    assert study.also_in(one, other).tolist() == pytest.approx([0.5, 0.0, math.nan], nan_ok=True)


def test_the_neurons_of_two_halves_agree_as_far_as_the_shards_do():
    fired = torch.full((4, 2, 1, 400), 5)
    fired[:, 0, 0, :5] = 60  # the same in every shard
    fired[:, 1, 0, 5:10] = 60
    stats = interp.FiringStats(fired, torch.full((4, 2), 100), ("a", "b"))
    found, chance = study.again(stats, 10 / 400, torch.Generator().manual_seed(0))
    assert found.tolist() == [1.0, 1.0]
    # Five of 400, twice: k in common with hypergeometric probability, Jaccard k / (10 - k).
    ways = [math.comb(5, k) * math.comb(395, 5 - k) for k in range(6)]
    expected = sum(n * k / (10 - k) for k, n in enumerate(ways)) / math.comb(400, 5)
    assert chance.tolist() == pytest.approx([expected] * 2)
    for shard in range(4):  # other neurons in every shard
        fired[shard, 0, 0] = 5
        fired[shard, 0, 0, 20 + 10 * shard : 25 + 10 * shard] = 60
    changing = interp.FiringStats(fired, torch.full((4, 2), 100), ("a", "b"))
    found, _ = study.again(changing, 10 / 400, torch.Generator().manual_seed(0))
    assert found[0] < 0.2
    assert found[1] > 0.3


def test_claims_set_topics_beside_their_controls_and_beside_languages():
    rows = {
        "labels": [LANGUAGES, LANGUAGES, TOPICS, TOPICS],
        "own_minus_others": [1.0, 2.0, 0.1, 0.3],
        "alike_minus_others": [0.0, 0.0, 0.05, 0.05],
        "again": [0.8, 1.0, 0.4, 0.6],
        "again_by_chance": [0.01] * 4,
        "entropy": [0.2, 0.4, 0.8, 0.9],
        "also_languages": [1.0, 1.0, 0.0, 0.1],
    }
    found = study.measures(pd.DataFrame(rows))
    expected = {
        "topics-own": (0.2, 0.05),
        "topics-less": (0.2, 1.5),
        "topics-again": (0.5, 0.01),
        "topics-less-again": (0.5, 0.9),
        "topics-blurred": (0.85, 0.3),
        "topics-apart": (0.05, math.nan),
    }
    for name, numbers in expected.items():
        measured = found[name]
        assert measured is not None
        assert isinstance(measured.value, Estimate)
        control = measured.control
        bar = control.value.item() if isinstance(control, Estimate) else control
        assert (measured.value.value.item(), bar) == pytest.approx(numbers, nan_ok=True), name
    assert len(judged(stated("compare_labels"), found, "a model")) == len(expected)
    one_topic = study.measures(pd.DataFrame(rows).iloc[:3])
    assert set(one_topic.values()) == {None}


@pytest.mark.slow
def test_the_table_is_that_of_the_matrices(tmp_path: Path):
    config = study.experiment.presets["tiny"][1]
    small = replace(config.study, tokens=1280, held_out_tokens=256, n_shards=2, block_length=64)
    study.experiment.run(replace(config, study=small, out=tmp_path))
    table = pd.read_csv(tmp_path / "labels.csv").set_index(["labels", "label"])
    for labels in (LANGUAGES, TOPICS):
        matrix = PerplexityMatrix.load(tmp_path / labels / "matrix.safetensors")
        rows = table.loc[labels]
        assert rows["neurons"].tolist() == list(matrix.neurons)
        rise = matrix.increase.value
        assert rows["own"].tolist() == pytest.approx(rise.diagonal().tolist())
        others = (rise.sum(dim=1) - rise.diagonal()) / (len(rise) - 1)
        assert rows["others"].tolist() == pytest.approx(others.tolist())
        assert (rows["own"] - rows["others"]).tolist() == pytest.approx(
            rows["own_minus_others"].tolist()
        )
        stats = interp.Run.open(tmp_path / labels / "statistics").firing
        chosen = interp.select_by_entropy(stats, config.fraction)
        assert rows["neurons"].tolist() == list(chosen.counts().values())
    assert (table.loc[LANGUAGES, "own"] > 0.01).all()  # the effect is there to lose
    assert list(table.loc[TOPICS].index) == ["home", "life", "world"]
