"""What a run will take, beside what runs leave on disk and operations that are counted."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LongcatFlashConfig

import interp
from benchmarks import full_size, memory, synthetic
from benchmarks.scaling import find_in
from interp.commands.plan import Plan
from interp.counting.plan import RunPlan, plan_run
from interp.counting.statistics import STATISTICS
from interp.models.load import load, outline
from interp.models.neuron_model import NeuronModel
from interp.text.corpora import Corpora, Rows
from tests import tiny_models

LANGUAGES = ("en", "de", "fr")
ROW_TOKENS = 16


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ("llama", "pythia", "bloom", "phi3", "gpt2")
    return {name: tiny_models.build(name, tmp_path_factory.mktemp(name)) for name in names}


def text(n_shards: int, rows_each: int, packed: bool = True) -> Corpora:
    """Random tokens in rows of one length, as many in every shard."""
    generator = torch.Generator().manual_seed(0)
    n = n_shards * rows_each
    rows = {
        code: Rows(
            torch.randint(4, 200, (n, ROW_TOKENS), generator=generator, dtype=torch.int32),
            torch.full((n,), ROW_TOKENS),
            torch.arange(n) % n_shards,
            tuple(f"{number}" for number in range(n)),  # of prompts, the same in all languages
        )
        for code in LANGUAGES
    }
    return Corpora(rows, LANGUAGES, n_shards, (tiny_models.BOS,), packed)


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class TestDisk:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "keep", "packed"),
        [
            ("llama", interp.Keep(), True),
            ("llama", interp.Keep(**dict.fromkeys(STATISTICS, True)), True),
            ("pythia", interp.Keep(moments=True, contexts=2), True),
            ("bloom", interp.Keep(sentence_means=("pre", "mlp_out"), signs="gate"), False),
        ],
    )
    def test_the_bytes_that_a_run_leaves_are_those_planned(
        self,
        checkpoints: dict[str, Path],
        tmp_path: Path,
        name: str,
        keep: interp.Keep,
        packed: bool,
    ) -> None:
        n_shards, rows_each = 4, 6
        tokens = n_shards * rows_each * ROW_TOKENS
        model = load(checkpoints[name], attention="hooked" if keep.heads else "native")
        corpora = text(n_shards, rows_each, packed)
        interp.collect(model, corpora, tmp_path / "run", keep=keep, progress=False)
        plan = plan_run(
            model, len(LANGUAGES), tokens, n_shards=n_shards, row_tokens=ROW_TOKENS, keep=keep
        )
        measured = on_disk(tmp_path / "run")
        assert plan.disk == pytest.approx(measured, rel=0.2)
        # Beyond the headers, of which there are as many as files, to the byte.
        files = list((tmp_path / "run").rglob("*.safetensors"))
        tensors = sum(path.stat().st_size - header(path) for path in files)
        named = bool(keep.sentence_means or keep.signs or keep.contexts)
        names = 24 * n_shards * rows_each * len(LANGUAGES) * named
        assert plan.disk - names - 1024 * (len(files) + 1) == tensors

    def test_it_grows_by_as_much_for_every_shard_and_language(
        self, checkpoints: dict[str, Path]
    ) -> None:
        def disk(n_languages: int, n_shards: int) -> int:
            plan = plan_run(
                checkpoints["llama"], n_languages, 5040, n_shards=n_shards, row_tokens=1
            )
            return plan.disk

        neurons = tiny_models.N_LAYERS * tiny_models.D_MLP
        # A piece and its part of the whole: a count for each neuron, and of the tokens.
        each = 2 * 8 * (neurons + 1) + 1024
        assert disk(3, 8) - disk(2, 8) == 8 * each
        assert disk(2, 10) - disk(2, 9) == 2 * each


class TestMemory:
    def test_weights_are_those_of_the_checkpoint(self, checkpoints: dict[str, Path]) -> None:
        for name, folder in checkpoints.items():
            path = folder / "model.safetensors"
            assert planned(folder).weights == path.stat().st_size - header(path), name

    def test_half_the_precision_takes_half_the_weights(self, checkpoints: dict[str, Path]) -> None:
        stored, halved = planned(checkpoints["llama"]), planned(checkpoints["llama"], torch.float16)
        assert stored.weights == 2 * halved.weights
        assert (stored.dtype, halved.dtype) == (torch.float32, torch.float16)
        assert stored.counters == halved.counters

    def test_counters_are_the_tensors_of_a_piece(self, checkpoints: dict[str, Path]) -> None:
        from interp.counting.counters import FiringCounter, MomentsCounter

        model = load(checkpoints["llama"])
        sums = [FiringCounter(model).tensors(), MomentsCounter(model).tensors()]
        size = sum(each.nbytes for tensors in sums for each in tensors.values())
        plan = plan_run(model, 2, 10_000, keep=interp.Keep(moments=True))
        assert plan.counters + 8 == size  # and the number of tokens

    def test_the_fullest_moment_is_the_sum_of_its_parts(self, checkpoints: dict[str, Path]) -> None:
        small, large = (
            planned(checkpoints["llama"]),
            planned(checkpoints["llama"], n_languages=3000),
        )
        assert small.memory == small.weights + small.text + small.activations + small.counters
        assert large.results > large.passing
        assert large.memory > large.weights + large.text + large.results

    def test_selecting_counts_where_it_needs_more_than_the_pass(self, tmp_path: Path) -> None:
        narrow = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 100}
        LlamaConfig(
            hidden_size=16, intermediate_size=11_008, num_hidden_layers=32, **narrow
        ).save_pretrained(tmp_path)
        in_memory, on_disk = (
            plan_run(tmp_path, 100, 64, n_shards=n, row_tokens=16, tokens_per_batch=16)
            for n in (2, 4)
        )
        assert in_memory.memory > in_memory.selecting > in_memory.results + in_memory.weights
        rates = 8 * 100 * in_memory.neurons
        # Two shards of counts and one left over, or the sums of four; then what is made of them.
        assert in_memory.selecting / rates == pytest.approx(3 + 2.25, rel=0.001)
        assert on_disk.selecting / rates == pytest.approx(1 + 2.25, rel=0.001)


def planned(
    folder: Path, dtype: torch.dtype | None = None, n_languages: int = 2, **settings: Any
) -> RunPlan:
    return plan_run(folder, n_languages, 100_000, dtype=dtype, **settings)


class TestWork:
    @pytest.mark.parametrize("name", ["llama", "pythia", "bloom", "phi3", "gpt2"])
    def test_operations_are_those_that_torch_counts(
        self, checkpoints: dict[str, Path], name: str
    ) -> None:
        model = load(checkpoints[name], attn_implementation="eager")
        ids = torch.randint(4, 200, (2, 48))
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model.body(ids)
        mine = plan_run(model, 1, 96, n_shards=1, row_tokens=48).flops
        # What torch runs also multiplies with tokens that come later, and masks that away.
        width = model.width(0, "q")
        later = 4.0 * (48 - 49 / 2) * model.n_layers * width * 96
        assert mine + later == pytest.approx(counter.get_total_flops(), rel=0.02)

    def test_hours_are_operations_by_throughput(self, checkpoints: dict[str, Path]) -> None:
        plan = planned(checkpoints["llama"])
        assert plan.hours(2.0) == pytest.approx(plan.flops / 2e12 / 3600)
        with pytest.raises(ValueError, match="teraflops is"):
            plan.hours(0.0)

    def test_a_rest_that_fills_no_row_is_not_read(self, checkpoints: dict[str, Path]) -> None:
        plan = plan_run(checkpoints["llama"], 2, 1000, n_shards=3, row_tokens=64)
        assert plan.tokens == 1000 // (3 * 64) * 3 * 64
        with pytest.raises(ValueError, match="less than one row of 64"):
            plan_run(checkpoints["llama"], 2, 100, n_shards=3, row_tokens=64)
        with pytest.raises(ValueError, match="n_languages is 0"):
            plan_run(checkpoints["llama"], 0, 100)


class TestOutline:
    @pytest.mark.parametrize("name", sorted(tiny_models.CONFIGS))
    def test_the_config_says_what_the_loaded_model_says(self, tmp_path: Path, name: str) -> None:
        tiny_models.config(name).save_pretrained(tmp_path)  # no weights, no tokenizer
        shape = outline(tmp_path)
        loaded = load(tiny_models.build(name, tmp_path / "whole"))
        for each in ("n_layers", "d_mlp", "d_model", "gated", "n_vocab", "max_length", "dtype"):
            assert getattr(shape, each) == getattr(loaded, each), each
        assert sizes(shape) == sizes(loaded)

    @pytest.mark.slow
    def test_a_model_of_seventy_billion_is_planned_from_its_config(self, tmp_path: Path) -> None:
        LlamaConfig(
            hidden_size=8192,
            intermediate_size=28_672,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
            dtype="bfloat16",
        ).save_pretrained(tmp_path)
        plan = plan_run(tmp_path, 100, 1_000_000)
        assert plan.neurons == 80 * 28_672
        assert plan.parameters == pytest.approx(69e9, rel=0.01)
        assert plan.weights == 2 * plan.parameters
        # Two for every weight but the embeddings, on 100 million tokens, and a little attention.
        assert plan.flops == pytest.approx(2 * 68.5e9 * 1e8, rel=0.02)

    def test_a_mixture_that_cannot_be_read_is_refused_by_name_without_weights(
        self, tmp_path: Path
    ) -> None:
        LongcatFlashConfig(n_routed_experts=8, num_layers=2).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"longcat_flash.*mixture of 8 experts"):
            plan_run(tmp_path, 2, 10_000)


def sizes(model: NeuronModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in model._parameters.items()}


class TestCommand:
    def test_babel_is_planned_without_options(self, capsys: pytest.CaptureFixture[str]) -> None:
        Plan().run()
        shown = capsys.readouterr().out
        assert "6 layers of 2,048 gated neurons; 6 languages" in shown
        for quantity in ("weights", "disk", "peak memory", "forward passes"):
            assert quantity in shown
        assert "assumed" in shown

    def test_languages_are_codes_or_how_many(self, checkpoints: dict[str, Path]) -> None:
        def n_languages(*given: str) -> int:
            return Plan(str(checkpoints["llama"]), languages=given).plan().n_languages

        assert n_languages("100") == 100
        assert n_languages("en", "de") == 2
        with pytest.raises(ValueError, match="en is given more than once"):
            n_languages("en", "en")

    def test_the_table_is_written(self, checkpoints: dict[str, Path], tmp_path: Path) -> None:
        import pandas as pd

        command = Plan(str(checkpoints["llama"]), out=tmp_path / "plans" / "plan.csv")
        command.run()
        frame = pd.read_csv(tmp_path / "plans" / "plan.csv")
        disk = frame.loc[frame["quantity"] == "disk", "value"].item()
        assert math.isclose(disk, command.plan().disk)
        assert list(frame.columns) == ["quantity", "value", "unit", "from"]


def header(path: Path) -> int:
    """Bytes before the tensors of a safetensors file."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


@pytest.mark.campaign
def test_100_labels_of_a_7b_shape_are_merged_and_selected_from_in_the_planned_memory(
    tmp_path: Path,
):
    shape = full_size.Shape(n_layers=32, d_mlp=11_008, n_languages=100, n_shards=2)
    config = synthetic.llama(shape.n_layers, 4096, shape.d_mlp, 32_000)
    config.save_pretrained(tmp_path / "model")
    tokens, row_tokens = full_size.TOKENS * shape.n_shards, full_size.TOKENS
    sizes = {"n_shards": shape.n_shards, "row_tokens": row_tokens, "dtype": torch.bfloat16}
    plan = plan_run(tmp_path / "model", shape.n_languages, tokens, **sizes)
    rows = {
        step: memory.in_subprocess(full_size.measure, step, tmp_path / "run", shape)
        for step in ("write the pieces", "merge", "read and select")
    }
    assert rows["merge"]["mib"] < 1.15 * plan.results / memory.MIB
    rates = 8 * plan.n_languages * plan.neurons / memory.MIB  # no weights are needed any more
    assert rows["read and select"]["mib"] < min(3.5 * rates, plan.memory / memory.MIB)
    found = memory.in_subprocess(find_in, tmp_path / "run")
    assert 0.8 * plan.selecting < memory.MIB * found < 1.1 * plan.selecting
    n_chosen, n_planted = round(0.01 * plan.neurons), 40 * shape.n_languages
    assert rows["read and select"]["planted_recovered"] == n_chosen / n_planted
