"""Pieces are deleted once the results hold all that is in them, and a run goes on without them."""

import shutil
from pathlib import Path

import pytest
import torch

from interp import cli
from interp.counting.collect import collect
from interp.counting.keep import Keep
from interp.counting.run import Run
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.text.reading import read_sentences
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, blocks, made_up

KEEP = Keep(moments=True, contexts=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NeuronModel:
    return load(tiny_models.build("qwen2", tmp_path_factory.mktemp("tidying")))


@pytest.fixture
def run(model: NeuronModel, tmp_path: Path) -> Run:
    return collect(model, blocks(model), tmp_path / "run", keep=KEEP, progress=False)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def test_tidying_deletes_pieces_alone_and_says_how_much(run):
    assert run.folder is not None
    before = files(run.folder)
    size = sum(path.stat().st_size for path in (run.folder / "pieces").iterdir())
    assert run.tidy() == size > 0
    assert not (run.folder / "pieces").exists()
    assert files(run.folder) == before
    assert run.tidy() == 0


def test_a_tidied_run_is_finished_and_read_as_before(run, model):
    fired, mean = run.firing.fired.clone(), run.moments.gate_mean.clone()
    run.tidy()
    again = Run.open(run.folder)
    assert torch.equal(again.firing.fired, fired)
    assert torch.equal(again.moments.gate_mean, mean)
    assert again.contexts.n == 2
    assert not again.status().missing
    assert len(again.verify().done) == 5 * len(LANGUAGES)
    assert again.merge() is again


def test_the_same_call_on_a_tidied_run_reads_nothing(run, model, monkeypatch):
    run.tidy()
    before = files(run.folder)

    def never(*_: object) -> None:
        raise AssertionError("a piece was read again")

    monkeypatch.setattr("interp.counting.collect.observe", never)
    for part in (None, (1, 2), (2, 2)):
        collect(model, blocks(model), run.folder, keep=KEEP, part=part, progress=False)
    assert files(run.folder) == before
    with pytest.raises(ValueError, match="started with another"):
        collect(model, blocks(model), run.folder, progress=False)


def test_a_process_that_is_late_takes_no_tidied_piece_for_missing(run, model, monkeypatch):
    reading = []

    def tidied_meanwhile(folder: Path) -> bool:
        reading.append(folder)
        return len(reading) > 1  # not yet at the start, but before the first piece

    run.tidy()
    monkeypatch.setattr("interp.counting.collect.is_tidied", tidied_meanwhile)
    collect(model, blocks(model), run.folder, keep=KEEP, progress=False)
    assert len(reading) > 1
    assert not (run.folder / "pieces").exists()


@pytest.mark.slow
def test_a_tidied_run_that_lost_a_result_is_read_again(run, model):
    before = files(run.folder)
    run.tidy()
    (run.folder / "moments.safetensors").unlink()
    assert len(Run.open(run.folder).status().missing) == 5 * len(LANGUAGES)
    collect(model, blocks(model), run.folder, keep=KEEP, progress=False)
    assert files(run.folder) == before


def test_nothing_is_deleted_if_a_result_is_not_what_the_pieces_say(run, monkeypatch):
    def spoiled(self: Run) -> Run:
        path = run.folder / "moments.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
        return self

    monkeypatch.setattr(Run, "merge", spoiled)
    with pytest.raises(ValueError, match=r"moments\.safetensors"):
        run.tidy()
    assert len(list((run.folder / "pieces").iterdir())) == 5 * len(LANGUAGES)


@pytest.mark.slow
def test_an_unfinished_run_and_one_with_sentence_means_are_refused(model, tmp_path):
    part = collect(model, blocks(model), tmp_path / "part", part=(1, 2), progress=False)
    with pytest.raises(ValueError, match="the first missing one"):
        part.tidy()
    sentences = read_sentences(made_up(), LANGUAGES, model, n_shards=2, hygiene="off")
    keep = Keep(sentence_means=("pre",))
    means = collect(model, sentences, tmp_path / "means", keep=keep, progress=False)
    with pytest.raises(ValueError, match="in its pieces alone"):
        means.tidy()
    assert means.sentence_means.kinds == ("pre",)


def test_killed_between_two_deletions_the_rest_is_no_harm(run):
    pieces = sorted((run.folder / "pieces").iterdir())
    kept = run.folder.parent / "kept"
    shutil.copytree(run.folder / "pieces", kept)
    run.tidy()
    (run.folder / "pieces").mkdir()
    shutil.copy(kept / pieces[0].name, pieces[0])
    assert not run.status().missing
    assert run.verify().bad == {}
    assert run.firing.n_shards == 5
    assert run.tidy() == (kept / pieces[0].name).stat().st_size  # and the next one deletes it
    assert not (run.folder / "pieces").exists()


@pytest.mark.slow
def test_the_command_tidies_unless_told_to_keep(tmp_path, capsys):
    tiny_models.build("qwen2", tmp_path / "model")
    (tmp_path / "text").mkdir()
    for code, lines in made_up().items():
        (tmp_path / "text" / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
    arguments = ["collect", str(tmp_path / "model"), "--text", str(tmp_path / "text")]
    arguments += ["--block-length", "16", "--n-shards", "4", "--hygiene", "off"]
    kept, tidied = tmp_path / "kept", tmp_path / "tidied"
    cli.main([*arguments, "--out", str(kept), "--keep-pieces"])
    assert "deleted" not in capsys.readouterr().out
    cli.main([*arguments, "--out", str(tidied)])
    assert "MB); --keep-pieces keeps them." in capsys.readouterr().out
    assert not (tidied / "pieces").exists()
    assert files(kept) == files(tidied)
    cli.main(["tidy", str(kept), str(tidied)])
    said = capsys.readouterr().out
    assert re_free(said, kept) > 0
    assert re_free(said, tidied) == 0
    cli.main([*arguments, "--out", str(tidied)])
    cli.main(["status", str(tidied)])
    assert "12 of 12 pieces are done" in capsys.readouterr().out


def re_free(said: str, folder: Path) -> float:
    (line,) = [line for line in said.splitlines() if line.startswith(f"{folder}:")]
    return float(line.split(": ")[1].split(" MB")[0])
