"""What does a GPU change? Cost of counting on it, and its speed and numbers against a CPU's.

    python -m benchmarks.gpu                    # one GPU of 48 GiB or more, 20 GB of disk
    python -m benchmarks.gpu bench              # without the model of 7 billion parameters
    python -m benchmarks.gpu toy --device cpu   # check that every part runs

Counting is measured on Babel and on Llama shapes with random weights in bfloat16: as a multiple of
Hugging Face's body with fused attention, in tokens per second, and as a share of the peak. The peak
is what products of large matrices reach on the same device, not the maker's figure. The work is
two operations per weight and token, plus attention to earlier tokens. Then the same text, prompts
and responses run on the GPU and on the CPU: are the numbers equal, and how much faster is the GPU?
Finally the other benchmarks run with `--device cuda`, and their rows join the tables.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tyro
from torch import Tensor
from transformers import LlamaConfig

import interp
from benchmarks import (
    attribution,
    average_precision,
    collect,
    interventions,
    patching,
    perplexity,
    records,
    synthetic,
)
from benchmarks.records import Row, Size, recording
from benchmarks.timing import Variants, clock, relative_difference, spread, take_turns

BABEL = Path(interp.__file__).parent / "babel" / "model"


@dataclass(frozen=True)
class Config(records.OnDevice):
    """What to run, and where."""

    device: str = "cuda"
    """Or cpu, to check that every part runs."""

    others: bool = True
    """Also run the other benchmarks on this device."""


@dataclass(frozen=True)
class Text:
    """The text that one model reads."""

    model: str
    """Name in the table."""

    rows: int
    """Rows in a batch."""

    length: int
    """Tokens in a row."""

    batches: int
    """Batches per turn."""


@dataclass(frozen=True)
class Amount:
    """How much is run."""

    texts: tuple[Text, ...]

    rounds: int = 5
    """Turns of each variant."""

    matrix: int = 8192
    """Width of the matrices whose product defines the peak."""

    prompts: tuple[int, ...] = (64, 256)
    """Lengths in tokens of the prompts that are attributed."""

    sentences: int = 3000
    units: int = 40_000
    """Units whose average precision is computed."""


SHAPES = {
    "1.1 billion": synthetic.llama(16, 2048, 8192, 32_000, num_key_value_heads=8),
    "6.7 billion": synthetic.llama(32, 4096, 11_008, 32_000, num_attention_heads=32),
    "toy": synthetic.standard_model("toy"),
}
"""Models with random weights, by number of parameters."""

BABEL_TEXT = Text("Babel", rows=64, length=256, batches=8)
AMOUNTS: dict[Size, Amount] = {
    "full": Amount((BABEL_TEXT, Text("1.1 billion", 16, 1024, 4), Text("6.7 billion", 8, 1024, 4))),
    "bench": Amount((BABEL_TEXT, Text("1.1 billion", 16, 1024, 4)), rounds=3),
    "toy": Amount(
        (Text("Babel", 2, 16, 1), Text("toy", 2, 16, 1)),
        rounds=1,
        matrix=64,
        prompts=(6,),
        sentences=60,
        units=20,
    ),
}
OTHERS = (collect, interventions, perplexity, patching, attribution, average_precision)


# ---------------------------------------------------------------- counting


def best_product(width: int, dtype: torch.dtype, device: str) -> float:
    """Operations per second in the product of two square matrices, best of ten."""
    one, other = torch.randn(2, width, width, device=device).to(dtype)
    turns = take_turns({"product": lambda: one @ other}, 10, clock(device))
    return 2 * width**3 / min(turns.seconds["product"])


def work_per_token(model: Any, length: int) -> float:
    """Operations that the body needs per token, in a row of `length` tokens."""
    weights = sum(
        weight.numel()
        for name, weight in model.model.named_parameters()
        if weight.ndim == 2 and "embed" not in name
    )
    config: LlamaConfig = model.config
    heads = config.num_attention_heads
    width = heads * (config.head_dim or config.hidden_size // heads)
    scores, values = length / 2, length / 2  # of the earlier tokens, half of the row on average
    return 2 * weights + 2 * config.num_hidden_layers * width * (scores + values)


def count(text: Text, folder: Path, rounds: int, width: int, device: str) -> list[Row]:
    """Counting on one model, against its bare body."""
    dtype = torch.bfloat16
    plain = collect.bare(folder, device, dtype=dtype)
    native = interp.load(folder, device=device, dtype=dtype)
    vocabulary = plain.config.vocab_size
    corpora = synthetic.text(("en",), 1, text.rows * text.batches, text.length, vocabulary)
    ids = corpora.rows["en"].ids.long().to(device)
    per_batch = text.rows * text.length
    variants: Variants = {
        collect.BARE: collect.body_of(plain, list(ids.split(text.rows))),
        collect.COUNTS: collect.collect(native, corpora, per_batch, interp.Keep()),
        collect.MOMENTS: collect.collect(native, corpora, per_batch, interp.Keep(moments=True)),
    }
    turns = take_turns(variants, rounds, clock(device))
    work, peak = work_per_token(plain, text.length), best_product(width, dtype, device)
    name = text.model if text.model == "Babel" else f"Llama shape, {text.model}"
    rows = turns.rows(model=name, batch=f"{text.rows} x {text.length}")
    for row in rows:
        rate = ids.numel() / statistics.median(turns.seconds[row["way"]])
        row |= {"tokens_per_second": rate, "share_of_peak": rate * work / peak}
    return rows


# ---------------------------------------------------------------- against the CPU


def against_cpu(case: str, run: Callable[[str], Tensor], rounds: int, device: str) -> Row:
    """How many times faster than on the CPU, and the largest relative difference of the numbers."""
    variants: Variants = {"CPU": lambda: run("cpu"), "device": lambda: run(device)}
    turns = take_turns(variants, rounds, clock(device))
    faster = [1 / multiple for multiple in turns.multiples()["device"]]
    apart = relative_difference(turns.values["CPU"], turns.values["device"])
    return {"beside": case, **spread(faster), "apart": apart}


def equal_numbers(amount: Amount, device: str) -> list[Row]:
    """The same text, prompts and responses on the device and on the CPU."""
    models = {
        name: interp.load("babel", device=name, dtype=torch.float32) for name in {"cpu", device}
    }
    vocabulary = models["cpu"].bridge.cfg.d_vocab
    text = synthetic.text(("en",), 1, 4 * amount.prompts[0], 64, vocabulary)

    def counts(name: str) -> Tensor:
        return interp.collect(models[name], text, progress=False).firing.fired

    def attributions(name: str, prompt: Tensor) -> Tensor:
        return interp.integrated_gradients(models[name], prompt, 5, quantity="logit").values

    rows = [against_cpu("firing counts, Babel in float32", counts, amount.rounds, device)]
    for length in amount.prompts:
        (prompt,) = synthetic.tokens(1, length, vocabulary)
        case = f"integrated gradients, Babel in float32, {length} tokens"
        run = partial(attributions, prompt=prompt)
        rows.append(against_cpu(case, run, amount.rounds, device))
    for dtype in ("float32", "bfloat16"):
        case = average_precision.Case(amount.sentences, 6, dtype, 0, amount.units)
        responses, labels = average_precision.responses_of(case)
        inputs = {name: responses.to(name) for name in ("cpu", device)}

        def precision(name: str, inputs: Any = inputs, labels: Tensor = labels) -> Tensor:
            return interp.average_precision(inputs[name], labels, 6)

        name = f"average precision, {case.name}"
        rows.append(against_cpu(name, precision, amount.rounds, device))
    return rows


def main(config: Config) -> None:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "There is no GPU that torch can use: install its CUDA build, or check that every part "
            "runs with: python -m benchmarks.gpu toy --device cpu"
        )
    amount = AMOUNTS[config.size]
    with recording("gpu", config, amount) as record:
        for text in amount.texts:
            with TemporaryDirectory() as temporary:
                folder = BABEL
                if text.model != "Babel":
                    folder = Path(temporary)
                    synthetic.save_model(SHAPES[text.model], folder, config.device, torch.bfloat16)
                record(*count(text, folder, amount.rounds, amount.matrix, config.device))
        record(*equal_numbers(amount, config.device))
    for benchmark in OTHERS if config.others else ():
        benchmark.main(records.SpeedOrMemory(config.size, config.out, config.device))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
