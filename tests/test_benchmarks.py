"""Benchmarks run, keep what they measure, and the numbers of READMEs and guides are theirs."""

import importlib.util
import inspect
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
from typing import Any

import pytest
import torch
import tyro

from benchmarks import (
    adapters,
    attribution,
    average_precision,
    caches,
    collect,
    distributions,
    full_size,
    gemma,
    gpu,
    interventions,
    memory,
    mixtures,
    patching,
    perplexity,
    plan,
    scaling,
    start,
    synthetic,
    tables,
)
from benchmarks.markdown import (
    TIMES,
    Pivot,
    day,
    enumerated,
    load_all,
    span,
    with_blocks,
    with_numbers,
    with_ratio,
)
from benchmarks.records import (
    RESULTS,
    Config,
    OnDevice,
    Record,
    SpeedOrMemory,
    command_of,
    load,
    recording,
    save,
)
from benchmarks.timing import relative_difference, take_turns
from tests.campaigns import faults

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "in_subprocess", lambda work, *given: work(*given))
    monkeypatch.setattr(
        memory, "in_subprocesses", lambda work, *tasks: [work(*task) for task in tasks]
    )


def toy(module: Any, out: Path, **settings: Any) -> Record:
    """What a benchmark keeps of its smallest run."""
    config = SpeedOrMemory if module not in (plan, scaling, start) else Config
    module.main(config("toy", out, **settings))
    (path,) = out.glob("*.json")
    return load(path)


# ---------------------------------------------------------------- the tables


@pytest.mark.parametrize("path", [*tables.READMES, *tables.GUIDES], ids=lambda path: path.stem)
def test_a_page_says_what_was_measured(path: Path):
    text = path.read_text(encoding="utf-8")
    made = tables.updated(path, text, load_all())
    assert made == text, f"{path.name} is old: run python -m benchmarks.tables"


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        (tables.READMES[0], r"0\.98(?= to 1\.\d\d\))"),
        (tables.READMES[1], rf"\d+(?= {TIMES} faster)"),
        (tables.GUIDES[0], r"(?<=Of )\d+(?=\s+injected\s+faults)"),
        (tables.GUIDES[1], r"(?<=within )\d+(?= % of \w+ measured runs)"),
    ],
)
def test_a_typed_number_is_put_right(path: Path, pattern: str):
    text = path.read_text(encoding="utf-8")
    typed = re.sub(pattern, "12345", text, count=1)
    assert typed != text
    assert tables.updated(path, typed, load_all()) == text


def test_no_measured_number_stands_outside_the_marks():
    text = tables.READMES[0].read_text(encoding="utf-8")
    for name in tables.BLOCKS:
        text = re.sub(rf"<!-- {name} -->.*<!-- /{name} -->", "", text, flags=re.DOTALL)
    assert re.findall(rf"\d+\.\d+|\d+ [{TIMES}%]|\d+ MiB|\d+ minutes", text) == []


def test_a_mark_that_is_missing_or_doubled_is_an_error():
    marked = "above\n<!-- a -->\nold\n<!-- /a -->\nbelow\n"
    assert with_blocks(marked, {"a": "new"}) == marked.replace("old", "new")
    for text in ("nothing", marked * 2):
        with pytest.raises(ValueError, match="once, on lines of their own"):
            with_blocks(text, {"a": "new"})


def test_a_sentence_that_changed_is_an_error():
    with pytest.raises(ValueError, match="together with the sentence"):
        with_numbers("Of many faults", {r"(?<=Of )\d+": 3})


def test_what_was_measured_on_another_device_is_a_further_row():
    (record,) = (load_all()[name] for name in ("collect",))
    alone = Pivot()([record]).splitlines()
    both = Pivot()([record, replace(record, device="A GPU")]).splitlines()
    assert both[: len(alone)] == alone
    assert both[len(alone)].startswith("| bare Hugging Face body, A GPU | 1.00 |")
    book = {"collect": record, "collect-cuda": replace(record, device="A GPU")}
    assert tables.blocks(tables.READMES[0], book)["collect"].count("`python -m") == 2


def test_what_was_not_measured_names_its_command():
    made = tables.blocks(tables.READMES[0], {})
    assert made["gpu"] == "Not measured yet: `python -m benchmarks.gpu`."
    assert made["memory"] == "Not measured yet: `python -m benchmarks.collect --memory`."


def test_a_folder_that_differs_does_not_count_as_equal():
    (record,) = (load_all()[name] for name in ("faults",))
    row = {"fault": "one", "injected": 7, "stopped": 2, "different": 1, "lost": 3, "twice": 0}
    made = tables.FAULTS([replace(record, rows=(row, row))]).splitlines()
    assert made[2] == "| one | 7 | 4 | 2 | 1 | 3 | 0 |"
    assert made[4] == "| **all** | **14** | **8** | **4** | **2** | **6** | **0** |"


def test_memory_is_what_the_work_adds_though_more_was_held_before():
    _ = len(b"x" * (200 * memory.MIB))  # held and given back: not the work's
    assert 30 < memory.added_mib(lambda: b"x" * (40 * memory.MIB)) < 80
    assert memory.added_mib(lambda: None) < 20


def test_growth_of_memory_is_told_beside_that_of_the_text():
    (record,) = (load_all()[name] for name in ("collect-memory",))
    rows = ({"tokens": 10, "mib": 100.0}, {"tokens": 20, "mib": 250.0})
    said = tables.growth([replace(record, rows=rows)])
    assert said.startswith(
        "2 times the text needs 2.5 times the memory, without model and text: 100"
    )
    assert said.endswith("100 and 250 MiB at 10 and 20 tokens")


def test_large_models_have_their_tables():
    (record,) = (load_all()[name] for name in ("plan",))
    grown = {"varied": "languages", "value": 30, "seconds": 2.5, "mib": 99.6, "disk_mib": 7.25}
    book = {"plan": record, "scaling": replace(record, rows=(grown,))}
    made = tables.blocks(tables.READMES[0], book)
    assert "| 30 languages | 2.5 | 100 MiB | 7.2 MiB |" in made["sweep"]
    assert made["many shards"].endswith("`python -m benchmarks.full_size --n-shards 20`.")
    assert "Planned disk space is right within 0.2 %." in made["plan"]


def test_numbers_are_said_briefly():
    assert span([1.0, 0.991]) == "0.99 to 1.00"
    assert span([0.981, 0.979]) == "0.98"
    assert enumerated([304, 320, 1327]) == "304, 320 and 1,327"
    row = {"median": 1.0, "least": 0.9, "most": 1.2}
    assert with_ratio(row)["ratio"] == "1.00 (0.90 to 1.20)"
    assert with_ratio(row | {"least": 1.0, "most": 1.0})["ratio"] == "1.00"
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
    turns = take_turns({"bare": lambda: None, "ours": lambda: None}, rounds=3)
    rows = turns.rows(case="a case")
    assert rows[0] == {"case": "a case", "way": "bare", "median": 1.0, "least": 1.0, "most": 1.0}
    assert rows[1]["least"] <= rows[1]["median"] <= rows[1]["most"]


def test_the_relative_difference_is_in_units_of_the_largest_value():
    assert relative_difference(torch.tensor([4.0, -8.0]), torch.tensor([4.0, -6.0])) == 0.25


def test_what_is_kept_says_command_date_machine_and_neither_host_nor_folder(tmp_path: Path):
    with recording(
        "collect-memory", SpeedOrMemory("bench", tmp_path, memory=True), collect.Growth()
    ) as record_rows:
        record_rows({"tokens": 10, "mib": 1.23456789})
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
    with pytest.raises(KeyError), recording("collect", OnDevice("toy", tmp_path), collect.Growth()):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_toy_is_not_kept_beside_the_results():
    before = {path: path.read_bytes() for path in RESULTS.iterdir()}
    with recording("collect", OnDevice("toy"), collect.Growth()) as record:
        record({"tokens": 1})
    assert {path: path.read_bytes() for path in RESULTS.iterdir()} == before


def test_a_command_names_what_differs_from_the_usual():
    assert command_of("benchmarks.collect", SpeedOrMemory()) == "python -m benchmarks.collect"
    config = SpeedOrMemory("bench", Path("somewhere"), device="cuda")
    assert (
        command_of("benchmarks.collect", config)
        == "python -m benchmarks.collect bench --device cuda"
    )
    assert command_of("benchmarks.gpu", gpu.Config("toy", device="cpu", others=False)) == (
        "python -m benchmarks.gpu toy --device cpu --no-others"
    )


def test_kept_results_are_whole():
    for name, record in load_all().items():
        module = name.partition("-")[0]
        package = "tests.campaigns" if module == "faults" else "benchmarks"
        assert record.command.startswith(f"python -m {package}.{module}")
        assert importlib.util.find_spec(f"{package}.{module}")
        assert record.rows
        assert record.provenance["versions"]["torch"]
        assert day(record.date)
        assert "/" not in record.command + record.machine


# ---------------------------------------------------------------- each benchmark, at toy size


@pytest.mark.slow
def test_mixtures(tmp_path: Path):
    mixtures.main(OnDevice("toy", tmp_path))
    record = load(tmp_path / "mixtures.json")
    assert [row["way"] for row in record.rows][:2] == [collect.BARE, collect.COUNTS]
    assert record.rows[0]["median"] == 1
    shape = mixtures.SHAPES["4 layers of a 30B-A3B"]
    each = 3 * shape.hidden_size * shape.moe_intermediate_size  # weights of an expert
    active = shape.num_experts_per_tok * each
    assert 48 * (shape.num_experts * each) > 28e9  # all 48 layers of the model of that name
    assert 1.5e9 < 48 * active < 3e9
    assert collect.COUNTS in tables.blocks(tables.READMES[0], {"mixtures": record})["mixtures"]


@pytest.mark.slow
def test_collect(tmp_path: Path):
    record = toy(collect, tmp_path)
    assert [row["way"] for row in record.rows][:3] == [
        collect.BARE,
        collect.COUNTS,
        collect.MOMENTS,
    ]
    assert record.rows[0]["median"] == 1
    assert collect.COUNTS in tables.blocks(tables.READMES[0], {"collect": record})["collect"]


@pytest.mark.slow
def test_gemma(in_this_process: None, tmp_path: Path):
    gemma.main(Config("toy", tmp_path))
    record = load(tmp_path / "gemma.json")
    parts = ["counting 64 tokens", "losses", "writing", "integrated gradients", "patching"]
    parts += ["opening", "counting 128 tokens"]
    cases = [f"{dtype}, {part}" for dtype in ("float32", "bfloat16") for part in parts]
    cases.remove("bfloat16, integrated gradients")
    *measured, memory = record.rows
    assert list(dict.fromkeys(row["case"] for row in measured)) == cases
    references = [next(row for row in measured if row["case"] == case) for case in cases]
    assert all(row["median"] == 1 for row in references)
    assert {row["way"] for row in measured} >= set(gemma.GEMMA_OURS)
    assert {collect.CHEAP, collect.HISTOGRAMS} < {row["way"] for row in record.where(case=cases[0])}
    assert memory["mib"] >= 0
    made = tables.blocks(tables.READMES[0], {"gemma": record})["gemma"]
    assert "| bfloat16 | losses | **losses** |" in made
    assert "tokens take" in made


def test_caches(tmp_path: Path):
    record = toy(caches, tmp_path)
    assert [row["way"] for row in record.rows] == [caches.FORWARD, caches.OURS, caches.BY_HAND]
    assert caches.OURS in tables.blocks(tables.READMES[0], {"caches": record})["caches"]
    amount = caches.AMOUNTS["toy"]
    random, keep = caches.random_caches(amount, torch.float32), caches.masks_of(amount)
    rates = [work(random, keep, amount.layers) for work in caches.WAYS.values()]
    assert all(rate.allclose(rates[0], atol=1e-12) for rate in rates)
    assert 0.4 < rates[0].mean() < 0.6


def test_statistics_need_a_tenth_of_the_memory_of_caches():
    record = load_all().get("caches-memory")
    if record is None:
        pytest.skip("not measured yet: python -m benchmarks.caches bench --memory")
    rows = record.where(way=caches.OURS)
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
    assert all(row["share"] <= 1.1 for row in rows)


@pytest.mark.slow
def test_start(tmp_path: Path):
    record = toy(start, tmp_path)
    ways = ["import torch", "Python itself", "interp --help", "interp find --help"]
    assert [row["way"] for row in record.rows] == ways
    assert record.rows[0]["median"] == 1
    assert all(row["seconds"] > 0 for row in record.rows)
    assert record.command == "python -m benchmarks.start toy"
    made = tables.blocks(tables.READMES[0], {"start": record})
    assert "| **interp find --help** | **0." in made["asking"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_adapters_write_what_the_hooks_write(tmp_path: Path):
    pytest.importorskip("peft")
    record = toy(adapters, tmp_path)
    ways = [adapters.PEFT, adapters.MERGED, adapters.BAKED, adapters.HOOKS]
    for rank in (4, 8):
        rows = record.where(case=f"rank {rank}, 2 x 4 tokens")
        assert [row["way"] for row in rows] == [adapters.PLAIN, *ways]
        assert all(row["same_tokens"] for row in rows[1:])
    made = tables.blocks(tables.READMES[0], {"adapters": record})
    assert "| | rank 4, 2 " in made["adapters"]
    assert "**edit baked in**" in made["adapters"]


@pytest.mark.slow
def test_perplexity(tmp_path: Path):
    record = toy(perplexity, tmp_path)
    assert record.where(case="2 x 32 tokens", way=perplexity.MATRIX)


@pytest.mark.slow
def test_patching_gives_the_numbers_of_its_peer(tmp_path: Path):
    record = toy(patching, tmp_path)
    assert len(record.rows) == 8
    assert max(row["apart"] for row in record.rows) < 1e-4
    table = tables.PATCHING([record])
    assert "every token, 2 layers" in table
    assert "every head and token, 2 layers" in table


@pytest.mark.slow
def test_attribution(tmp_path: Path):
    record = toy(attribution, tmp_path)
    assert len(record.where(family="Llama")) == 4
    assert min(row["forwards"] for row in record.rows) > 0
    assert "BLOOM, 6 tokens" in tables.ATTRIBUTION([record])


@pytest.mark.slow
def test_the_loops_give_the_numbers_of_integrated_gradients(tmp_path: Path):
    folder = attribution.save_model("Llama", tmp_path)
    ways, _ = attribution.runs(folder, 6, "cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attributions of")
        ours = ways[attribution.OURS]().values[[0, attribution.LAYERS - 1]]
    for way in (attribution.LOOP, attribution.LOGITS_EVERYWHERE):
        assert relative_difference(ours, torch.stack(ways[way]())) < 1e-3
    at_the_end = torch.stack([each[0, -1] for each in ways[attribution.CAPTUM]()])
    assert relative_difference(ours, at_the_end) < 1e-3


def test_distributions(tmp_path: Path):
    record = toy(distributions, tmp_path)
    assert [row["languages"] for row in record.where(way=distributions.TREE)] == [4, 9]
    for table in distributions.overlaps(6, 50):
        split = distributions.weakest_link(table)
        assert torch.equal(split.across, distributions.every_split(table))


def test_average_precision(tmp_path: Path):
    record = toy(average_precision, tmp_path)
    assert max(row["difference"] for row in record.rows) < 1e-12
    assert record.rows[0]["median"] == pytest.approx(1, rel=1e-3)
    assert "60 sentences" in tables.PRECISION([record])


@pytest.mark.slow
@pytest.mark.parametrize("module", [collect, caches, attribution, average_precision])
def test_memory(module: Any, tmp_path: Path, in_this_process: None):
    record = toy(module, tmp_path, memory=True)
    assert record.command.endswith(" toy --memory")
    assert all(row["mib"] >= 0 for row in record.rows)
    names = {collect: "memory", caches: "caches memory", attribution: "attribution memory"}
    name = names.get(module, "precision memory")
    (path,) = tmp_path.iterdir()
    assert "MiB" in tables.blocks(tables.READMES[0], {path.stem: record})[name]


def test_memory_is_measured_in_processes_of_their_own():
    numbers = memory.in_subprocesses(os.getpid, (), ())
    assert len({*numbers, os.getpid()}) == 3


def test_a_plan_is_compared_with_runs(tmp_path: Path, in_this_process: None):
    record = toy(plan, tmp_path)
    (row,) = record.rows
    assert row["shape"] == "2 x 32, gated"
    assert min(row["planned"], row["measured"]) > 0
    assert 0 <= row["disk_error"] < 1
    made = tables.blocks(tables.READMES[0], {"plan": record})["plan"]
    assert f"| 2 {TIMES} 32, gated | " in made
    assert "Planned disk space is right within" in made


def test_plans_are_compared_with_every_statistic_of_the_pass():
    kept = [run.kept for run in plan.SHAPES.values()]
    assert any(keep.moments and keep.sign_cases and keep.negative_side for keep in kept)
    assert any(keep.histograms for keep in kept)


def test_scaling(tmp_path: Path, in_this_process: None):
    record = toy(scaling, tmp_path)
    assert [row["value"] for row in record.rows] == [1, 2]
    assert record.rows[0]["disk_mib"] == record.rows[1]["disk_mib"] > 0
    made = tables.blocks(tables.READMES[0], {"scaling": record})["sweep"]
    assert "| 2 workers | " in made


@pytest.mark.parametrize("n_shards", [1, 3])
def test_everything_after_the_pass(n_shards: int, tmp_path: Path, in_this_process: None):
    full_size.main(full_size.Config("toy", tmp_path, n_shards))
    name, flags = ("full_size", "") if n_shards == 1 else ("full_size-shards", " --n-shards 3")
    record = load(tmp_path / f"{name}.json")
    assert record.command == f"python -m benchmarks.full_size toy{flags}"
    assert [row["planted_recovered"] for row in record.rows if "planted_recovered" in row] == [1]
    steps = [step for step in full_size.STEPS if n_shards > 1 or step != "intervals"]
    assert [row["step"] for row in record.rows] == steps
    block = "full size" if n_shards == 1 else "many shards"
    made = tables.blocks(tables.READMES[0], {name: record})[block]
    assert "| read and select | " in made


def test_memory_of_a_gpu_is_refused():
    with pytest.raises(ValueError, match="leave out --memory or --device"):
        SpeedOrMemory(memory=True, device="cuda")


@pytest.mark.campaign
def test_the_gpu_part_with_the_cpu_as_the_device(tmp_path: Path):
    gpu.main(gpu.Config("toy", tmp_path, device="cpu", others=False))
    record = load(tmp_path / "gpu.json")
    counting = [row for row in record.rows if "model" in row]
    assert {row["model"] for row in counting} == {"Babel", "Llama shape, toy"}
    assert all(row["share_of_peak"] > 0 for row in counting)
    beside = [row for row in record.rows if "beside" in row]
    assert len(beside) == 4
    assert {row["apart"] for row in beside} == {0}  # the same device is the same number
    assert "Babel: collect, firing counts" in tables.GPU_COUNTING([record])


def test_the_gpu_part_asks_for_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="There is no GPU"):
        gpu.main(gpu.Config())


def test_work_is_two_operations_for_each_weight_and_attention_to_the_tokens_before(tmp_path: Path):
    shape = synthetic.llama(2, 64, 160, 300)
    model = collect.bare(synthetic.save_model(shape, tmp_path), "cpu")
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

MODULES = (
    adapters,
    attribution,
    average_precision,
    caches,
    collect,
    distributions,
    full_size,
    gemma,
    gpu,
    interventions,
    mixtures,
    patching,
    perplexity,
    plan,
    scaling,
    start,
    faults,
)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_benchmark_has_every_size_and_says_how_it_was_run(module: Any):
    config = next(iter(inspect.signature(module.main).parameters.values())).annotation
    parsed = tyro.cli(config, args=["bench"])
    assert command_of(module.__name__, parsed) == f"python -m {module.__name__} bench"
    assert {"full", "bench", "toy"} == set(module.AMOUNTS)


def test_make_bench_runs_what_exists():
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    (names,) = re.findall(r"^BENCHMARKS := (.*)$", recipe, re.MULTILINE)
    modules = {module.__name__ for module in MODULES}
    assert {f"benchmarks.{name}" for name in names.split()} < modules
    (with_memory,) = re.findall(r"for name in (.*); do .* --memory", recipe)
    for name in with_memory.split():
        (module,) = [module for module in MODULES if module.__name__ == f"benchmarks.{name}"]
        assert inspect.signature(module.main).parameters["config"].annotation is SpeedOrMemory


def test_results_are_part_of_the_repository():
    assert json.loads((RESULTS / "collect.json").read_text())["rows"]
    if (ROOT / ".git").exists():
        asked = ["git", "check-ignore", "--quiet", str(RESULTS / "collect.json")]
        assert subprocess.run(asked, cwd=ROOT).returncode == 1
