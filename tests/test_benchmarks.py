"""Benchmarks run, keep what they measure, and every number in both READMEs comes from there."""

import importlib.util
import itertools
import json
import os
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import tyro

from benchmarks import (
    __main__,
    attribution,
    average_precision,
    collect,
    gpu,
    interventions,
    made_up,
    patching,
    perplexity,
    scaling,
    start,
    tables,
)
from benchmarks.markdown import (
    TIMES,
    between,
    day,
    listed,
    multiples,
    read_all,
    restated,
    rewritten,
    span,
)
from benchmarks.turns import (
    RESULTS,
    OnDevice,
    Record,
    SpeedOrMemory,
    apart,
    command_of,
    compare,
    kept,
    load,
    save,
    take_turns,
)
from tests.campaigns import faults

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def toy(module: Any, out: Path, **settings: Any) -> Record:
    """What a benchmark keeps of its smallest run."""
    module.main(SpeedOrMemory("toy", out, **settings))
    (path,) = out.glob("*.json")
    return load(path)


# ---------------------------------------------------------------- the tables


@pytest.mark.parametrize("path", tables.READMES, ids=["benchmarks", "top"])
def test_a_readme_says_what_was_measured(path: Path):
    text = path.read_text(encoding="utf-8")
    made = tables.made_anew(path, text, read_all())
    assert made == text, f"{path.name} is old: run python -m benchmarks.tables"


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        (tables.READMES[0], r"0\.98(?= to 1\.\d\d\))"),
        (tables.READMES[1], rf"\d+(?= {TIMES} faster \(numba\))"),
        (tables.READMES[1], r"(?<=Of )\d+(?=\s+injected\s+faults)"),
        (tables.READMES[1], r"(?<=within )\d+(?= % of \w+ measured runs)"),
    ],
)
def test_a_typed_number_is_put_right(path: Path, pattern: str):
    text = path.read_text(encoding="utf-8")
    typed = re.sub(pattern, "12345", text, count=1)
    assert typed != text
    assert tables.made_anew(path, typed, read_all()) == text


def test_no_measured_number_stands_outside_the_marks():
    text = tables.READMES[0].read_text(encoding="utf-8")
    for name in tables.BLOCKS:
        text = re.sub(rf"<!-- {name} -->.*<!-- /{name} -->", "", text, flags=re.DOTALL)
    assert re.findall(rf"\d+\.\d+|\d+ [{TIMES}%]|\d+ MiB|\d+ minutes", text) == []


def test_a_mark_that_is_missing_or_doubled_is_an_error():
    marked = "above\n<!-- a -->\nold\n<!-- /a -->\nbelow\n"
    assert rewritten(marked, {"a": "new"}) == marked.replace("old", "new")
    for text in ("nothing", marked * 2):
        with pytest.raises(ValueError, match="once, on lines of their own"):
            rewritten(text, {"a": "new"})


def test_a_sentence_that_changed_is_an_error():
    with pytest.raises(ValueError, match="together with the sentence"):
        restated("Of many faults", {r"(?<=Of )\d+": 3})


def test_what_was_measured_on_another_device_is_a_further_row():
    (record,) = (read_all()[name] for name in ("collect",))
    alone = multiples([record]).splitlines()
    both = multiples([record, replace(record, device="A GPU")]).splitlines()
    assert both[: len(alone)] == alone
    assert both[len(alone)].startswith("| bare Hugging Face body, A GPU | 1.00 |")
    book = {"collect": record, "collect-cuda": replace(record, device="A GPU")}
    assert tables.blocks(tables.READMES[0], book)["collect"].count("`python -m") == 2


def test_what_was_not_measured_names_its_command():
    made = tables.blocks(tables.READMES[0], {})
    assert made["gpu"] == "Not measured yet: `python -m benchmarks.gpu`."
    assert made["memory"] == "Not measured yet: `python -m benchmarks.collect --memory`."


def test_a_folder_that_differs_does_not_count_as_equal():
    row = {"injected": 7, "stopped": 2, "different": 1, "lost": 3, "twice": 0}
    assert tables.numbers(row) == ["7", "4", "2", "1", "3", "0"]


def test_growth_of_memory_is_told_beside_that_of_the_text():
    (record,) = (read_all()[name] for name in ("collect-memory",))
    rows = ({"tokens": 10, "mib": 100.0}, {"tokens": 20, "mib": 250.0})
    said = tables.growth([replace(record, rows=rows)])
    assert said.startswith("2 times the text take 2.5 times the memory beside model and text: 100")
    assert said.endswith("100 and 250 MiB at 10 and 20 tokens")


def test_large_models_have_their_tables():
    (record,) = (read_all()[name] for name in ("scaling-plan",))
    grown = {"varied": "languages", "value": 30, "seconds": 2.5, "mib": 99.6, "disk_mib": 7.25}
    book = {"scaling-plan": record, "scaling-sweep": replace(record, rows=(grown,))}
    made = tables.blocks(tables.READMES[0], book)
    assert "| 30 languages | 2.5 | 100 MiB | 7.2 MiB |" in made["sweep"]
    assert made["many shards"].endswith("`python -m benchmarks.scaling paper --n-shards 20`.")
    assert "Disk is right within 0.3 %." in made["plan"]


def test_whole_runs_of_scaling_are_kept_and_parts_are_not(tmp_path, monkeypatch):
    found = {"seconds": 9.0, "memory": 53.0, "disk": 2.0, "seconds of work": 7.0}
    monkeypatch.setattr(scaling, "started_together", lambda tasks: [dict(found) for _ in tasks])
    monkeypatch.setattr(scaling, "measure", lambda size, place: found)
    monkeypatch.setattr(scaling, "planned", lambda *_: SimpleNamespace(memory=scaling.MIB, disk=0))
    options = {"folder": tmp_path, "out": tmp_path / "results", "kept": tmp_path / "kept.json"}
    for part in ("paper", "sweep"):
        scaling.main(scaling.Config(part, only=(next(iter(parts(part))),), **options))
    scaling.main(scaling.Config("paper", n_layers=20, **options))
    assert not (tmp_path / "results").exists()
    for what in ("paper", "plan", "sweep"):
        scaling.main(scaling.Config(what, **options))
    scaling.main(scaling.Config("paper", n_shards=20, **options))
    book = {path.stem: load(path) for path in (tmp_path / "results").iterdir()}
    made = tables.blocks(tables.READMES[0], book)
    assert "| merge | 7.0 | 53 MiB |" in made["full size"]
    assert "`python -m benchmarks.scaling paper --n-shards 20`" in made["many shards"]
    assert made["sweep"].count("| 9 | 53 MiB | 2.0 MiB |") == sum(map(len, scaling.SWEEPS.values()))
    assert "| 1 MiB | 53 MiB | 0.02 |" in made["plan"]
    assert "Disk is right within 100.0 %" in made["plan"]


def parts(of: str) -> dict[str, Any]:
    """What can be asked for alone."""
    return {"paper": scaling.STEPS, "sweep": scaling.SWEEPS}[of]


def test_numbers_are_said_briefly():
    assert span([1.0, 0.991]) == "0.99 to 1.00"
    assert span([0.981, 0.979]) == "0.98"
    assert listed([304, 320, 1327]) == "304, 320 and 1,327"
    assert between({"median": 1.0, "least": 0.9, "most": 1.2}, "**") == "**1.00** (0.90 to 1.20)"
    assert day("2026-11") == "November 2026"
    assert day("2026-11-03") == "3 November 2026"


# ---------------------------------------------------------------- turns, and what is kept


def test_each_turn_is_divided_by_the_first_of_its_round():
    ticks = itertools.accumulate([0, 50, 0, 60, 0, 2, 0, 6, 0, 12, 0, 3])
    order = []
    turns = take_turns(
        {"bare": lambda: order.append("bare"), "ours": lambda: order.append("ours")},
        rounds=2,
        now=lambda: float(next(ticks)),
    )
    assert order == ["ours", "bare", "bare", "ours", "ours", "bare"]
    assert turns.seconds == {"bare": [2.0, 3.0], "ours": [6.0, 12.0]}  # the first round warms up
    assert turns.multiples() == {"bare": [1.0, 1.0], "ours": [3.0, 4.0]}


def test_without_a_warm_up_every_turn_counts():
    calls = []
    turns = take_turns({"bare": lambda: calls.append(1) or "done"}, 3, warm_up=False)
    assert len(calls) == len(turns.seconds["bare"]) == 3
    assert turns.values == {"bare": "done"}


def test_the_measure_is_one_by_definition():
    rows = compare("a case", {"bare": lambda: None, "ours": lambda: None}, rounds=3)
    assert rows[0] == {"case": "a case", "way": "bare", "median": 1.0, "least": 1.0, "most": 1.0}
    assert rows[1]["least"] <= rows[1]["median"] <= rows[1]["most"]


def test_apart_is_in_units_of_the_largest_value():
    assert apart(torch.tensor([4.0, -8.0]), torch.tensor([4.0, -6.0])) == 0.25


def test_what_is_kept_says_command_date_machine_and_neither_host_nor_folder(tmp_path: Path):
    with kept(
        "collect-memory", SpeedOrMemory("bench", tmp_path, memory=True), collect.Growth()
    ) as r:
        r.append({"tokens": 10, "mib": 1.23456789})
    path = tmp_path / "collect-memory.json"
    record = load(path)
    assert record.command == "python -m benchmarks.collect bench --memory"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record.date)
    assert re.match(r"\d+ cores? of \w+", record.machine)
    assert record.device == "CPU"
    assert record.rows == ({"tokens": 10, "mib": 1.235},)
    assert record.provenance["settings"]["neurons"] == 2048
    assert record.provenance["versions"]["torch"] == torch.__version__
    said = path.read_text(encoding="utf-8")
    assert socket.gethostname() not in said
    assert str(tmp_path) not in said
    save(record, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()


def test_a_run_that_fails_keeps_nothing(tmp_path: Path):
    with pytest.raises(KeyError), kept("collect", OnDevice("toy", tmp_path), collect.Growth()):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_toy_is_not_kept_beside_the_results():
    before = {path: path.read_bytes() for path in RESULTS.iterdir()}
    with kept("collect", OnDevice("toy"), collect.Growth()) as rows:
        rows.append({"tokens": 1})
    assert {path: path.read_bytes() for path in RESULTS.iterdir()} == before


def test_a_command_names_what_differs_from_the_usual():
    assert command_of("collect", SpeedOrMemory()) == "python -m benchmarks.collect"
    config = SpeedOrMemory("bench", Path("somewhere"), device="cuda")
    assert command_of("collect", config) == "python -m benchmarks.collect bench --device cuda"
    assert command_of("gpu", gpu.Config("toy", device="cpu", others=False)) == (
        "python -m benchmarks.gpu toy --device cpu --no-others"
    )


def test_kept_results_are_whole():
    for name, record in read_all().items():
        module = name.partition("-")[0]
        assert record.command.startswith(f"python -m benchmarks.{module}")
        assert record.rows
        assert record.provenance["versions"]["torch"]
        assert day(record.date)
        assert "/" not in record.command + record.machine


# ---------------------------------------------------------------- each benchmark, at toy size


def test_collect(tmp_path: Path):
    record = toy(collect, tmp_path)
    assert [row["way"] for row in record.rows][:3] == [
        collect.BARE,
        collect.COUNTS,
        collect.MOMENTS,
    ]
    assert record.rows[0]["median"] == 1
    assert collect.COUNTS in tables.blocks(tables.READMES[0], {"collect": record})["collect"]


def test_start(tmp_path: Path):
    record = toy(start, tmp_path)
    ways = ["import torch", "Python itself", "interp --help", "interp find --help"]
    assert [row["way"] for row in record.rows] == ways
    assert record.rows[0]["median"] == 1
    assert all(row["seconds"] > 0 for row in record.rows)
    assert record.command == "python -m benchmarks.start toy"
    made = tables.blocks(tables.READMES[0], {"start": record})
    assert "| **interp find --help** | **0." in made["asking"]


def test_interventions(tmp_path: Path):
    record = toy(interventions, tmp_path)
    assert {row["case"] for row in record.rows} == {
        "reading 2 x 32 tokens",
        "writing 2 x 4 tokens",
    }
    assert {"untouched", "deactivate", "full bridge, hooks by hand"} <= {
        row["way"] for row in record.rows
    }
    made = tables.blocks(tables.READMES[0], {"interventions": record})
    assert "bare Hugging Face generate" in made["writing"]
    assert "bare Hugging Face generate" not in made["reading"]


def test_perplexity(tmp_path: Path):
    record = toy(perplexity, tmp_path)
    assert record.where(case="2 x 32 tokens", way=perplexity.MATRIX)


def test_patching_gives_the_numbers_of_its_peer(tmp_path: Path):
    record = toy(patching, tmp_path)
    assert len(record.rows) == 6
    assert max(row["apart"] for row in record.rows) < 1e-4
    assert "every token, 2 layers" in tables.patching([record])


def test_attribution(tmp_path: Path):
    record = toy(attribution, tmp_path)
    assert len(record.where(family="Llama")) == 4
    assert min(row["forwards"] for row in record.rows) > 0
    assert "BLOOM, 6 tokens" in tables.attribution([record])


def test_the_loops_give_the_numbers_of_integrated_gradients(tmp_path: Path):
    folder = attribution.save_model("Llama", tmp_path)
    ways, _ = attribution.runs(folder, 6, "cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attributions of")
        ours = ways[attribution.OURS]().values[[0, attribution.LAYERS - 1]]
    for way in (attribution.LOOP, attribution.LOGITS_EVERYWHERE):
        assert apart(ours, torch.stack(ways[way]())) < 1e-3
    at_the_end = torch.stack([each[0, -1] for each in ways[attribution.CAPTUM]()])
    assert apart(ours, at_the_end) < 1e-3


def test_average_precision(tmp_path: Path):
    record = toy(average_precision, tmp_path)
    assert max(row["difference"] for row in record.rows) < 1e-12
    assert record.rows[0]["median"] == pytest.approx(1, rel=1e-3)
    assert "60 sentences" in tables.precision([record])


@pytest.mark.parametrize("module", [collect, attribution, average_precision])
def test_memory(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(made_up, "alone", lambda work, *given: work(*given))
    record = toy(module, tmp_path, memory=True)
    assert record.command.endswith(" toy --memory")
    assert all(row["mib"] >= 0 for row in record.rows)
    name = {collect: "memory", attribution: "attribution memory"}.get(module, "precision memory")
    (path,) = tmp_path.iterdir()
    assert "MiB" in tables.blocks(tables.READMES[0], {path.stem: record})[name]


def test_memory_is_looked_at_in_a_process_of_its_own():
    assert made_up.alone(os.getpid) != os.getpid()


def test_memory_of_a_gpu_is_refused():
    with pytest.raises(ValueError, match="leave out --memory or --device"):
        SpeedOrMemory(memory=True, device="cuda")


def test_the_gpu_part_with_the_cpu_as_the_device(tmp_path: Path):
    gpu.main(gpu.Config("toy", tmp_path, device="cpu", others=False))
    record = load(tmp_path / "gpu.json")
    counting = [row for row in record.rows if "model" in row]
    assert {row["model"] for row in counting} == {"Babel", "Llama shape, toy"}
    assert all(row["share_of_peak"] > 0 for row in counting)
    beside = [row for row in record.rows if "beside" in row]
    assert len(beside) == 4
    assert {row["apart"] for row in beside} == {0}  # the same device is the same number
    assert "Babel: collect, firing counts" in tables.gpu([record])


def test_the_gpu_part_asks_for_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="There is no GPU"):
        gpu.main(gpu.Config())


def test_work_is_two_operations_for_each_weight_and_attention_to_the_tokens_before(tmp_path: Path):
    shape = made_up.llama(2, 64, 160, 300)
    model = collect.bare(made_up.save_model(shape, tmp_path), "cpu")
    weights = 2 * (4 * 64 * 64 + 3 * 64 * 160)
    attention = 2 * 2 * (2 * 64 * 10 / 2)  # layers, scores and values, half of ten tokens
    assert gpu.work_per_token(model, 10) == 2 * weights + attention


@pytest.mark.campaign
def test_faults(tmp_path: Path):
    command = [sys.executable, "-m", "tests.campaigns.faults", "toy", "--out", str(tmp_path)]
    subprocess.run(
        command,
        check=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    record = load(tmp_path / "faults-short.json")
    assert [row["fault"] for row in record.rows] == ["piece cut short", "one bit flipped"]
    assert tables.total_of(record) == {
        "injected": 2,
        "stopped": 2,
        "different": 0,
        "lost": 0,
        "twice": 0,
    }


def test_the_whole_campaign_of_faults_needs_ray(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="leave the cluster out with --no-ray"):
        faults.Config()
    assert not faults.Config("bench").with_ray
    assert not faults.Config(ray=False).with_ray


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("step", __main__.STEPS)
def test_every_step_of_the_whole_has_a_size_for_it(step: str):
    name, *flags = step.split()
    module = importlib.import_module(f"benchmarks.{name}")
    config = getattr(module, "Config", SpeedOrMemory if flags else OnDevice)
    parsed = tyro.cli(config, args=["bench", *flags])
    assert command_of(name, parsed) == " ".join(["python -m", f"benchmarks.{name} bench", *flags])
    assert {"full", "bench", "toy"} == set(module.AMOUNTS)


def test_an_interrupted_run_goes_on_and_a_failed_one_runs_again(tmp_path: Path):
    log = tmp_path / "log"

    def commands(code: int) -> dict[str, list[str]]:
        def write(name: str, code: int) -> list[str]:
            program = f"open({str(log)!r}, 'a').write({name!r}); raise SystemExit({code})"
            return [sys.executable, "-c", program]

        return {"a": write("a", 0), "b": write("b", code), "c": write("c", 0)}

    assert __main__.run_all(commands(1), tmp_path / "out") == ["b"]
    assert log.read_text() == "abc"
    assert __main__.run_all(commands(0), tmp_path / "out") == []
    assert log.read_text() == "abcb"
    __main__.forget(tmp_path / "out")
    assert __main__.run_all(commands(0), tmp_path / "out") == []
    assert log.read_text() == "abcbabc"


def test_results_are_part_of_the_repository():
    assert json.loads((RESULTS / "collect.json").read_text())["rows"]
    if (ROOT / ".git").exists():
        asked = ["git", "check-ignore", "--quiet", str(RESULTS / "collect.json")]
        assert subprocess.run(asked, cwd=ROOT).returncode == 1
