"""Write the tables of both READMEs, and numbers in docs/, from benchmarks/results/*.json.

    python -m benchmarks.tables

Reads   benchmarks/results/*.json, which the benchmarks write
Writes  benchmarks/README.md and README.md, between <!-- name --> and <!-- /name -->, and the
        numbers of these results in the sentences of two guides in docs/
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.adapters import BAKED, PEFT
from benchmarks.attribution import CAPTUM, LOGITS_EVERYWHERE, LOOP, OURS
from benchmarks.average_precision import GPU, NUMBA, NUMPY
from benchmarks.caches import OURS as FROM_CACHES
from benchmarks.collect import CHEAP, COUNTS, HISTOGRAMS, MOMENTS
from benchmarks.distributions import TREE
from benchmarks.gemma import GEMMA_OURS
from benchmarks.markdown import (
    Pivot,
    Records,
    Rows,
    caption,
    cells,
    enumerated,
    load_all,
    span,
    table,
    unique,
    with_blocks,
    with_device,
    with_numbers,
    with_ratio,
)
from benchmarks.patching import PEER, SAME_BRIDGE
from benchmarks.perplexity import MATRIX
from benchmarks.records import Record, Row
from benchmarks.start import HELP, NAMES
from interp.results import artifacts

ROOT = Path(__file__).parents[1]
READMES = (ROOT / "benchmarks" / "README.md", ROOT / "README.md")
GUIDES = (
    ROOT / "docs" / "guides" / "cluster.md",
    ROOT / "docs" / "guides" / "memory_and_time.md",
)


# ---------------------------------------------------------------- derived rows


def attributions(record: Record) -> list[Row]:
    """A row for each prompt, Llama first, with multiples of the time of `integrated_gradients`."""
    prompts = unique((row["family"], row["tokens"]) for row in record.rows)
    rows = []
    for family, tokens in sorted(prompts, key=lambda prompt: prompt[0] != "Llama"):
        measured = record.where(family=family, tokens=tokens)
        forwards = {row["way"]: row["forwards"] for row in measured}
        multiples = {way: value / forwards[OURS] for way, value in forwards.items()}
        loops = [multiples[way] for way in (LOOP, LOGITS_EVERYWHERE) if way in multiples]
        rows.append(
            {
                "family": family,
                "prompt": with_device(f"{family}, {tokens:,} tokens", record),
                "forwards": forwards[OURS],
                "loop": multiples[LOOP],
                "loops": span(loops, "{:.0f}"),
                "captum": f"{multiples[CAPTUM]:.0f} x" if CAPTUM in multiples else "",
            }
        )
    return rows


def planned(record: Record) -> list[Row]:
    return [
        row | {"ratio": row["planned"] / row["measured"]} for row in record.rows if "planned" in row
    ]


def steps(record: Record) -> list[Row]:
    """Seconds with at least two digits."""
    return [
        row | {"seconds": f"{row['seconds']:,.{0 if row['seconds'] >= 10 else 1}f}"}
        for row in record.rows
    ]


def gemma_case(row: Row) -> Row:
    """The precision and the measured part of a row; ours in bold."""
    dtype, _, what = row["case"].partition(", ")
    bold = "**" if row["way"] in GEMMA_OURS else ""
    return {"dtype": dtype, "what": what, "way": f"{bold}{row['way']}{bold}"}


def loss_memory(records: Sequence[Record]) -> str:
    (row,) = records[0].where(memory="losses, bfloat16")
    return (
        f"Losses of {row['rows']} rows of {row['length']} tokens take {row['mib']:,.0f} MiB above "
        f"the model, whose vocabulary has {row['vocabulary']:,} tokens."
    )


def counting(record: Record) -> list[Row]:
    return [
        with_ratio(row) | {"percent": 100 * row["share_of_peak"]}
        for row in record.rows
        if "model" in row
    ]


def total_of(record: Record) -> dict[str, int]:
    names = ("injected", "stopped", "different", "lost", "twice")
    return {name: sum(row[name] for row in record.rows) for name in names}


def fates(record: Record) -> list[Row]:
    """Faults by kind and in total, with the number after which a run ended with equal bytes."""
    total: Row = {"fault": "all", **total_of(record)}
    return [
        row | {"equal": row["injected"] - row["stopped"] - row["different"]}
        for row in (*record.rows, total)
    ]


# ---------------------------------------------------------------- sentences


def growth(records: Sequence[Record]) -> str:
    """A sentence on memory against tokens."""
    tokens, mib = ([row[name] for row in records[0].rows] for name in ("tokens", "mib"))
    times = mib[-1] / mib[0] if mib[0] else math.nan  # too small to measure
    return (
        f"{tokens[-1] / tokens[0]:,.0f} times the text needs {times:.1f} times the memory, without "
        f"model and text: {enumerated(mib)} MiB at {enumerated(tokens)} tokens"
    )


def growth_in_model(records: Sequence[Record]) -> str:
    settings = records[0].provenance["settings"]
    return (
        f"{growth(records)}, with moments, in a model of {settings['layers']} layers of "
        f"{settings['neurons']:,} neurons."
    )


def largest_difference(records: Sequence[Record]) -> str:
    largest = max(row.get("difference", 0) for record in records for row in record.rows)
    return f"The largest difference from scikit-learn's numbers is {largest:.0e}."


def disk_error(records: Sequence[Record]) -> str:
    largest = max(row.get("disk_error", 0) for row in records[0].rows)
    return f"Planned disk space is right within {100 * largest:.1f} %."


def few_faults(records: Sequence[Record]) -> str:
    return (
        "The last short campaign injected {injected} faults; {stopped} stopped a run with one "
        "sentence. In the end {different} folders were different, {lost} tokens or firings were "
        "lost and {twice} were counted twice."
    ).format_map(total_of(records[0]))


# ---------------------------------------------------------------- benchmarks/README.md

Part = Callable[[Sequence[Record]], str]

ATTRIBUTION = Rows(
    "prompt | forward passes | faster than the loops | faster than captum",
    "{prompt} | **{forwards:.1f}** | {loops} x | {captum}",
    attributions,
)
ATTRIBUTION_MEMORY = Pivot(
    "{family}, {tokens:,} tokens", "way", "{mib:,.0f} MiB", heading="memory above the model"
)
CACHES_MEMORY = Rows(
    "way | caches | above them at the peak | peak, as a multiple of the caches",
    "{way}, {dtype} | {cache_mib:,.0f} MiB | {mib:,.0f} MiB | {share:.2f}",
)
PATCHING = Pivot(
    "{sweep}, {layers} layers",
    "way",
    "{median:.1f} x",
    {PEER: f"faster than `{PEER}`", SAME_BRIDGE: "faster than it on the bridge of `patch`"},
    "sweep",
    bold=(PEER,),
)
WAYS = {way: way.removeprefix("ours, ") for way in (NUMBA, NUMPY, GPU)}
PRECISION = Pivot("{case}", "way", "{median:.0f} x", WAYS, "responses")
PRECISION_MEMORY = Rows(
    "units | result | peak above the libraries | seconds",
    "{units:,} | {result_mib:,.0f} MiB | {mib:,.0f} MiB | {seconds:,.0f}",
)
SPLITS = Rows(
    "way | languages | neurons | CPU seconds",
    "{way} | {languages} | {neurons:,} | {seconds}",
    steps,
    bold=TREE,
)
PLAN = Rows(
    "shape | planned | measured | ratio",
    "{shape} | {planned:,.0f} MiB | {measured:,.0f} MiB | {ratio:.2f}",
    planned,
)
STEPS = Rows("step | CPU seconds | memory", "{step} | {seconds} | {mib:,.0f} MiB", steps)
SWEEP = Rows(
    " | seconds | memory | disk",
    "{value:,} {varied} | {seconds:,.3g} | {mib:,.0f} MiB | {disk_mib:,.1f} MiB",
)
GPU_COUNTING = Rows(
    "counting | batch | time relative to the bare body | tokens/s | share of the peak",
    "{model}: {way} | {batch} | {ratio} | {tokens_per_second:,.0f} | {percent:.0f} %",
    counting,
)
GPU_BESIDE_CPU = Rows(
    "on the GPU and on the CPU | faster | largest difference",
    "{beside} | {median:.1f} x | {apart:.0e}",
    lambda record: [row for row in record.rows if "beside" in row],
)
GEMMA = Rows(
    "in | what | way | time relative to the first",
    "{dtype} | {what} | {way} | {ratio}",
    lambda record: [with_ratio(row) | gemma_case(row) for row in record.rows if "way" in row],
)
FAULTS = Rows(
    "fault | injected | went on, equal | stopped with one sentence, resumed, equal"
    " | different in the end | lost | counted twice",
    "{fault} | {injected:,} | {equal:,} | {stopped:,} | {different:,} | {lost:,} | {twice:,}",
    fates,
    bold="all",
)

BLOCKS: dict[str, tuple[str, *tuple[Part, ...]]] = {
    "asking": ("start", Pivot(begins="asking, ", bold=HELP)),
    "importing": ("start", Pivot(begins="importing, ", bold=NAMES)),
    "collect": ("collect", Pivot(bold=(COUNTS, MOMENTS, CHEAP, HISTOGRAMS))),
    "mixtures": ("mixtures", Pivot(bold=(COUNTS,))),
    "memory": ("collect --memory", growth_in_model),
    "caches": ("caches", Pivot(bold=(FROM_CACHES,))),
    "caches memory": ("caches --memory", CACHES_MEMORY),
    "gemma": ("gemma", GEMMA, loss_memory),
    "reading": ("interventions", Pivot(begins="reading ", bold=("deactivate",))),
    "writing": ("interventions", Pivot(begins="writing ", bold=("deactivate",))),
    "adapters": ("adapters", Pivot(bold=(PEFT, BAKED))),
    "perplexity": ("perplexity", Pivot(bold=(MATRIX,))),
    "attribution": ("attribution", ATTRIBUTION),
    "attribution memory": ("attribution --memory", ATTRIBUTION_MEMORY),
    "patching": ("patching", PATCHING),
    "precision": ("average_precision", PRECISION, largest_difference),
    "precision memory": ("average_precision --memory", PRECISION_MEMORY),
    "distributions": ("distributions", SPLITS),
    "plan": ("plan", PLAN, disk_error),
    "full size": ("full_size", STEPS),
    "many shards": ("full_size --n-shards 20", STEPS),
    "sweep": ("scaling", SWEEP),
    "gpu": ("gpu", GPU_COUNTING, GPU_BESIDE_CPU),
    "faults": ("tests.campaigns.faults", FAULTS),
    "few faults": ("tests.campaigns.faults bench", few_faults),
}
"""Blocks of benchmarks/README.md by name: the command that measures them, and their parts."""

FILES = {
    "full_size --n-shards 20": "full_size-shards",
    "tests.campaigns.faults": "faults",
    "tests.campaigns.faults bench": "faults-short",
}
"""Files whose names differ from their commands."""


def block(all_records: Records, command: str, *parts: Part) -> str:
    """Tables and sentences above the command that measured them, or only the command.

    Includes measurements on other devices than the CPU.
    """
    name = FILES.get(command, command.replace(" --", "-"))
    records = [
        record
        for other, record in all_records.items()
        if other == name or (other.startswith(f"{name}-") and record.device != "CPU")
    ]
    if not records:
        module = command if command.startswith("tests.") else f"benchmarks.{command}"
        return f"Not measured yet: `python -m {module}`."
    return "\n\n".join([*(part(records) for part in parts), *map(caption, records)])


# ---------------------------------------------------------------- README.md


COST = """\
counting firings over text | the bare Hugging Face forward pass | {counts} of its time
reading with neurons off; writing with neurons off | the untouched model | {reading}; {writing}
the perplexity matrix of languages off x languages read | the bare loss passes it needs | {matrix}
integrated gradients of all neurons of all layers, 20 steps | the steps of each layer as \
a batch of prompts | {loop} x faster, in the time of {forwards} forward passes"""


def cost(all_records: Records) -> str:
    """The table of costs in README.md, and a sentence on memory."""

    def medians(name: str, way: str, case: str = "") -> str:
        rows = [row for row in all_records[name].where(way=way) if row["case"].startswith(case)]
        return span((row["median"] for row in rows), "{:.2f}")

    rows = attributions(all_records["attribution"])
    lines = COST.format(
        counts=medians("collect", COUNTS),
        reading=medians("interventions", "deactivate", "reading"),
        writing=medians("interventions", "deactivate", "writing"),
        matrix=medians("perplexity", MATRIX),
        loop=span((row["loop"] for row in rows), "{:.0f}"),
        forwards=span((row["forwards"] for row in rows), "{:.1f}"),
    ).splitlines()
    growing = growth([all_records["collect-memory"]])
    return f"{table(cells(' | compared with | ratio'), map(cells, lines))}\n\n{growing}."


def sentence_numbers(path: Path, all_records: Records) -> dict[str, int]:
    """Numbers in the sentences of a guide, by patterns that match nothing else."""
    *_, total = fates(all_records["faults"])
    largest = max(abs(row["ratio"] - 1) for row in planned(all_records["plan"]))
    of_cluster = {
        r"(?<=Of )\d+(?=\s+injected\s+faults)": total["injected"],
        r"\d+(?= runs\s+continued\s+and\s+\d+\s+stopped)": total["equal"],
        r"(?<=continued and )\d+(?= stopped)": total["stopped"],
    }
    of_plan = {r"(?<=within )\d+(?= % of \w+ measured runs)": round(100 * largest)}
    return dict(zip(GUIDES, (of_cluster, of_plan), strict=True)).get(path, {})


# ---------------------------------------------------------------- writing the files


def blocks(path: Path, all_records: Records) -> dict[str, str]:
    """The blocks of one of the files, by the names of their marks."""
    if path in GUIDES:
        return {}
    if path == ROOT / "README.md":
        return {"cost": cost(all_records)}
    return {name: block(all_records, *spec) for name, spec in BLOCKS.items()}


def updated(path: Path, text: str, all_records: Records) -> str:
    """The text of one of the files, with current numbers."""
    text = with_blocks(text, blocks(path, all_records))
    return with_numbers(text, sentence_numbers(path, all_records))


def main() -> None:
    all_records = load_all()
    for path in (*READMES, *GUIDES):
        text = path.read_text(encoding="utf-8")
        if (new := updated(path, text, all_records)) != text:
            artifacts.write_text(path, new)
            print(f"{path.relative_to(ROOT)} was updated.")


if __name__ == "__main__":
    main()
