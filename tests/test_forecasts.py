"""What a long command will take is said before it begins, and half of it once half is done."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import interp
from interp import cli
from interp.commands import common, forecasts
from interp.counting.keep import Keep
from interp.counting.run import Run
from interp.counting.sentence_means import SentenceMeans
from interp.evaluations import judging
from interp.evaluations.steering import natural_texts, text_for_push
from interp.models.beginning import tokens_of_beginning
from interp.models.doctor import doctor
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.results import bars
from interp.runs.forecasts import Forecast, forecast
from interp.selections.neuron_selection import NeuronSelection
from interp.text.reading import read_corpora
from interp.text.tokens import by_length
from tests import tiny_models
from tests.campaigns.kills import LANGUAGES, made_up

KNOBS = ("--block-length", "16", "--n-shards", "4", "--hygiene", "off")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with moments and a selection, its model and text, and a task."""
    folder = tmp_path_factory.mktemp("forecasts")
    tiny_models.build("qwen2", folder / "model")
    (folder / "text").mkdir()
    (folder / "task").mkdir()
    for code, lines in made_up().items():
        (folder / "text" / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
        row = {"endings": ["a", "b"], "answer": 0}
        rows = [json.dumps(row | {"id": name, "text": f"der Hund {name}"}) for name in "abc"]
        (folder / "task" / f"{code}.jsonl").write_text("\n".join(rows))
    reading = ["--model", str(folder / "model"), "--text", str(folder / "text"), *KNOBS]
    cli.main(["collect", *reading, "--moments", "--keep-pieces", "--out", str(folder / "run")])
    cli.main(["find", str(folder / "run"), "--fraction", "0.1", "--busy-quantile", "0.5"])
    return folder


def slow(n_tokens: int, seconds: float) -> int:
    time.sleep(seconds)
    return n_tokens


def test_a_forecast_is_passes_by_tokens_by_the_time_of_the_trial(tmp_path):
    whole = forecast(3, 1000, lambda: slow(100, 0.05))
    assert (whole.passes, whole.tokens, whole.left) == (3, 1000, 1.0)
    assert whole.seconds == pytest.approx(3 * 1000 * 0.05 / 100, rel=0.2)
    (tmp_path / "pieces").mkdir()
    for name in "abc":
        (tmp_path / "pieces" / f"{name}.safetensors").touch()
    rest = forecast(3, 1000, lambda: slow(100, 0.05), folder=tmp_path, pieces=4)
    assert rest.left == 0.25
    assert rest.seconds == pytest.approx(whole.seconds / 4, rel=0.2)
    done = forecast(3, 1000, lambda: slow(100, 9), folder=tmp_path, pieces=3)
    assert done.seconds == 0.0  # nothing is tried where nothing is left


@pytest.mark.parametrize("first", [0.5, pytest.param(1.5, marks=pytest.mark.slow)])
def test_the_first_trial_of_a_model_does_not_count(first):
    """It brings the weights into memory: on Gemma 3 270M it was several times as slow."""
    times = iter([first, 0.01])
    assert forecast(1, 100, lambda: slow(100, next(times))).seconds < 0.1


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (89.0, "89 s"), (125.0, "2 minutes"), (3e3, "50 minutes"), (9e3, "2.5 hours")],
)
def test_a_time_is_as_exact_as_a_trial(seconds, said):
    assert f"about {said} on" in str(Forecast(passes=2, tokens=10, seconds=seconds))


def test_a_forecast_says_what_it_rests_on():
    told = forecast(1, 1000, lambda: slow(10, 0.2), disk=2_000_000)
    assert 0.2 <= told.trial < 0.4  # the second of two
    rests = f"(from a trial of {told.trial:.1f} s; longer when it is busy); 2.0 MB on disk."
    assert str(told).endswith(f" on this machine {rests}")
    assert "trial" not in str(Forecast(passes=1, tokens=1, seconds=0.0))  # nothing is left
    assert "trial" not in str(Forecast(passes=1, tokens=1, trial=2.0))  # the work runs elsewhere


def dry(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    cli.main([*arguments, "--dry-run"])
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "Next: the same command without --dry-run"
    assert re.search(r"about \d+ s on this machine", said[-2])
    return said[-2]


@pytest.mark.slow
def test_a_dry_run_says_what_it_would_take_and_writes_nothing(base, tmp_path, capsys):
    run, out = str(base / "run"), ["--out", str(tmp_path / "out")]
    reading = ["--model", str(base / "model"), "--text", str(base / "text"), *KNOBS]
    tokens = sum(memory_tokens(base).values())
    assert f"1 pass over {tokens:,} tokens: about" in dry(["collect", *reading, *out], capsys)
    said = dry(["deactivate", run, "--n-draws", "2", *out], capsys)
    assert f"10 passes over {tokens:,} tokens, {10 * tokens:,} in all" in said  # 1 + (1 + 2) * 3
    task = str(base / "task")
    assert "7 passes over" in dry(
        ["evaluate", run, "--tasks", task, "--n-draws", "1", *out], capsys
    )
    settings = ["--to", "de", "en", "--n", "3", "--max-new-tokens", "5"]
    assert "9 passes over 15 tokens, 135 in all" in dry(["steer", run, *settings, *out], capsys)
    assert "1 pass over" in dry(["share", task, run, *out], capsys)
    assert "1 pass over" in dry(["attribute", task, run, "--steps", "2", *out], capsys)
    assert "1 pass over" in dry(["lens", run, "--prompts", task], capsys)
    few = ["--max-new-tokens", "5"]
    ask = ["ask", run, "--to", "de", "--asked-in", "en", *few]
    assert "5 passes over 100 tokens, 500 in all: about" in dry([*ask, *out], capsys)
    said = dry(["write", run, "Hund", "--off", "de", "--n", "2", *few], capsys)
    assert "2 passes over 10 tokens, 20 in all: about" in said
    model = load(base / "model")
    pushed = text_for_push(model, str(base / "text"), LANGUAGES, "auto")
    said = dry(["vector", run, "--language", "de", *out], capsys)
    assert f"1 pass over {sum(pushed.tokens().values()):,} tokens: about" in said
    (tmp_path / "prompts.txt").write_text("der\nund\ndie\nein\n")
    lock = ["lock", str(tmp_path / "prompts.txt"), run, "--language", "de", "--most", "3", *few]
    said = dry([*lock, "--text", str(base / "text"), "--tasks", task, *out], capsys)
    assert "7 passes over 10 tokens, 70 in all: at most about" in said  # 1, 2, 3 neurons; 4 more
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_is_left_of_a_training_is_what_was_not_saved(base, tmp_path, capsys):
    train = ["train", str(base / "run"), "--language", "de", "--rows", "2", "--block-length", "16"]
    whole = [*train, "--steps", "4", "--out", str(tmp_path / "out")]
    assert "4 passes over 32 tokens, 128 in all: about" in dry(whole, capsys)
    assert not (tmp_path / "out").exists()
    cli.main(whole)
    shutil.rmtree(tmp_path / "out" / "adapter")
    assert "4 passes over 32 tokens, 0 of 128 left" in dry(whole, capsys)


@pytest.mark.slow
def test_a_dry_run_counts_selections_and_rows_with_contexts(base, tmp_path, capsys):
    run = str(base / "run")
    before = sorted(path.name for path in (base / "run").iterdir())
    assert "21 passes over 480 neurons, 10,080 in all" in dry(["find", run], capsys)  # 1 + 4 + 16
    # Halves of eight splits, twice; 6 settings, 3 labels less and none, each without every shard.
    assert "72 passes over 480 neurons" in dry(["stability", run], capsys)
    with pytest.raises(SystemExit):
        cli.main(["find", run, "--method", "lave", "--dry-run"])
    assert "selects once, in seconds: leave --dry-run out" in capsys.readouterr().err
    reading = ["--model", str(base / "model"), "--text", str(base / "text"), *KNOBS]
    kept = str(tmp_path / "kept")
    cli.main(["collect", *reading, "--contexts", "1", "--out", kept])
    cli.main(["find", kept, "--fraction", "0.1", "--busy-quantile", "0.5"])
    contexts = Run.open(kept).contexts
    union = NeuronSelection.from_json(tmp_path / "kept" / "neurons.json").union()
    rows = {row for row in contexts.row[:, union].flatten().tolist() if row >= 0}
    assert f"1 pass over {sum(int(contexts.length[row]) for row in rows):,} tokens" in dry(
        ["page", kept], capsys
    )
    assert not (tmp_path / "kept" / "neurons.html").exists()
    assert sorted(path.name for path in (base / "run").iterdir()) == before


@pytest.mark.slow
def test_scores_of_what_a_run_kept_are_tried_on_its_first_layer(
    base, tmp_path, monkeypatch, capsys
):
    reading = ["--model", str(base / "model"), "--text", str(base / "text"), *KNOBS]
    run, counted = str(tmp_path / "run"), str(tmp_path / "counted")
    kept = ["--sentences", "pre", "resid_post", "--block-length", "60"]
    cli.main(["collect", *reading, *kept, "--out", run])
    cli.main(["collect", *reading, "--histograms", "--out", counted])
    n_layers, d_mlp, width = tiny_models.N_LAYERS, tiny_models.D_MLP, tiny_models.D_MODEL
    read = []
    monkeypatch.setattr(SentenceMeans, "read", spied(SentenceMeans.read, read))
    for method in ("precision", "above-percentile"):
        n_units = n_layers * (d_mlp + width)
        assert f"1 pass over {n_units} units: about" in dry(
            ["find", run, "--method", method], capsys
        )
    assert {layer for _, layer in read} == {0}
    for method in ("dln", "divergence"):
        said = dry(["find", counted, "--method", method], capsys)
        assert f"1 pass over {n_layers * d_mlp} units: about" in said
    said = dry(["find", str(base / "run"), "--method", "removal"], capsys)
    assert f"1 pass over {n_layers * d_mlp} units: about" in said
    assert not list(tmp_path.glob("*/neurons*")) + list(tmp_path.glob("*/precision*"))


def spied(method: Callable[..., Any], seen: list[Any]) -> Callable[..., Any]:
    def call(self: Any, *arguments: Any) -> Any:
        seen.append(arguments)
        return method(self, *arguments)

    return call


@pytest.mark.slow
def test_patches_are_counted_by_part_source_layer_and_span(base, tmp_path, capsys):
    run, out = str(base / "run"), ["--out", str(tmp_path / "out.safetensors")]
    prompts = ["patch", "der Hund", "das Haus", run, "--answers", " rot", " lange"]
    n_layers, length = tiny_models.N_LAYERS, len(load(base / "model").encode("das Haus"))
    last = dry([*prompts, *out], capsys)
    assert f"{n_layers} passes over 1 tokens, {n_layers} in all: about" in last
    ends = sum(range(1, length + 1))
    several = ["--at", "tokens", "--noise", "--control", "das Haus", "--layers", "all"]
    alike = ["patch", "das Haus", *prompts[2:]]
    said = dry([*alike, *several, *out], capsys)
    assert f"3 passes over {ends} tokens, {3 * ends} in all: about" in said
    heads = ["--part", "heads", "--attention", "hooked", "--layers", "from"]
    n = 4 * n_layers
    assert f"{n} passes over 1 tokens, {n} in all" in dry([*prompts, *heads, *out], capsys)
    neurons = ["--part", "neurons", "--language", "de", *out]
    assert f"{4 * n_layers} passes over 1 tokens" in dry([*prompts, *neurons], capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_forecast_of_baking_says_what_the_checkpoint_takes(base, tmp_path, capsys):
    bake = ["bake", str(base / "run"), "--language", "de", "--out", str(tmp_path / "baked")]
    said = dry(bake, capsys)
    assert not list(tmp_path.iterdir())
    cli.main(bake)
    size = (tmp_path / "baked" / "model.safetensors").stat().st_size / 1e6
    (said_size,) = re.findall(r"; ([\d.]+) MB on disk", said)
    assert float(said_size) == pytest.approx(size, abs=0.1)


# ---------------------------------------------------------------- the doctor


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n_layers"),
    [("llama", 3), ("llama", 12), ("gpt2", 3), ("qwen3_moe", 3), ("deepseek_v3", 3)],
)
def test_what_a_doctor_reads_is_known_before(name, n_layers, tmp_path, monkeypatch):
    prefix, settings = (tiny_models.CONFIGS | tiny_models.MIXTURES)[name]
    if n_layers != tiny_models.N_LAYERS:
        deeper = {**settings, "num_hidden_layers": n_layers}
        monkeypatch.setitem(tiny_models.CONFIGS, name, (prefix, deeper))
    model = load(tiny_models.build(name, tmp_path))
    assert model.n_layers == n_layers
    counted = []
    monkeypatch.setattr(bars.drawn, "update", lambda bar, n: counted.append((bar.total, n)))
    assert doctor(model).ok
    (total,) = {total for total, _ in counted}
    assert total == forecasts.of_doctor(model).tokens
    beginning = tokens_of_beginning(model)  # more than all checks together, and exact
    checked = sum(n for _, n in counted) - beginning
    mixed = name in tiny_models.MIXTURES
    assert checked == pytest.approx(total - beginning, rel=0.25 if mixed else 0.12)
    assert not model.bridge.embed._forward_pre_hooks


def test_a_doctor_says_what_it_takes_and_a_broken_model_is_its_to_find(base, monkeypatch, capsys):
    said = dry(["doctor", str(base / "model")], capsys)
    assert "1 pass over" in said
    monkeypatch.setattr(NeuronModel, "logits", lambda *_, **__: 1 / 0)
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", str(base / "model")])
    assert stop.value.code == 1
    assert "cannot be checked: ZeroDivisionError" in capsys.readouterr().out


def memory_tokens(base: Path) -> dict[str, int]:
    return json.loads((base / "run" / "run.json").read_text())["tokens"]


def test_disk_is_that_of_the_finished_run(base):
    model = load(base / "model")
    reading = {"block_length": 16, "n_shards": 4, "hygiene": "off"}
    corpora = read_corpora(str(base / "text"), LANGUAGES, model, **reading)
    keep = Keep(moments=True)
    disk = forecasts.of_counting(model, corpora, keep, 4096, base / "new").disk
    real = sum(path.stat().st_size for path in (base / "run").glob("**/*.safetensors"))
    assert disk == pytest.approx(real, rel=0.1)


@pytest.mark.slow
def test_what_is_done_is_not_forecast_again(base, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out"), "--n-draws", "1"]
    whole = dry(["deactivate", str(base / "run"), *out], capsys)
    assert "left" not in whole
    cli.main(["deactivate", str(base / "run"), *out])
    pieces = sorted((tmp_path / "out" / "pieces").iterdir())
    for path in pieces[: len(pieces) // 2]:
        path.unlink()
    total = 7 * sum(memory_tokens(base).values())
    assert f"{total // 2:,} of {total:,} left" in dry(
        ["deactivate", str(base / "run"), *out], capsys
    )


@pytest.mark.slow
def test_nothing_is_left_of_a_run_whose_pieces_are_merged_and_deleted(base, tmp_path, capsys):
    reading = ["--model", str(base / "model"), "--text", str(base / "text"), *KNOBS]
    line = ["collect", *reading, "--out", str(tmp_path / "run")]
    assert "left" not in dry(line, capsys)
    cli.main(line)
    assert not list((tmp_path / "run" / "pieces").glob("*"))
    assert re.search(r", 0 of [\d,]+ left: about 1 s on this machine\.", dry(line, capsys))


def test_only_long_work_is_announced_and_very_long_work_says_how_to_make_it_shorter(capsys):
    for seconds, n_lines in ((9.0, 0), (11.0, 1), (601.0, 2)):
        told = Forecast(passes=1, tokens=1, seconds=seconds)
        assert common.OnRay().goes_ahead(lambda told=told: told, "fewer --tokens")
        said = capsys.readouterr().out.splitlines()
        assert len(said) == n_lines
    assert said[0].endswith(" on this machine. The progress bar corrects this.")
    assert said[1].startswith("To make it shorter: fewer --tokens.")


@pytest.mark.slow
@pytest.mark.parametrize("faster", [True, False])
@pytest.mark.parametrize("asked", [[], ["--dtype", "float32"]])
def test_where_bfloat16_is_faster_it_is_said(base, tmp_path, faster, asked, monkeypatch, capsys):
    monkeypatch.setattr("interp.models.load.is_faster_in_bfloat16", lambda dtype, device: faster)
    reading = ["--model", str(base / "model"), "--text", str(base / "text"), *KNOBS]
    cli.main(["collect", *reading, *asked, "--out", str(tmp_path / "out"), "--dry-run"])
    line = next(line for line in capsys.readouterr().out.splitlines() if "--dtype changes" in line)
    assert line.endswith("three times as fast on this CPU") is (faster and not asked)


@pytest.mark.slow
def test_tokens_that_are_no_whole_blocks_are_said(base, tmp_path, capsys):
    reading = ["--model", str(base / "model"), "--text", str(base / "text"), *KNOBS]
    cli.main(["collect", *reading, "--tokens", "150", "--out", str(tmp_path / "a")])
    said = capsys.readouterr().out
    assert "At most 128 tokens per label are read, not 150: 4 shards of 2 blocks of 16." in said
    cli.main(["collect", *reading, "--tokens", "128", "--out", str(tmp_path / "b")])
    assert "not 128" not in capsys.readouterr().out
    cli.main(["plan", "babel", "--tokens", "15000"])
    assert (
        "10,240 tokens per label, not 15,000, are 20 shards of 2 whole" in capsys.readouterr().out
    )


# ---------------------------------------------------------------- steering


@pytest.mark.slow
def test_natural_text_is_of_the_labels_asked_for_and_resumes_batch_by_batch(base, tmp_path, capsys):
    out = tmp_path / "steer"
    arguments = ["steer", str(base / "run"), "--to", "de", "--n", "2", "--max-new-tokens", "4"]
    arguments += ["--natural", "50", "--out", str(out)]
    cli.main(arguments)
    guards = out / "natural" / "guards"
    assert [path.name for path in guards.iterdir() if path.is_dir()] == ["de"]
    pushed = {path.stem for path in (out / "natural" / "pieces").iterdir()}
    assert pushed == {f"residual-{code}" for code in LANGUAGES}
    before = {path: path.stat().st_mtime_ns for path in out.rglob("pieces/*")}
    first = (out / "rates.csv").read_bytes()
    lost = [out / "natural" / "pieces" / "residual-en.safetensors"]
    lost += [next((guards / "de" / "pieces").iterdir())]
    for path in lost:
        path.unlink()
    cli.main(arguments)
    assert (out / "rates.csv").read_bytes() == first
    made_again = {path for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert made_again == set(lost)


@pytest.mark.slow
def test_what_is_left_of_natural_text_is_forecast_after_a_stop(base, tmp_path, monkeypatch, capsys):
    """A token takes a second here, so that a forecast is a number of tokens."""
    monkeypatch.setattr(interp.runs.forecasts, "_timed", lambda trial: (1.0, 1))
    monkeypatch.setattr(judging, "by_length", lambda lengths, _: by_length(lengths, 100))
    out, n_tokens = tmp_path / "steer", 8
    steer = ["steer", str(base / "run"), "--to", "de", "en", "--n", "2", "--max-new-tokens", "8"]
    steer += ["--out", str(out)]
    model, text = load(base / "model"), str(base / "text")
    natural = natural_texts(model, text, ("de", "en"), n_tokens)
    corpora = text_for_push(model, text, LANGUAGES, "auto")
    left = 9 * 2 * n_tokens  # written under nine conditions
    left += 2 * 9 * 2 * n_tokens  # and judged, as they are and shuffled
    pushed = sum(corpora.tokens().values())

    def forecast_now() -> float:
        return forecasts.of_steering(model, corpora, 9, 2, n_tokens, out, natural).seconds

    assert forecast_now() == left + pushed + 2 * n_tokens * sum(map(len, natural.values()))

    judged = []

    def stopped(path: Path, rows: list[list[int]], model: NeuronModel) -> None:
        """Germans are judged; English is stopped in its third batch."""
        if path.parts[-3] == "en" and len(list(path.parent.glob("*.safetensors"))) == 2:
            raise KeyboardInterrupt
        judged.append(len(rows))
        original(path, rows, model)

    original = judging._judge
    monkeypatch.setattr(judging, "_judge", stopped)
    with pytest.raises(SystemExit) as stop:
        cli.main(steer)
    assert stop.value.code == 130
    monkeypatch.setattr(judging, "_judge", original)
    read = sum(judged)
    assert 2 * len(natural["de"]) < read < 2 * sum(map(len, natural.values()))
    unread = 2 * sum(map(len, natural.values())) - read
    assert forecast_now() == left + pushed + n_tokens * unread
    for path in (out / "natural").rglob("*.safetensors"):
        assert path.parent.name == "pieces"
    cli.main(steer)
    assert forecast_now() == 0.0


def test_a_number_of_natural_lines_is_a_number_of_lines(base):
    model = load(base / "model")
    few = natural_texts(model, str(base / "text"), ("de",), 8, 10)
    many = natural_texts(model, str(base / "text"), ("de",), 8, 40)
    assert 0 < len(few["de"]) < len(many["de"])
    assert list(few) == ["de"]
