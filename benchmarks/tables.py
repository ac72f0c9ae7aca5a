"""Write the tables of both READMEs from benchmarks/results/*.json, so that nobody types a number.

    python -m benchmarks.tables

Reads   benchmarks/results/*.json, which the benchmarks write
Writes  benchmarks/README.md and README.md, between <!-- name --> and <!-- /name -->; in README.md
        also the few numbers that its sentences say of these results
"""

from collections.abc import Callable
from pathlib import Path

from benchmarks.attribution import CAPTUM, LOGITS_EVERYWHERE, LOOP, OURS
from benchmarks.average_precision import GPU, NUMBA, NUMPY
from benchmarks.collect import COUNTS, MOMENTS
from benchmarks.markdown import (
    TIMES,
    Book,
    between,
    cross,
    different,
    listed,
    measured,
    multiples,
    named,
    of,
    read_all,
    restated,
    rewritten,
    span,
    table,
)
from benchmarks.patching import PEER, SAME_BRIDGE
from benchmarks.perplexity import MATRIX
from benchmarks.start import HELP, NAMES
from benchmarks.turns import Record, Row
from interp.results import artifacts

ROOT = Path(__file__).parents[1]


# ---------------------------------------------------------------- one table per claim


def growth(records: list[Record]) -> str:
    """Memory against tokens, in a sentence."""
    tokens, mib = ([row[name] for row in records[0].rows] for name in ("tokens", "mib"))
    return (
        f"{tokens[-1] / tokens[0]:,.0f} times the text take {mib[-1] / mib[0]:.1f} times the "
        f"memory beside model and text: {listed(mib)} MiB at {listed(tokens)} tokens"
    )


def growth_of_shape(records: list[Record]) -> str:
    shape = records[0].provenance["settings"]
    return (
        f"{growth(records)}, with moments, in a model of {shape['layers']} layers of "
        f"{shape['neurons']:,} neurons."
    )


def attribution(records: list[Record]) -> str:
    lines = []
    for record in records:
        for family, tokens in prompts(record):
            found = by_way(record, "forwards", family=family, tokens=tokens)
            loops = [found[way] / found[OURS] for way in (LOOP, LOGITS_EVERYWHERE) if way in found]
            captum = f"{found[CAPTUM] / found[OURS]:.0f} {TIMES}" if CAPTUM in found else ""
            lines.append(
                [
                    named(f"{family}, {tokens:,} tokens", record),
                    f"**{found[OURS]:.1f}**",
                    f"{span(loops, '{:.0f}')} {TIMES}",
                    captum,
                ]
            )
    return table(["prompt", "forwards", "faster than the loops", "than captum"], lines)


def attribution_memory(records: list[Record]) -> str:
    (record,) = records
    ways = different(row["way"] for row in record.rows)
    lines = []
    for family, tokens in prompts(record):
        found = by_way(record, "mib", family=family, tokens=tokens)
        cells = [f"{found[way]:,.0f} MiB" if way in found else "" for way in ways]
        lines.append([f"{family}, {tokens:,} tokens", *cells])
    return table(["memory above the model", *ways], lines)


def prompts(record: Record) -> list[tuple[str, int]]:
    """Families and lengths: first all of Llama."""
    every = different((row["family"], row["tokens"]) for row in record.rows)
    return sorted(every, key=lambda case: case[0] != "Llama")


def by_way(record: Record, value: str, **values: str | int) -> dict[str, float]:
    return {row["way"]: row[value] for row in record.where(**values)}


def patching(records: list[Record]) -> str:
    lines = []
    for record in records:
        for sweep, layers in different((row["sweep"], row["layers"]) for row in record.rows):
            found = by_way(record, "median", sweep=sweep, layers=layers)
            label = named(f"{sweep}, {layers} layers", record)
            cells = [f"**{found[PEER]:.1f}** {TIMES}", f"{found[SAME_BRIDGE]:.1f} {TIMES}"]
            lines.append([label, *cells])
    return table(
        ["sweep", f"faster than `{PEER}`", "than the same on the bridge of `patch`"], lines
    )


def precision(records: list[Record]) -> str:
    every = [row for record in records for row in record.rows]
    ways = [way for way in (NUMBA, NUMPY, GPU) if any(row.get("way") == way for row in every)]
    lines = []
    for record in records:
        for case in different(row["case"] for row in record.rows if "case" in row):
            found = by_way(record, "median", case=case)
            cells = [f"{found[way]:.0f} {TIMES}" if way in found else "" for way in ways]
            lines.append([named(case, record), *cells])
    worst = max(row["difference"] for row in every if "difference" in row)
    said = table(["responses", *(way.removeprefix("ours, ") for way in ways)], lines)
    return f"{said}\n\nThe largest difference to scikit-learn's numbers is {worst:.0e}."


def precision_memory(records: list[Record]) -> str:
    header = ["units", "result", "peak above the libraries", "seconds"]
    lines = [
        [
            f"{row['units']:,}",
            f"{row['result_mib']:,.0f} MiB",
            f"{row['mib']:,.0f} MiB",
            f"{row['seconds']:,.0f}",
        ]
        for row in records[0].rows
    ]
    return table(header, lines)


def plan(records: list[Record]) -> str:
    rows = records[0].rows
    lines = [
        [
            cross(row["shape"]),
            f"{row['planned']:,.0f} MiB",
            f"{row['measured']:,.0f} MiB",
            f"{row['planned'] / row['measured']:.2f}",
        ]
        for row in rows
        if "planned" in row
    ]
    disk = 100 * max(row["disk_error"] for row in rows if "disk_error" in row)
    said = table(["shape", "planned", "measured", "ratio"], lines)
    return f"{said}\n\nDisk is right within {disk:.1f} %."


def full_size(records: list[Record]) -> str:
    lines = [
        [
            row["step"],
            f"{row['seconds']:,.{0 if row['seconds'] >= 10 else 1}f}",
            f"{row['mib']:,.0f} MiB",
        ]
        for row in records[0].rows
    ]
    return table(["step", "CPU seconds", "memory"], lines)


def sweep(records: list[Record]) -> str:
    lines = [
        [
            f"{row['value']:,} {row['varied']}",
            f"{row['seconds']:,.3g}",
            f"{row['mib']:,.0f} MiB",
            f"{row['disk_mib']:,.1f} MiB",
        ]
        for row in records[0].rows
    ]
    return table(["", "seconds", "memory", "disk"], lines)


def gpu(records: list[Record]) -> str:
    rows = records[0].rows
    counting = [
        [
            f"{row['model']}: {row['way']}",
            cross(row["batch"]),
            between(row),
            f"{row['tokens_per_second']:,.0f}",
            f"{100 * row['share_of_peak']:.0f} %",
        ]
        for row in rows
        if "model" in row
    ]
    beside = [
        [row["beside"], f"{row['median']:.1f} {TIMES}", f"{row['apart']:.0e}"]
        for row in rows
        if "beside" in row
    ]
    header = ["counting", "batch", "beside the bare body", "tokens/s", "share of the peak"]
    other = ["the same there and on the CPU", "faster", "largest difference"]
    return f"{table(header, counting)}\n\n{table(other, beside)}"


# ---------------------------------------------------------------- faults


def faults(records: list[Record]) -> str:
    header = ["fault", "injected", "went on, equal", "stopped with one sentence, then equal"]
    header += ["in the end different", "lost", "counted twice"]
    lines = [[row["fault"], *numbers(row)] for row in records[0].rows]
    total = ["all", *numbers(total_of(records[0]))]
    return table(header, [*lines, [f"**{each}**" for each in total]])


def numbers(row: Row) -> list[str]:
    went_on = row["injected"] - row["stopped"] - row["different"]
    rest = (row["stopped"], row["different"], row["lost"], row["twice"])
    return [f"{each:,}" for each in (row["injected"], went_on, *rest)]


def total_of(record: Record) -> Row:
    names = ("injected", "stopped", "different", "lost", "twice")
    return {name: sum(row[name] for row in record.rows) for name in names}


def few_faults(records: list[Record]) -> str:
    total = total_of(records[0])
    return (
        f"The last shorter campaign: {total['injected']} faults, of which {total['stopped']} "
        f"stopped a run with one sentence; {total['different']} folders different in the end, "
        f"{total['lost']} tokens or firings lost, {total['twice']} counted twice."
    )


# ---------------------------------------------------------------- what it costs


def cost(book: Book) -> str:
    """The table of README.md: the claims in short, and memory."""
    lines = [*cost_of_passes(book), *cost_of_scores(book)]
    return f"{table(['', 'beside', 'ratio'], lines)}\n\n{growth(of(book, 'collect-memory'))}."


def cost_of_passes(book: Book) -> list[list[str]]:
    def medians(name: str, way: str, begins: str = "") -> str:
        rows = book[name].where(way=way)
        return span(row["median"] for row in rows if row["case"].startswith(begins))

    reading, writing = (
        medians("interventions", "deactivate", doing) for doing in ("reading", "writing")
    )
    return [
        [
            "counting firing over text",
            "the bare Hugging Face forward pass",
            f"{medians('collect', COUNTS)} of its time",
        ],
        ["counts and moments", "the same", medians("collect", MOMENTS)],
        [
            "reading with neurons off; writing with neurons off",
            "the untouched model",
            f"{reading}; {writing}",
        ],
        [
            f"the matrix of languages off {TIMES} read",
            "its bare loss passes",
            medians("perplexity", MATRIX),
        ],
    ]


def cost_of_scores(book: Book) -> list[list[str]]:
    llama = [case for case in prompts(book["attribution"]) if case[0] == "Llama"]
    ways = [by_way(book["attribution"], "forwards", family=f, tokens=n) for f, n in llama]
    forwards = span((each[OURS] for each in ways), "{:.2g}")
    loops = span((each[LOOP] / each[OURS] for each in ways), "{:.0f}")
    numba, numpy = (
        span(
            (
                row["median"]
                for row in book["average_precision"].where(way=way)
                if "float64" not in row["case"]  # which no model gives
            ),
            "{:.0f}",
        )
        for way in (NUMBA, NUMPY)
    )
    sweeps = book["patching"].where(way=PEER)
    every = span((row["median"] for row in sweeps if row["sweep"] == "every token"), "{:.1f}")
    last = max((row for row in sweeps if row["sweep"] == "last token"), key=lambda r: r["layers"])
    return [
        [
            "integrated gradients of all neurons of all layers, 20 steps",
            "plain forward passes of the prompt",
            f"{forwards} of them",
        ],
        ["the same", "the steps of each layer as a batch of prompts", f"{loops} {TIMES} faster"],
        [
            "average precision of every unit for every language",
            "scikit-learn, unit by unit",
            f"{numba} {TIMES} faster (numba), {numpy} {TIMES} (numpy)",
        ],
        [
            f"patching every layer {TIMES} every token; the last token, {last['layers']} layers",
            f"`{PEER}`",
            f"{every} {TIMES}; {last['median']:.1f} {TIMES} faster",
        ],
    ]


# ---------------------------------------------------------------- into the files

Body = Callable[[list[Record]], str]
BLOCKS: dict[str, tuple[str, Body, str]] = {
    "asking": ("start", lambda found: multiples(found, HELP, "asking, "), ""),
    "importing": ("start", lambda found: multiples(found, NAMES, "importing, "), ""),
    "collect": ("collect", lambda found: multiples(found, (COUNTS, MOMENTS)), ""),
    "memory": ("collect-memory", growth_of_shape, "collect --memory"),
    "reading": ("interventions", lambda found: multiples(found, ("deactivate",), "reading "), ""),
    "writing": ("interventions", lambda found: multiples(found, ("deactivate",), "writing "), ""),
    "perplexity": ("perplexity", lambda found: multiples(found, (MATRIX,)), ""),
    "attribution": ("attribution", attribution, ""),
    "attribution memory": ("attribution-memory", attribution_memory, "attribution --memory"),
    "patching": ("patching", patching, ""),
    "precision": ("average_precision", precision, ""),
    "precision memory": (
        "average_precision-memory",
        precision_memory,
        "average_precision --memory",
    ),
    "plan": ("scaling-plan", plan, "scaling plan"),
    "full size": ("scaling-paper", full_size, "scaling paper"),
    "many shards": ("scaling-shards", full_size, "scaling paper --n-shards 20"),
    "sweep": ("scaling-sweep", sweep, "scaling sweep"),
    "gpu": ("gpu", gpu, ""),
    "faults": ("faults", faults, ""),
    "few faults": ("faults-short", few_faults, "faults bench"),
}
"""Marks in benchmarks/README.md: the file of numbers, how they are told, and what measures them
where that is another name."""


def blocks(path: Path, book: Book) -> dict[str, str]:
    """What stands between which marks of one of the two files."""
    if path == ROOT / "README.md":
        return {"cost": cost(book)}
    return {name: measured(book, *which) for name, which in BLOCKS.items()}


def stated(book: Book) -> dict[str, int]:
    """Numbers inside the sentences of README.md, by patterns that match them and nothing else."""
    total = total_of(book["faults"])
    went_on = total["injected"] - total["stopped"] - total["different"]
    plans = [row for row in book["scaling-plan"].rows if "planned" in row]
    wrong = max(abs(row["planned"] / row["measured"] - 1) for row in plans)
    return {
        r"(?<=Of )\d+(?=\s+injected\s+faults)": total["injected"],
        r"\d+(?= runs\s+went\s+on and \d+ stopped)": went_on,
        r"(?<=on and )\d+(?= stopped)": total["stopped"],
        r"(?<=within )\d+(?= % of \w+ measured runs)": round(100 * wrong),
    }


def made_anew(path: Path, text: str, book: Book) -> str:
    """What one of the two files should say."""
    made = rewritten(text, blocks(path, book))
    return restated(made, stated(book)) if path == ROOT / "README.md" else made


READMES = (ROOT / "benchmarks" / "README.md", ROOT / "README.md")


def main() -> None:
    book = read_all()
    for path in READMES:
        text = path.read_text(encoding="utf-8")
        if (made := made_anew(path, text, book)) != text:
            artifacts.write_text(path, made)
            print(f"{path.relative_to(ROOT)} is new.")


if __name__ == "__main__":
    main()
