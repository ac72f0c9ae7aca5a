"""The command: what it writes, what it says, and one clear sentence with exit code 2."""

import json
import re
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import interp
from interp import cli
from interp.commands.common import ModelChoice, check_found_in
from interp.commands.effects import Deactivate
from interp.commands.find import Find
from interp.commands.options import options_of
from interp.interventions.edits import deactivate, intervene
from interp.models.load import load
from interp.selections.neuron_selection import NeuronSelection
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, made_up

SETTINGS = [
    "--languages",
    *LANGUAGES,
    "--block-length",
    "16",
    "--n-shards",
    "4",
    "--hygiene",
    "off",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    tiny_models.build("qwen2", folder / "model")
    (folder / "text").mkdir()
    for code, lines in made_up().items():
        (folder / "text" / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def collect(place: Path, out: str, *more: str) -> None:
    cli.main(
        [
            *("collect", str(place / "model"), "--text", str(place / "text")),
            *("--out", str(place / out), *SETTINGS, *more),
        ]
    )


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence on standard error, after checking the exit code."""
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_from_text_to_selection_and_through_the_published_format(place, capsys):
    collect(place, "run")
    shown = capsys.readouterr().out
    assert "firing rate" in shown
    assert "German" in shown
    cli.main(["find", str(place / "run"), "--fraction", "0.1", "--busy-quantile", "0.5"])
    assert "From as much other text" in capsys.readouterr().out
    selection = NeuronSelection.from_json(place / "run" / "neurons.json")
    assert selection.languages == LANGUAGES
    assert int(selection.union().sum()) == 48  # a tenth of 3 x 160
    stored = json.loads((place / "run" / "neurons.json").read_text(encoding="utf-8"))
    assert stored["provenance"]["settings"]["fraction"] == 0.1
    assert stored["provenance"]["settings"]["run"]["n_shards"] == 4
    assert stored["provenance"]["settings"]["run"]["settings"]["block_length"] == 16

    cli.main(["export", str(place / "run" / "neurons.json"), "--out", str(place / "n.pth")])
    cli.main(
        [
            *("import", str(place / "n.pth"), "--languages", *LANGUAGES),
            *("--neurons", "160", "--out", str(place / "again.json")),
        ]
    )
    assert NeuronSelection.from_json(place / "again.json") == selection


@pytest.mark.slow
def test_parts_make_the_same_file_as_one_run(place, capsys):
    collect(place, "whole")
    collect(place, "parts", "--shard", "2/2")
    assert "missing" in capsys.readouterr().out
    cli.main(["status", str(place / "parts")])
    assert "6 of 12 pieces are done" in capsys.readouterr().out
    collect(place, "parts", "--shard", "1/2")
    cli.main(["merge", str(place / "parts")])
    whole, parts = (place / run / "firing.safetensors" for run in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.slow
def test_a_run_that_may_stop_early_says_where_it_did(place, capsys):
    collect(place, "early", "--until-stable", "0.01")
    assert (
        "Stable after 4 of 4 shards" in capsys.readouterr().out
        or not (place / "early" / "stopped.json").exists()
    )


def test_the_doctor_is_content_with_a_sound_model(place, capsys):
    cli.main(["doctor", str(place / "model")])
    assert "its hooks tell the truth" in capsys.readouterr().out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_each_command_fits_a_screen_and_names_every_option(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 79
    assert f"usage: interp {name}" in shown
    for option in options_of(cli.COMMANDS[name]):
        assert re.search(rf"^  {option.flag}\b", shown, re.MULTILINE)
        assert all(choice in shown for choice in option.choices)
    assert f"\n  interp {name}" in shown


def test_help_says_what_happens_without_an_option(capsys):
    with pytest.raises(SystemExit):
        cli.main(["collect", "--help"])
    shown = capsys.readouterr().out
    assert "packed without padding [256]" in shown
    assert "all of the text\n" in shown  # without a default there is nothing to add
    with pytest.raises(SystemExit):
        cli.main(["plan", "--help"])
    assert "[en de fr es zh ja]" in capsys.readouterr().out


def test_options_become_the_fields_of_the_command():
    given = ["folder", "--method", "lap", "--n", "5", "--fraction", "-0.5"]
    assert cli.chosen(["find", *given]) == Find(Path("folder"), "lap", n=5, fraction=-0.5)
    made = cli.chosen(["deactivate", "run", "--tokens", "7", "model", "--dtype", "float16"])
    assert made == Deactivate(Path("run"), ModelChoice("model", dtype="float16"), tokens=7)
    many = cli.chosen(["collect", "--languages", "de", "en", "--moments", "--ray"])
    assert (many.languages, many.moments, many.on.ray) == (("de", "en"), True, ())
    assert cli.chosen(["report", "a", "b"]).results == (Path("a"), Path("b"))
    assert cli.chosen(["report"]).results == ()
    texts = ["patch", "a", "b", "--answers", " x", "-1", "--texts", "a", "b"]
    assert cli.chosen(texts).answers == (" x", "-1")
    assert cli.chosen(texts).texts == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "usage: interp COMMAND"),
        (["colect"], "there is no command 'colect'; did you mean collect?"),
        (["--nonesuch"], "there is no command '--nonesuch'"),
        (["collect", "--langauges", "de"], "no place for --langauges; did you mean --languages?"),
        (["babel", "x"], "there is no place for x."),
        (["collect", "--languages", "en,de", "fr"], "takes labels with spaces between: en de fr."),
        (["collect", "a", "--model", "b"], "MODEL is 'a' and --model is 'b'; give it once."),
        (["find"], "required: RUN_FOLDER."),
        (["bake", "run"], "required: --language, --out."),
        (["collect", "--split", "half"], "invalid choice: 'half' (choose from"),
        (["collect", "--tokens", "1e3"], "--tokens: a whole number is expected, not '1e3'."),
        (["collect", "--tokens", "9" * 400], "999999999999... is too large a number"),
        (["find", "run", "--fraction", "half"], "--fraction: a number is expected, not 'half'."),
        (["find", "run", "--fraction"], "--fraction: expected one argument."),
        (["patch", "a", "b", "--answers", "x", "--texts", "y"], "--texts: expected 2 arguments."),
    ],
)
def test_what_is_wrong_with_options_is_said_in_one_sentence(
    arguments, told, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # in a folder with runs, `interp` lists them
    said = refused(arguments, capsys)
    assert told in said
    assert said.count("\n") == 1 or not arguments
    assert said.endswith(" --help\n") or not arguments


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("polyneuron ")


def test_the_package_runs_as_a_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["interp", "--version"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("interp", run_name="__main__")
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("polyneuron ")


def test_a_label_without_text_names_those_with_text(place, capsys):
    said = refused(
        ["collect", str(place / "model"), "--text", str(place / "text"), "--languages", "german"],
        capsys,
    )
    assert "holds no text in 'german'" in said
    assert "de.txt" in said
    assert said.count("\n") == 1


def test_a_language_without_text_is_named(place, capsys):
    said = refused(
        [
            *("collect", str(place / "model"), "--text", str(place / "text")),
            *("--languages", "de", "ja", "--n-shards", "4", "--block-length", "16"),
        ],
        capsys,
    )
    assert "ja.txt" in said


def test_too_few_documents_for_the_shards(place, capsys):
    said = refused(
        [
            *("collect", str(place / "model"), "--text", str(place / "text")),
            *("--languages", "de", "en", "--n-shards", "500", "--block-length", "16"),
        ],
        capsys,
    )
    assert "500" in said
    assert "shards" in said


def test_invalid_utf8_names_file_and_line(place, tmp_path, capsys):
    (tmp_path / "de.txt").write_bytes(b"gut\n" * 50 + b"schl\xfccht\n")
    said = refused(
        [
            *("collect", str(place / "model"), "--text", str(tmp_path), "--languages", "de"),
            *("--n-shards", "4", "--block-length", "16"),
        ],
        capsys,
    )
    assert "de.txt, line 51 is not UTF-8" in said


@pytest.mark.slow
def test_another_setting_than_the_folder_was_started_with(place, capsys):
    collect(place, "settled")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        collect(place, "settled", "--moments")
    assert stop.value.code == 2
    assert "started with another wanted" in capsys.readouterr().err


def test_a_missing_model_folder(capsys):
    assert "is not a folder" in refused(["doctor", "./nowhere"], capsys)


def test_a_missing_run_says_which_command_makes_one(tmp_path, capsys):
    assert "interp collect" in refused(["find", str(tmp_path)], capsys)


def test_a_selection_of_another_size_is_refused(place, tmp_path, capsys):
    torch.save([[torch.tensor([500])]], tmp_path / "n.pth")
    said = refused(
        ["import", str(tmp_path / "n.pth"), "--languages", "de", "--neurons", "160"], capsys
    )
    assert "500" in said
    assert "160" in said


def test_parts_are_written_as_a_fraction(place, capsys):
    with pytest.raises(SystemExit) as stop:
        collect(place, "bad", "--shard", "3")
    assert stop.value.code == 2
    assert "--shard is i/n" in capsys.readouterr().err


def test_ctrl_c_has_its_own_exit_code(place, capsys, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(interp, "collect", interrupted)
    with pytest.raises(SystemExit) as stop:
        collect(place, "interrupted")
    assert stop.value.code == 130
    assert "run the same command to resume" in capsys.readouterr().err
    monkeypatch.setattr(interp, "doctor", interrupted)
    with pytest.raises(SystemExit):
        cli.main(["doctor", str(place / "model")])
    said = capsys.readouterr().err
    assert said == "interp: interrupted. Run the same command to begin anew.\n"


def test_a_model_without_mlp_neurons_is_refused(tmp_path, capsys):
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=tiny_models.N_VOCAB, hidden_size=32, num_hidden_layers=2)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    tiny_models.tokenizer().save_pretrained(tmp_path)
    assert "cannot be read neuron by neuron" in refused(["doctor", str(tmp_path)], capsys)


def test_the_models_own_dtype_can_be_changed(place):
    choice = ModelChoice(model=str(place / "model"), dtype="bfloat16")
    assert choice.open().dtype == torch.bfloat16
    assert load(place / "model").dtype == torch.float32


@pytest.fixture(scope="module")
def found(place: Path) -> Path:
    """A finished run with moments and a selection."""
    collect(place, "effects", "--moments")
    cli.main(["find", str(place / "effects"), "--fraction", "0.1", "--busy-quantile", "0.5"])
    return place / "effects"


def reading(place: Path) -> list[str]:
    return [str(place / "model"), "--text", str(place / "text")]


@pytest.mark.slow
def test_deactivate_writes_the_matrix_and_shows_own_against_others(place, found, capsys):
    out = place / "deactivated"
    arguments = ["deactivate", str(found), *reading(place), "--out", str(out)]
    cli.main(
        [*arguments, "--block-length", "16", "--n-shards", "4", "--n-draws", "1", "--rate-matched"]
    )
    shown = capsys.readouterr().out
    assert "Own language against the others" in shown
    frame = pd.read_csv(out / "matrix.csv")
    assert set(frame["read"]) == set(LANGUAGES)
    assert frame.loc[frame["own"], "rate_matched"].notna().all()
    assert list(frame["off"]).count("nothing") == len(LANGUAGES)


@pytest.mark.slow
def test_steer_sets_every_baseline_beside_the_neurons(place, found, capsys):
    out = place / "steered"
    cli.main(
        [
            *("steer", str(found), *reading(place), "--to", LANGUAGES[0], "--out", str(out)),
            *("--n", "3", "--max-new-tokens", "6", "--others-off", "--rate-matched"),
        ]
    )
    shown = capsys.readouterr().out
    assert "median loss of natural text" in shown
    conditions = ["no edit", "neurons", "random neurons", "neurons that fire alike"]
    conditions += ["named in prompt", "residual stream"]
    assert list(dict.fromkeys(pd.read_csv(out / "rates.csv")["condition"])) == conditions
    texts = pd.read_csv(out / "texts.csv", keep_default_na=False)
    assert len(texts) == 3 * len(conditions)
    written = {name: tuple(rows["text"]) for name, rows in texts.groupby("condition")}
    assert written["neurons"] != written["no edit"]
    lines = shown.splitlines()
    for name in conditions:  # three lines below the name of a condition: its texts
        first = lines.index(f"to {LANGUAGES[0]}, {name}:") + 1
        assert all(re.match(r"  [a-z]{2,3} ", line) for line in lines[first : first + 3])


def test_bake_writes_a_checkpoint_whose_logits_are_those_of_the_edit(place, found, capsys):
    out = place / "baked"
    cli.main(
        [
            *("bake", str(found), str(place / "model"), "--language", LANGUAGES[0]),
            *("--out", str(out)),
        ]
    )
    assert "its logits equal the hooked model" in capsys.readouterr().out
    selection = NeuronSelection.from_json(found / "neurons.json")
    model, baked = load(place / "model"), load(out)
    ids = torch.randint(4, model.n_vocab, (1, 12), generator=torch.Generator().manual_seed(0))
    with intervene(model, selection[LANGUAGES[0]], deactivate):
        expected = model.logits(ids)
    assert torch.allclose(baked.logits(ids), expected, atol=1e-5)
    assert not torch.allclose(model.logits(ids), expected, atol=1e-3)
    again = ["bake", str(found), str(place / "model"), "--language", LANGUAGES[0]]
    assert "exists" in refused([*again, "--out", str(out)], capsys)


@pytest.mark.slow
def test_the_edits_of_steer_are_baked_where_there_is_a_bias(place, found, tmp_path, capsys):
    code, run = LANGUAGES[0], tmp_path / "run"
    arguments = ["--language", code, "--edit", "add", "--out", str(tmp_path / "none")]
    assert "for constants write a push as a control vector" in refused(
        ["bake", str(found), *arguments], capsys
    )
    llama = str(tiny_models.build("llama", tmp_path / "llama"))
    reading = ["--text", str(place / "text"), *SETTINGS, "--moments"]
    cli.main(["collect", llama, *reading, "--out", str(run)])
    cli.main(["find", str(run), "--fraction", "0.1", "--busy-quantile", "0.5"])
    model, chosen = load(llama), NeuronSelection.from_json(run / "neurons.json")[code]
    ids = torch.randint(4, model.n_vocab, (1, 12), generator=torch.Generator().manual_seed(0))
    for edit, strength in (("difference", 2.0), ("add", 0.5), ("replace", 1.0)):
        how = ["--language", code, "--edit", edit, "--strength", str(strength)]
        cli.main(["bake", str(run), *how, "--out", str(tmp_path / edit)])
        moments = interp.Run.open(run).moments
        towards = interp.selections.edit_towards(moments, code, edit, strength, "post")
        with intervene(model, chosen, towards):
            expected = model.logits(ids)
        assert torch.allclose(load(tmp_path / edit).logits(ids), expected, atol=1e-5)
        assert not torch.allclose(model.logits(ids), expected, atol=1e-4)


def test_effects_of_what_is_not_there_are_refused_in_a_sentence(place, found, tmp_path, capsys):
    assert "is not a run" in refused(["deactivate", str(tmp_path)], capsys)
    missing = refused(["deactivate", str(found / "neurons-lap.json")], capsys)
    assert f"Make it with: interp find {found}" in missing
    assert "--moments" in refused(["steer", str(copied(found, tmp_path)), *reading(place)], capsys)
    unknown = refused(["steer", str(found), *reading(place), "--to", "ja"], capsys)
    assert "not in this selection" in unknown
    assert "use the model it was made" in refused(["deactivate", str(found), "babel"], capsys)


@pytest.mark.slow
def test_a_label_without_neurons_is_left_out_and_cannot_be_asked_for(
    place, found, tmp_path, capsys
):
    selection, run = NeuronSelection.from_json(found / "neurons.json"), tmp_path / "run"
    shutil.copytree(found, run)
    with_neurons = LANGUAGES[0]
    kept = (
        selection.mask & torch.tensor([code == with_neurons for code in LANGUAGES])[:, None, None]
    )
    replace(selection, mask=kept).to_json(run / "neurons.json")
    little = [*reading(place), "--n", "2", "--natural", "20", "--max-new-tokens", "4"]
    empty = refused(["steer", str(run), *little, "--to", LANGUAGES[1]], capsys)
    assert f"no neurons for {LANGUAGES[1]}" in empty
    assert "--to" in empty
    cli.main(["steer", str(run), *little, "--out", str(tmp_path / "out")])
    shown = capsys.readouterr()
    assert "Left out" in shown.out + shown.err
    frame = pd.read_csv(tmp_path / "out" / "rates.csv")
    steered = {name for name in frame["condition"] if "neurons" in name}
    assert steered
    assert not any(code in name for name in steered for code in LANGUAGES[1:])
    replace(selection, mask=torch.zeros_like(kept)).to_json(run / "neurons.json")
    assert "so nothing can be changed" in refused(["steer", str(run), *little], capsys)


def copied(run: Path, folder: Path) -> Path:
    """A selection without the moments beside it."""
    path = folder / "neurons.json"
    path.write_bytes((run / "neurons.json").read_bytes())
    return path


def test_the_overview_has_a_line_for_each_command_and_fits_a_screen(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert left.value.code == 0
    assert all(sum(line.startswith(f"  {name} ") for line in lines) == 1 for name in cli.COMMANDS)
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 79


# ---------------------------------------------------------------- what strangers may type


@pytest.fixture(scope="module")
def odd(place: Path) -> Path:
    """Models, runs and files with something wrong about them."""
    folder = place / "odd"
    tiny_models.build("qwen2", folder / "other", seed=7)
    for name in ("shapes", "letters", "config", "nan", "lacking"):
        shutil.copytree(place / "model", folder / name)
    config = json.loads((folder / "shapes" / "config.json").read_text())
    (folder / "shapes" / "config.json").write_text(json.dumps(config | {"hidden_size": 128}))
    (folder / "letters" / "tokenizer.json").write_text("[]")
    (folder / "config" / "config.json").write_text("{oops")
    weights = load_file(folder / "nan" / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "nan" / "model.safetensors", metadata={"format": "pt"})
    weights.pop("model.layers.1.mlp.down_proj.weight")
    save_file(weights, folder / "lacking" / "model.safetensors", metadata={"format": "pt"})
    (folder / "empty").mkdir()
    (folder / "file").write_text("text")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "task").mkdir()
    for code in LANGUAGES:
        row = {"text": "der Hund", "endings": [" rot", " lange"], "answer": 0}
        lines = [json.dumps(row | {"id": name}) for name in "abc"]
        (folder / "task" / f"{code}.jsonl").write_text("\n".join(lines))
    return folder


READS = "--text {place}/text --languages de en fr --n-shards 4 --block-length 16 --hygiene off"
NEW = "--out {odd}/new"
WRONG = {
    "doctor {odd}/empty": "holds no config.json",
    "doctor {odd}/config": "config.json cannot be read",
    "doctor {odd}/shapes": "do not have the shapes in its config.json",
    "doctor {odd}/letters": "The tokenizer of",
    "doctor {odd}/lacking": "lacks 1 of the weights",
    "collect {odd}/nan " + READS + " " + NEW: "NaN or infinite activation",
    "doctor {place}/model --device tpu": "The device 'tpu' cannot be used here",
    "doctor {place}/model --device cuda:99": "The device 'cuda:99' cannot be used here",
    "collect {place}/model --num-cpus 4 " + READS: "have no effect without --ray",
    "collect {place}/model --tokens-per-batch 0 " + READS: "--tokens-per-batch is 0",
    "collect {place}/model " + READS + " --out {odd}/file": "is a file: give the name of a folder",
    "collect {place}/model " + READS + " --out {odd}/loop": "is not a folder, as it must be",
    "collect {place}/model --contexts 1000000000000000 "
    + READS
    + " "
    + NEW: "keep fewer statistics",
    "find {found} --stable 2": "--stable is 2.0",
    "find {found} --method entropy-less-peak --weight -1": "The weight of the reward is -1.0",
    "find {found} --out {odd}": "is a folder: give the name of a file with --out",
    "find {odd}/file": "interp collect",
    "deactivate {found} {odd}/other --text {place}/text": "(different weights)",
    "steer {found} {odd}/other --text {place}/text": "(different weights)",
    "bake {found} {odd}/other --language de " + NEW: "(different weights)",
    "bake {found} {place}/model --language de --strength 3 " + NEW: "--strength has no effect",
    "evaluate {found} {odd}/other --tasks {odd}/task " + NEW: "(different weights)",
    "evaluate {found} {place}/model --tasks {odd}/task {odd}/task": "each only once",
    "attribute {odd}/task {odd}/nan --languages de en " + NEW: "NaN or infinite attributions",
    "patch der die {odd}/nan --answers Hund": "gives NaN",
    "lens {place}/model --limit 0": "--limit is 0",
    "plan {place}/model --languages": "No label was given",
    "plan {place}/model --out {odd}": "is a folder: give the name of a file with --out",
    "import {mask} --languages de --neurons 0": "d_mlp is 0",
    "report {odd}/empty": "is not a run",
    "status {odd}/loop": "is not a run",
}
"""Command line → what the sentence about it says."""


@pytest.mark.slow
@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_input_ends_in_one_sentence(line, place, odd, found, capsys):
    mask = odd / "mask.pth"
    torch.save([[torch.tensor([1])]], mask)
    filled = line.format(place=place, odd=odd, found=found, mask=mask)
    said = [each for each in refused(filled.split(), capsys).splitlines() if "interp:" in each]
    assert len(said) == 1
    assert WRONG[line] in said[0]
    assert not (odd / "new").exists() or not list((odd / "new").glob("*.safetensors"))
    shutil.rmtree(odd / "new", ignore_errors=True)


def test_between_precisions_neurons_are_still_those_of_the_model(place, odd, found):
    check_found_in(found, load(place / "model", dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="different architecture"):
        check_found_in(found, load(tiny_models.build("llama", odd / "llama"), dtype=torch.bfloat16))


def test_a_selection_that_does_not_say_where_it_is_from_is_believed(odd, found, tmp_path):
    path = tmp_path / "neurons.json"
    NeuronSelection.from_json(found / "neurons.json").to_json(path)
    check_found_in(path, load(odd / "other"))
