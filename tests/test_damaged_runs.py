"""What `interp status` says of a run with damaged files, and that doing it repairs the run."""

import json
import random
import shutil
from pathlib import Path

import pytest

from interp import cli
from interp.counting.collect import collect
from interp.counting.keep import Keep
from interp.counting.run import Run
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, blocks

KEEP = Keep(moments=True, contexts=2, histograms=True)
RESULTS = ("firing", "moments", "contexts", "histograms", "grid")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NeuronModel:
    return load(tiny_models.build("qwen2", tmp_path_factory.mktemp("damaged")))


@pytest.fixture(scope="module")
def whole(model: NeuronModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its pieces."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    collect(model, blocks(model), folder, keep=KEEP, progress=False)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the run: with its pieces, or tidied."""
    copy = Path(shutil.copytree(whole, tmp_path / "run"))
    if request.param == "tidied":
        Run.open(copy).tidy()
    return copy


either = pytest.mark.parametrize("folder", ["pieces", "tidied"], indirect=True)


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def repair(folder: Path, sentence: str, model: NeuronModel) -> None:
    """Do what the sentence says."""
    if "delete" in sentence:
        named = "run.json" if "delete run.json" in sentence else sentence.split(" ")[0]
        (folder / Path(named).name).unlink()
    if f"interp merge {folder}" in sentence:
        cli.main(["merge", str(folder)])
    elif "`interp collect`" in sentence:
        collect(model, blocks(model), folder, keep=KEEP, progress=False)


@either
def test_a_run_that_is_not_damaged_is_called_so(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert Run.open(folder).verify().damaged == {}
    cli.main(["status", str(folder)])
    said = capsys.readouterr().out
    assert "15 of 15 pieces are done" in said
    assert "damaged: " not in said


@either
@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_result_is_named_and_can_be_made_again(
    folder: Path, name: str, how: str, model: NeuronModel, capsys: pytest.CaptureFixture[str]
):
    path, before = folder / f"{name}.safetensors", contents(folder)
    if how == "truncated":
        truncate(path)
    else:
        flip(path, random.Random(name).randrange(path.stat().st_size))
    cli.main(["status", str(folder)])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("damaged: ")]
    (sentence,) = (line.removeprefix("damaged: ") for line in said)
    assert sentence.startswith(str(path))
    assert ("reads all text again" in sentence) == (
        not (folder / "pieces").exists() and name != "grid"
    )
    found = Run.open(folder).verify()
    assert found.damaged == {path.name: sentence}
    assert repr(found).endswith(f"0 bad; damaged: {path.name})")
    last = found.to_frame().iloc[-1]
    assert (last["state"], last["detail"]) == ("damaged", f"{path.name}: {sentence}")
    repair(folder, sentence, model)
    assert Run.open(folder).verify().damaged == {}
    assert {**before, **contents(folder)} == before
    assert before.keys() - contents(folder).keys() <= {"grid.safetensors"}


@either
def test_a_lost_result_is_named(folder: Path, model: NeuronModel):
    before, tidied = contents(folder), not (folder / "pieces").exists()
    (folder / "moments.safetensors").unlink()
    found = Run.open(folder).verify()
    assert len(found.missing) == 15 * tidied
    (sentence,) = found.damaged.values()
    assert f"{folder / 'moments.safetensors'} is missing: run " in sentence
    repair(folder, sentence, model)
    assert contents(folder) == before


@pytest.mark.parametrize("folder", ["pieces"], indirect=True)
def test_a_damaged_piece_is_bad_and_the_results_are_not(folder: Path):
    path = folder / "pieces" / "0003-de.safetensors"
    for damage in (truncate, lambda path: flip(path, path.stat().st_size // 2)):
        damage(path)
        found = Run.open(folder).verify()
        assert list(found.bad) == [(3, "de")]
        assert found.damaged == {}


@pytest.mark.parametrize("folder", ["tidied"], indirect=True)
@pytest.mark.parametrize("content", [b"", b'{"resul', b"\xff"])
def test_whatever_the_marker_of_a_tidied_run_holds_no_piece_is_missing(
    folder: Path, content: bytes
):
    (folder / "tidied.json").write_bytes(content)
    assert len(Run.open(folder).verify().done) == 5 * len(LANGUAGES)


def refused_or_named(folder: Path) -> str:
    try:
        return Run.open(folder).verify().damaged.get("run.json", "")
    except ValueError as error:
        return str(error)


@either
@pytest.mark.slow
def test_settings_of_which_a_bit_was_flipped_are_named(folder: Path, model: NeuronModel):
    path, rng = folder / "run.json", random.Random(0)
    original, noticed = path.read_bytes(), 0
    settings = json.loads(original)
    for position in rng.sample(range(len(original)), 60):
        flip(path, position, rng.randrange(8))
        try:
            changed = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            changed = {}
        same = {**settings, "versions": 0, "commit": 0} == {**changed, "versions": 0, "commit": 0}
        assert same or "run.json" in refused_or_named(folder), (position, path.read_bytes())
        noticed += not same
        path.write_bytes(original)
    assert noticed > 30
    truncate(path)
    assert f"{path} is damaged: delete it and run the same command" in refused_or_named(folder)
    path.unlink()
    collect(model, blocks(model), folder, keep=KEEP, progress=False)
    assert Run.open(folder).verify().damaged == {}


def test_shards_at_which_a_run_stopped_are_those_of_its_results(model: NeuronModel, tmp_path: Path):
    run = collect(
        model, blocks(model), tmp_path, progress=False, stop_when=lambda stats: stats.n_shards == 3
    )
    path = tmp_path / "stopped.json"
    assert json.loads(path.read_text())["shards"] == 3
    assert run.verify().damaged == {}
    for damage in (lambda: path.write_text('{"shards": 2}'), path.unlink):
        damage()
        (sentence,) = Run.open(tmp_path).verify().damaged.values()
        assert sentence.endswith(
            f'{path} is missing or says otherwise. Write {{"shards": 3}} into it.'
        )
        path.write_text('{"shards": 3}')
        assert Run.open(tmp_path).verify().damaged == {}
