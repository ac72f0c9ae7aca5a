"""What a researcher sees of a result: a line of words, a small table, and no bar without news.

Results are made by hand, tiny, with names that no page may take for its own.
"""

import dataclasses
import importlib
import inspect
import io
import math
import pkgutil
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from jaxtyping import Float
from transformers.utils import logging as transformers_logging

import interp
from interp.counting.histograms import Grid
from interp.counting.progress import Progress, Verification
from interp.counting.sizes import PieceSizes
from interp.evaluations.losses import Losses
from interp.evaluations.neuron_sets import Condition
from interp.evaluations.perplexity import PerplexityMatrix
from interp.evaluations.rates import Rate
from interp.evaluations.writing import Generated
from interp.inference.intervals import Estimate
from interp.interventions.residual import ResidualMeans
from interp.models.doctor import Check, Diagnosis
from interp.prompts.attribution_results import PositionAttribution
from interp.results import artifacts, bars
from interp.results.display import (
    MOST_CELLS,
    Shaded,
    Shown,
    counted,
    html_table,
    listed,
    ranged,
)
from interp.results.saved import Saved
from interp.scores.average_precision import Precision
from interp.text.corpora import Rows
from interp.text.language_id import Hygiene
from interp.text.sources import Prompts
from tests import tiny_models

CODES = ("en", "de", "zh")
EVIL = "<script>alert('&')</script>"
NO_RESULTS = {"Batch", "Change", "ChunkedTensor", "Condition", "Contents", "InMemory", "Pass"}
NO_RESULTS |= {"Picture", "PatchSource", "RecordedSources", "TableKind"}
NO_RESULTS |= {"Changed", "ExpertTokens", "Factors", "Parts", "Route", "Rows", "Split"}
NO_RESULTS |= {"Location", "Movable", "Reference"}
"""What is handed in, or passes by on the way."""

LINES, CHARACTERS = 3, 300
"""The most that the line of words may be."""


def whole(*shape: int) -> torch.Tensor:
    return torch.arange(math.prod(shape)).reshape(shape)


def real(*shape: int) -> torch.Tensor:
    return whole(*shape).double() / math.prod(shape)


def estimate(*shape: int) -> Estimate:
    value = real(*shape)
    return Estimate(value, value / 10, value - 0.1, value + 0.1, 0.95)


def matrix(codes: tuple[str, ...] = CODES, n_shards: int = 4, n_draws: int = 1) -> PerplexityMatrix:
    """Own neurons cost 0.5 nats per token, others' 0.01 less than nothing, random ones 0.02."""
    n = len(codes)
    tokens = 1000 + whole(n_shards, n)
    change = torch.cat([torch.zeros(1, n), 0.51 * torch.eye(n) - 0.01]).double()
    nats = tokens[:, None] * (3 + change)
    drawn = (tokens * 3.02)[:, None, None].expand(-1, n_draws, n, -1)
    losses = Losses(
        nats=nats,
        tokens=tokens,
        bytes=4 * tokens,
        interventions=("nothing", *codes),
        languages=codes,
    )
    return PerplexityMatrix(
        losses=losses, random=drawn.double(), neurons=(7,) * n, edit=("deactivate",) * n
    )


def selection(codes: tuple[str, ...] = CODES) -> interp.NeuronSelection:
    mask = torch.zeros(len(codes), 2, 2048, dtype=torch.bool)
    for row in range(len(codes)):
        mask[row, 1, : row + 1] = True
    return interp.NeuronSelection(mask, codes)


def confusion() -> interp.evaluations.Confusion:
    return interp.evaluations.Confusion(
        texts=("Ja.", "No."),
        language="de",
        lines_pass=torch.tensor([True, False]),
        words_pass=torch.tensor([True, False]),
        left_at=torch.tensor([-1, 0]),
        by_words=False,
    )


def plan(name: str = "mine") -> interp.counting.RunPlan:
    piece = PieceSizes(1024, {"moments": 1025}, *range(1026, 1032))
    sizes: list[Any] = [2, 2048, True, torch.float32, 10, 3, 5, 2, 64, 1024, 1025, piece, 1e9]
    return interp.counting.RunPlan(name, "LlamaForCausalLM", *sizes)


def stability(
    changes: tuple[str, ...], codes: tuple[str, ...] = CODES
) -> interp.selections.Stability:
    found = real(len(changes), len(codes))
    return interp.selections.Stability(
        changes=changes,
        jaccard=found,
        low=found,
        high=found,
        chance=found / 2,
        most=found,
        languages=codes,
        level=0.95,
    )


def attribution() -> interp.prompts.Attribution:
    layers, neurons = real(2), real(2, 2048)
    return interp.prompts.Attribution(
        values=neurons,
        completeness_error=layers,
        change=layers,
        activations=neurons,
        score=0.25,
        prompt=(1, 2, 3),
        targets=(4,),
    )


def answered(intervention: str) -> interp.evaluations.Written:
    return interp.evaluations.Written(
        correct=torch.tensor([True, intervention != "de"]),
        texts=("x", EVIL),
        answers=("x", "z"),
        ids=("a", "b"),
        groups=("a", "b"),
        task=EVIL,
        language="de",
        intervention=intervention,
    )


def judged() -> interp.evaluations.GeneratedLanguages:
    return interp.evaluations.GeneratedLanguages(
        texts=("x", EVIL),
        found=("de", "en"),
        languages=("de",),
        characters=whole(2),
        tokens=whole(2),
        repetition=real(2),
        loss=real(2),
        word_order=real(2),
        passes=torch.tensor([True, False]),
    )


def harness_rows() -> pd.DataFrame:
    named = {"intervention": "nothing", "task": "sums", "metric": "acc", "filter": EVIL}
    return pd.DataFrame([{**named, "doc": doc, "value": float(doc)} for doc in (0, 1)])


def precision() -> Precision:
    return Precision(
        average_precision=real(3, 2, 8),
        roc_area=real(3, 2, 8),
        percentiles=real(1, 3, 2, 8).float(),
        percents=(50.0,),
        sentences=whole(3),
        languages=CODES,
        sites=(("pre", 8),),
    )


def made() -> dict[str, Any]:
    """One of each, by the name of its class."""
    prompts, clusters = ("a", "b"), torch.tensor([0, 1])
    found = [
        interp.scores.Routing(
            chosen=whole(2, 3, 2, 4), tokens=torch.full((2, 3), 2**15), languages=CODES
        ),
        interp.selections.RateChange(
            before=real(3, 2, 8),
            change=estimate(3, 2, 8),
            correlation=estimate(3),
            languages=CODES,
            paired=True,
        ),
        interp.FiringStats(
            fired=whole(2, 3, 2, 2048), tokens=torch.full((2, 3), 2**15), languages=CODES
        ),
        interp.counting.SignCases(
            counts=whole(2, 3, 4, 2, 2048),
            tokens=torch.full((2, 3), 2**18),
            languages=CODES,
        ),
        interp.counting.NegativeSide(
            below=whole(3, 2, 2048),
            output=real(3, 2, 2048),
            squares=real(3, 2, 2048),
            tokens=torch.full((3,), 2**18),
            languages=CODES,
        ),
        interp.counting.Histograms(
            counts=whole(3, 2, 64, 402).int(),
            low=real(2, 64).float(),
            width=real(2, 64).float(),
            tokens=torch.full((3,), 2**20),
            languages=CODES,
        ),
        interp.counting.LossEffects(
            total=-real(3, 2, 2048),
            absolute=real(3, 2, 2048),
            tokens=torch.full((3,), 640),
            languages=CODES,
        ),
        interp.counting.UnitMoments(
            sums=real(2, 3, 2, 8), tokens=torch.full((3,), 640), languages=CODES, units="head"
        ),
        interp.counting.HeadEffects(
            absolute=real(3, 2, 8),
            helped=whole(3, 2, 8),
            rows=torch.full((3,), 2**18),
            languages=CODES,
        ),
        Grid(low=real(2, 64).float(), width=real(2, 64).float()),
        interp.ActivationMoments(
            sums=real(4, 3, 2, 2048), tokens=torch.tensor([640, 640, 720]), languages=CODES
        ),
        interp.FiringSigns(
            bits=whole(2, 3, 2, 256).to(torch.uint8), prompts=prompts, languages=CODES, d_mlp=2048
        ),
        interp.SentenceMeans(
            pieces=(Path("a"), Path("b")),
            labels=torch.tensor([0, 1, 1]),
            languages=CODES,
            kinds=("pre",),
        ),
        interp.counting.TopContexts(
            gate=real(3, 2, 2048, 2).float(),
            row=whole(3, 2, 2048, 2).int() % 5,
            position=whole(3, 2, 2048, 2).int(),
            ids=whole(5, 8).int(),
            starts=whole(5, 8).bool(),
            length=whole(5),
            number=whole(5),
            sources=("x",) * 5,
            languages=CODES,
        ),
        Rows(whole(5, 8).int(), torch.full((5,), 8), whole(5), ("x",) * 5),
        Prompts(prompts, dict.fromkeys(CODES, ("One", "Two"))),
        selection(),
        stability(("half of the text", "without en")),
        interp.scores.SharingProfile(
            count=torch.tensor([1024, 512, 0, 512]).expand(2, 2, 4),
            kept=whole(2, 4),
            common=whole(2, 3, 3, 2),
            expected=real(2, 2, 4),
            shuffled=real(5, 2, 4),
            shuffled_kept=whole(5, 2, 4),
            shuffled_overlap=real(5, 3, 3),
            clusters=clusters,
            prompts=prompts,
            languages=CODES,
            d_mlp=2048,
        ),
        interp.scores.TokenSharing(
            count=whole(2, 2, 4),
            kept=real(2, 2, 4),
            drawn=real(2, 2, 4),
            never=whole(2, 3, 2),
            clusters=clusters,
            prompts=prompts,
            languages=CODES,
            d_mlp=2048,
        ),
        attribution(),
        PositionAttribution(
            values=real(2, 3, 2048),
            completeness_error=real(2),
            change=real(2),
            activations=real(2, 3, 2048),
            score=0.25,
            prompt=(1, 2, 3),
            targets=(4,),
        ),
        interp.prompts.PatchingResult(
            value=real(2, 1, 2, 1, 2).log(),
            top=whole(2, 1, 2, 1),
            unpatched=torch.tensor([0.25, 0.5]).double().log(),
            own=real(2, 2),
            sources=("source", "noise"),
            parts=("resid_post",),
            extent="each",
            layers=(0, 1),
            spans=("last",),
            answers=("Montag", "Monday"),
        ),
        interp.prompts.Lens(
            probability=real(2, 2, 3),
            entropy=real(2, 2),
            top=whole(2, 2, 3),
            languages=CODES,
            kept=(0, 1),
            alike=(2,),
            unspelled=(),
        ),
        matrix().losses,
        matrix(),
        matrix().diagonal(),
        Generated(texts=("x", "y"), prompts=("", ""), seeds=(0, 1), ended=(True, False)),
        interp.evaluations.GeneratedLanguages(
            texts=("x",),
            found=("de",),
            languages=CODES,
            characters=whole(1),
            tokens=whole(1),
            repetition=real(1),
            loss=real(1),
            word_order=real(1),
            passes=torch.ones(1).bool(),
        ),
        ResidualMeans(real(3, 2, 64), CODES),
        interp.evaluations.Choices(
            log_likelihood=real(2, 3).log(),
            tokens=whole(2, 3) + 1,
            bytes=whole(2, 3) + 1,
            answer=torch.tensor([2, 0]),
            normalize="none",
            ids=prompts,
            groups=prompts,
            task="sums",
            language="de",
            intervention="nothing",
        ),
        interp.evaluations.Written(
            correct=torch.tensor([True, False]),
            texts=("x", "y"),
            answers=("x", "z"),
            ids=prompts,
            groups=prompts,
            task="sums",
            language="de",
            intervention="off",
        ),
        interp.evaluations.CategoryAblation(
            correct=real(2, 2, 3),
            probability=real(2, 2, 3),
            neurons=whole(2, 2),
            chance=real(2, 3),
            tokens="last",
            conditions=(Condition("nothing", ""), Condition("random", "equal")),
            prompts=prompts,
            groups=prompts,
            task="sums",
            languages=CODES,
        ),
        interp.evaluations.CategorySums(
            sums=real(2, 3, 4, 2),
            neurons=whole(2, 4, 2),
            change=real(2, 3, 2),
            score=real(2, 3),
            quantity="probability",
            prompts=prompts,
            groups=prompts,
            task="sums",
            languages=CODES,
        ),
        interp.evaluations.CategoryScores(
            neurons=whole(2, 4, 2),
            contribution_sum=real(2, 3, 4, 2).double(),
            effective_sum=real(2, 3, 4, 2).double(),
            effective_max=real(2, 3, 4, 2).double(),
            effective_min=real(2, 3, 4, 2).double(),
            languages=CODES,
            groups=prompts,
        ),
        interp.evaluations.SteeredAnswers(
            to=("de",) * 2,
            condition=("neurons",) * 2,
            asked=("en",) * 2,
            ids=("1", "2"),
            questions=("Why?", "Where?"),
            texts=(EVIL, "Hier."),
            found=("en", "de"),
            relevance=torch.tensor([0.5, 1.0], dtype=torch.float64),
        ),
        interp.evaluations.Enrichment(units=real(2, 2, 4), firing=real(2, 2, 4), groups=prompts),
        interp.evaluations.HarnessScores(
            scores=harness_rows().assign(value=0.5).drop(columns="doc").drop_duplicates(),
            samples=harness_rows(),
        ),
        interp.selections.Explanation(
            languages=CODES,
            aspects=("script", "content"),
            neurons=whole(3),
            **{
                f"{name}{end}": real(3, 2).double()
                for name in ("kept", "random")
                for end in ("", "_low", "_high")
            },
        ),
        interp.text.Task("sums", "de", (interp.text.Item("a", "Eins", (" und", " oder"), 0),)),
        interp.inference.Claim("own", "It holds.", "them", "this", "how", "run", 0.4, 0.1, 0.7),
        Diagnosis("mine", (Check("fires", True, "0"), Check("is left alone", False, "0.5"))),
        plan(),
        interp.reports.NeuronPage("Neurons", {"neurons": [1, 2]}, {0: {}, 1: {}}),
        Verification(((0, "en"),) * 500, {}, (), {}),
        Hygiene("de", {"de": 90, "en": 10}, {"de": 900, "en": 100}),
        artifacts.Artifact({"rate": real(3, 2, 2048)}, {"languages": list(CODES)}, {}),
        interp.evaluations.TaskAblation(
            answers=({name: answered(name) for name in ("nothing", "de", "de random 0")},),
            sizes={"de": 7},
            n_draws=1,
            seed=0,
        ),
        interp.evaluations.SideBySide(
            prompt="Der Zug",
            seeds=(0,),
            texts={"nothing": ("hält",), "off de": ("stops",)},
            detected={"nothing": ("de",), "off de": ("en",)},
            loss=dict.fromkeys(["nothing", "off de"], torch.ones(1, dtype=torch.float64)),
        ),
        interp.evaluations.SteeringRates(
            rates={"de": {"no edit": judged(), EVIL: judged()}},
            guards={"de": interp.evaluations.Guard()},
        ),
        interp.interventions.TrainedUnits(
            masks={"post": torch.ones(2, 8, dtype=torch.bool)},
            values={"up.weight 0": real(8, 4).float()},
            losses=1 + real(3),
            source={"weights": "0"},
            training={"languages": ["de"]},
        ),
        confusion(),
        interp.evaluations.LanguageLock(
            change=interp.Change(torch.ones(2, 8, dtype=torch.bool), interp.deactivate),
            effect=real(2, 8),
            tried={0: 0.5, 1: 1.0},
            confusion={"nothing": confusion(), "locked": confusion()},
            losses=None,
            answers=(),
        ),
        Progress(((0, "en"), (1, "en")), ((0, EVIL),), None),
        Estimate(*(real(2, 3) for _ in range(4)), level=0.95),
        Rate(3, 4),
        precision(),
        interp.Corpora(
            {"de": Rows(whole(5, 8).int(), torch.full((5,), 8), whole(5), ("x",) * 5)},
            ("de",),
            5,
            (),
            True,
        ),
    ]
    return {type(each).__name__: each for each in found}


MADE = made()


@pytest.mark.parametrize("name", sorted(set(MADE) - {"Estimate", "Rate"}))  # they say numbers
def test_a_result_says_in_a_few_words_what_it_is(name: str):
    said = repr(MADE[name])
    assert said.startswith(f"{name}(")
    assert said.endswith(")")
    assert len(said.splitlines()) <= LINES
    assert len(said) <= CHARACTERS
    assert not re.search(r"tensor|array|object at|dtype", said), said


@pytest.mark.parametrize("name", [name for name in MADE if isinstance(MADE[name], Saved)])
def test_a_result_comes_back_from_its_file(name: str, tmp_path: Path):
    result, path = MADE[name], tmp_path / "mine.safetensors"
    result.save(path, {"seed": 1})
    assert artifacts.load(path, result.kind).provenance == {"seed": 1}
    back = type(result).load(path)
    back.save(tmp_path / "again.safetensors", {"seed": 1})
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    for name in fields_of(result):
        here, there = getattr(result, name), getattr(back, name)
        assert type(here) is type(there)
        if isinstance(here, torch.Tensor):
            assert here.dtype == there.dtype
            assert torch.equal(here.nan_to_num(), there.nan_to_num())
        elif not isinstance(here, Saved):
            assert repr(here) == repr(there)  # a Condition is no other tuple


def fields_of(result: object) -> list[str]:
    if isinstance(result, interp.FiringStats):  # no dataclass: its counts may be on disk
        return ["fired", "tokens", "languages"]
    return [field.name for field in dataclasses.fields(result)]


def holds_numbers(thing: type) -> bool:
    """Whether a generated repr would pour them out."""
    kinds = [str(each.type) for each in dataclasses.fields(thing) if each.repr]
    return any("Tensor" in kind or "DataFrame" in kind for kind in kinds)


def is_generated(thing: type) -> bool:
    return inspect.unwrap(thing.__repr__).__code__.co_filename.startswith("<")


def public_classes() -> set[type]:
    places = [each.name for each in pkgutil.walk_packages(interp.__path__, "interp.")]
    modules = [importlib.import_module(name) for name in places if ".commands" not in name]
    return {
        thing
        for module in modules
        for name, thing in vars(module).items()
        if inspect.isclass(thing) and thing.__module__ == module.__name__
        if not name.startswith("_")
    }


def test_no_public_result_pours_out_its_numbers():
    found = {thing for thing in public_classes() if dataclasses.is_dataclass(thing)}
    results = {thing for thing in found if holds_numbers(thing)}
    assert len(results) > 25
    generated = {thing.__name__ for thing in results if is_generated(thing)}
    assert sorted(generated) == sorted(NO_RESULTS)
    elsewhere = {"Edit"}  # tested where it is
    assert sorted({thing.__name__ for thing in results} - generated - elsewhere - set(MADE)) == []


def is_result(thing: type) -> bool:
    """Whether a notebook should show its numbers."""
    if thing.__name__ in {"Edit", "Saved", "Shown", *NO_RESULTS}:
        return False
    numbers = dataclasses.is_dataclass(thing) and holds_numbers(thing)
    return numbers or hasattr(thing, "to_frame") or issubclass(thing, Saved)


def test_every_result_shows_itself_in_a_notebook():
    results = {thing.__name__: thing for thing in public_classes() if is_result(thing)}
    assert len(results) > 30
    assert sorted(name for name, thing in results.items() if not issubclass(thing, Shown)) == []
    assert sorted(set(results) - set(MADE)) == []


def test_a_result_that_shows_nothing_is_caught():
    @dataclasses.dataclass(frozen=True)
    class Quiet:
        values: Float[torch.Tensor, " layer"]

    class Framed:
        def to_frame(self) -> None: ...

    assert is_result(Quiet)
    assert is_result(Framed)
    assert not issubclass(Quiet, Shown)
    assert not is_result(Reader)


def test_a_generated_repr_is_caught():
    @dataclasses.dataclass(frozen=True)
    class Loud:
        table: pd.DataFrame

    assert holds_numbers(Loud)
    assert is_generated(Loud)
    assert not is_generated(interp.FiringStats)


def test_the_numbers_in_the_words_are_right():
    assert repr(MADE["FiringStats"]) == (
        "FiringStats(en, de, zh; 2 layers of 2,048 neurons; 65,536 tokens of each language in "
        "2 shards)"
    )
    assert "640 to 720 tokens of each language" in repr(MADE["ActivationMoments"])
    assert repr(MADE["NeuronSelection"]) == (
        "NeuronSelection(en 1, de 2, zh 3; together 3 of 4,096 neurons in 2 layers)"
    )
    assert "en 1, de 2, zh 0 sentences" in repr(MADE["SentenceMeans"])
    # Of both prompts and layers a half, a quarter, none and a quarter.
    shares = "silent 0.50, specific 0.25, partly shared 0.00, all shared 0.25"
    assert shares in repr(MADE["SharingProfile"])
    assert "sums in de, nothing: 1 of 2 right, 0.667 by guessing" in repr(MADE["Choices"])
    assert "sums in de, off: 1 of 2 right" in repr(MADE["Written"])
    assert "unpatched: Montag 0.25, Monday 0.50" in repr(MADE["PatchingResult"])
    assert "0.4 (0.1 to 0.7): holds" in repr(MADE["Claim"])
    assert "1 of 2 checks passed; failed: is left alone" in repr(MADE["Diagnosis"])
    assert "2 texts of 1 prompt, 1 ended by the model" in repr(MADE["Generated"])
    assert "500 done, 0 running, 0 missing, 0 bad" in repr(MADE["Verification"])
    assert repr(Rate(3, 4)).startswith("3 of 4: 0.75 (0.30 to 0.95 at 95 %)")


def test_units_of_other_sites_are_not_called_neurons():
    mask = torch.ones(1, 2, 12, dtype=torch.bool)
    said = repr(interp.NeuronSelection(mask, ("de",), (("post", 8), ("attn_out", 4))))
    assert said == (
        "NeuronSelection(de 24; together 24 of 24 units (post 8, attn_out 4) in 2 layers)"
    )


def test_many_languages_stay_a_few_words():
    codes = tuple(f"l{number}" for number in range(60))
    results = [
        interp.FiringStats(
            fired=whole(1, 60, 1, 1), tokens=torch.full((1, 60), 100), languages=codes
        ),
        selection(codes),
        matrix(codes),
        matrix(codes).losses,
        stability(codes, codes),
    ]
    for each in results:
        assert len(repr(each)) <= CHARACTERS
        assert "l0" in repr(each)
        assert " more" in repr(each)
        assert "l59" not in repr(each)


def test_results_of_nothing_still_say_something():
    nothing = torch.zeros(3, 2, 2048, dtype=torch.bool)
    empty = interp.NeuronSelection(nothing, CODES)
    assert "en 0, de 0, zh 0; together 0 of 4,096" in repr(empty)
    assert texts_of(empty._repr_html_())[-1] == "0"
    unread = interp.prompts.Lens(
        probability=real(0, 2, 3),
        entropy=real(0, 2),
        top=whole(0, 2, 3),
        languages=CODES,
        kept=(),
        alike=(0, 1),
        unspelled=(),
    )
    assert "0 questions" in repr(unread)
    assert repr(Rate(0, 0)) == "0 of 0: nan (0.00 to 1.00 at 95 %)"
    bare = matrix(n_draws=0)
    assert "0 random draws" in repr(bare)
    assert [row[-1] for row in rows_of(bare._repr_html_())[1:]] == ["", "", ""]
    alone = matrix(n_shards=1)
    assert read(alone._repr_html_()).rows == []  # there is no interval
    assert "no table: There is 1 shard" in read(alone._repr_html_()).said
    assert repr(artifacts.Artifact({}, {}, {})) == "Artifact(no tensors; labels: none)"


# ---------------------------------------------------------------- small tables


class Reader(HTMLParser):
    """Tags and texts; complains of a tag that was not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.said = ""
        self.grounds: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "td":
            self.grounds.append(dict(attrs).get("style"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        elif self.open == ["div"]:
            self.said += data


def read(page: str | None) -> Reader:
    assert page is not None
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert reader.tags <= {"div", "table", "thead", "tbody", "tr", "th", "td"}
    assert len({len(row) for row in reader.rows}) <= 1
    return reader


def rows_of(page: str | None) -> list[list[str]]:
    return read(page).rows


def texts_of(page: str | None) -> list[str]:
    return [text for row in rows_of(page) for text in row]


@pytest.mark.parametrize("name", sorted(set(MADE) - {"NeuronPage"}))
def test_a_result_in_a_notebook_is_a_small_table_with_numbers(name: str):
    shown = MADE[name]._repr_html_()
    reader = read(shown)
    assert reader.said.strip().startswith(repr(MADE[name]).split("\n")[0])
    assert "no table" not in reader.said
    assert len(reader.rows) > 1
    if name not in ("Prompts", "Task", "Written"):  # they hold texts
        assert re.search(r"\d", " ".join(text for row in reader.rows[1:] for text in row))
    assert "script" not in reader.tags
    assert "color:" not in shown.replace("background", "")  # text has the notebook's own color
    assert len(shown) < 30_000


def renamed(value: Any) -> Any:
    """The same result with names that are code, in as many languages, layers and tokens as fit."""
    if isinstance(value, str):
        return EVIL + value
    if isinstance(value, tuple) and value and all(isinstance(name, str) for name in value):
        return tuple(f"{EVIL}{number}" for number in range(len(value)))
    return value


WITH_NAMES = [
    name
    for name, result in MADE.items()
    if dataclasses.is_dataclass(result)
    if name not in ("NeuronPage", "Task", "RunPlan", "FiringStats")
]


@pytest.mark.parametrize("name", WITH_NAMES)
def test_no_name_in_a_result_is_a_tag(name: str):
    result = MADE[name]
    names = ("languages", "prompts", "sources", "parts", "spans", "answers", "texts", "ids", "task")
    names += ("changes", "statement", "how", "control_name", "source", "model")
    values = {
        field.name: renamed(getattr(result, field.name))
        for field in dataclasses.fields(result)
        if field.name in names and not (name == "Corpora" and field.name == "languages")
    }
    page = dataclasses.replace(result, **values)._repr_html_()
    read(page)
    assert "<script" not in page
    if "languages" in values:
        assert "&lt;script" in page


@pytest.mark.slow
def test_a_large_result_is_a_small_table():
    codes = tuple(f"{EVIL}{number}" for number in range(60))
    wide = interp.NeuronSelection(torch.ones(60, 126, 10, dtype=torch.bool), codes)
    patched = interp.prompts.PatchingResult(
        value=-real(5, 3, 126, 7, 4),
        top=whole(5, 3, 126, 7),
        unpatched=-real(4),
        own=-real(5, 4),
        sources=codes[:5],
        parts=codes[:3],
        extent="each",
        layers=tuple(range(126)),
        spans=codes[:7],
        answers=codes[:4],
    )
    long = dataclasses.replace(MADE["PositionAttribution"], prompt=tuple(range(1000)))
    long = dataclasses.replace(long, values=real(2, 1000, 8), activations=real(2, 1000, 8))
    texts = ("word " * 10_000,) * 500
    written = Generated(texts=texts, prompts=texts, seeds=(0,) * 500, ended=(True,) * 500)
    for result in (wide, patched, long, written, matrix(codes), Estimate(*[real(90, 90)] * 4, 0.9)):
        page = result._repr_html_()
        assert len(page) < 30_000, type(result)
        assert len(read(page).rows) <= 1 + MOST_CELLS // 8
    assert "more rows" in patched._repr_html_()
    assert "1 in 4 layers" in patched._repr_html_()
    assert "the first 10 of 500 rows" in written._repr_html_()


def test_rates_have_the_intervals_of_the_jackknife():
    fired = torch.tensor([[3, 9], [4, 7], [8, 8]])[:, :, None, None].expand(3, 2, 2, 5).clone()
    fired[:, :, 0, 0] = 0
    tokens = torch.tensor([[10, 20], [11, 22], [12, 19]])
    stats = interp.FiringStats(fired, tokens, ("en", EVIL))
    rate = interp.jackknife(stats, lambda part: part.rate.mean(dim=(1, 2)))
    numbers = [getattr(rate, end) for end in ("value", "low", "high")]
    texts = [f"{v:.3f} ({a:.3f} to {b:.3f})" for v, a, b in zip(*numbers, strict=True)]
    texts = [text.replace("-", "\N{MINUS SIGN}") for text in texts]
    shown = rows_of(stats._repr_html_())
    assert shown[0] == ["language", "tokens", "mean rate", "never fire"]
    assert shown[1:] == [["en", "33", texts[0], "0.1"], [EVIL, "61", texts[1], "0.1"]]
    assert "(" not in "".join(rows_of(stats.shards([0])._repr_html_())[1])  # one shard: no interval


def test_tables_show_the_numbers_of_the_result():
    patched = MADE["PatchingResult"]
    change = patched.log_probability - patched.unpatched
    first = rows_of(patched._repr_html_())[1]
    assert first[:4] == ["source", "resid_post", "last", "Montag"]
    expected = change[0, 0, :, 0, 0].tolist()
    assert [number(text) for text in first[4:]] == pytest.approx(expected, abs=0.005)
    found = MADE["PositionAttribution"]
    shown = rows_of(found._repr_html_())
    assert shown[0] == ["token", "id", "layer 0", "1"]
    for pos, row in enumerate(shown[1:-1]):
        assert row[:2] == [str(pos), str(found.prompt[pos])]
        expected = [found.values[layer, pos].sum().item() for layer in range(2)]
        assert [number(text) for text in row[2:]] == pytest.approx(expected, abs=1)
    profile = rows_of(MADE["SharingProfile"]._repr_html_())
    shares = [[share] * 2 for share in ("0.50", "0.25", "0.00", "0.25")]
    assert [row[1:] for row in profile[1:]] == shares


def number(text: str) -> float:
    return float(text.replace(",", "").replace("\N{MINUS SIGN}", "-"))


def test_a_selection_shows_how_many_in_each_layer():
    shown = read(selection()._repr_html_())
    assert shown.said.strip() == f"{selection()!r}: neurons of each layer"
    assert shown.rows == [
        ["", "all", "layer 0", "1"],
        ["en", "1", "0", "1"],
        ["de", "2", "0", "2"],
        ["zh", "3", "0", "3"],
    ]
    # The most has the deepest ground, none has none.
    assert shown.grounds[0::3] == shown.grounds[1::3] == [None] * 3
    assert [float(each.split(",")[-1].strip(" )")) for each in shown.grounds[2::3] if each] == (
        [0.17, 0.33, 0.5]
    )


def test_a_matrix_shows_what_it_measured_beside_chance():
    found = matrix()
    shown = read(found._repr_html_())
    assert shown.rows[0] == ["off", "neurons", *CODES, "own, random neurons"]
    for row, (code, neurons, *cells, by_chance) in enumerate(shown.rows[1:]):
        assert (code, neurons) == (CODES[row], "7")
        for column, cell in enumerate(cells):
            value = 0.5 if row == column else -0.01
            assert cell.split(" ± ")[0] == f"{value:.3f}"
            reach = found.increase.high[row, column] - found.increase.value[row, column]
            assert cell.split(" ± ")[1] == f"{reach:.3f}"
        assert by_chance.startswith("0.020 ± ")
    grounds = [each for each in shown.grounds if each]
    assert len(grounds) == 9
    assert len({each for each in grounds if "213, 94, 0" in each}) == 1  # rises: orange


def test_a_doctor_and_a_plan_show_all_their_rows():
    doctor = MADE["Diagnosis"]
    shown = rows_of(doctor._repr_html_())
    assert shown[1:] == [["fires", "ok", "0"], ["is left alone", "FAIL", "0.5"]]
    assert [row[0] for row in rows_of(plan()._repr_html_())[1:]] == plan().to_frame()[
        "quantity"
    ].tolist()
    for row in rows_of(plan()._repr_html_())[1:]:
        assert row[1].strip() in str(plan())


def test_names_are_text_and_never_tags():
    shown = [
        interp.NeuronSelection(torch.ones(1, 2, 2, dtype=torch.bool), (EVIL,))._repr_html_(),
        matrix((EVIL, '"><img src=x onerror=y>'))._repr_html_(),
        Diagnosis(EVIL, (Check(EVIL, False, EVIL),))._repr_html_(),
        plan(EVIL)._repr_html_(),
        html_table(EVIL, [EVIL, EVIL], [[EVIL, EVIL], [EVIL, Shaded(EVIL, 1.0)]]),
    ]
    for page in shown:
        reader = read(page)  # which knows no other tags than those of a table
        assert EVIL in reader.said or any(EVIL in text for row in reader.rows for text in row)


def test_a_shade_is_no_deeper_than_can_be_read_on():
    page = html_table("", ["", "", "", ""], [["a", Shaded("1", 9.0), Shaded("2", math.nan), "3"]])
    deep, none, plain = read(page).grounds
    assert deep is not None
    assert deep.endswith("0.50)")
    assert none is plain is None


def test_words_for_names_and_numbers():
    assert listed([]) == "none"
    assert listed("abc") == "a, b, c"
    assert listed(range(5), most=3) == "0, 1, 2 and 2 more"
    assert (counted(0, "row"), counted(1, "row"), counted(2000, "row")) == (
        "0 rows",
        "1 row",
        "2,000 rows",
    )
    assert (ranged([5, 5]), ranged([7000, 5])) == ("5", "5 to 7,000")


# ---------------------------------------------------------------- tables to work with


def test_an_attribution_as_a_table_is_a_row_for_each_layer():
    found = attribution()
    frame = found.to_frame()
    assert list(frame) == ["layer", "shares", "change", "completeness_error"]
    assert frame["layer"].tolist() == [0, 1]
    assert frame["shares"].tolist() == pytest.approx([sum(row) for row in found.values.tolist()])
    assert frame["change"].tolist() == found.change.tolist()


def test_own_against_others_as_a_table_is_a_row_for_each_language():
    own = matrix().diagonal()
    frame = own.to_frame().set_index("language")
    assert tuple(frame.index) == own.languages == CODES
    assert frame["own_minus_others"].tolist() == pytest.approx([0.51] * 3)
    ends = own.own_minus_others.low.tolist(), own.own_minus_others.high.tolist()
    assert (frame["own_minus_others_low"].tolist(), frame["own_minus_others_high"].tolist()) == ends
    assert frame["largest_in_row"].tolist() == [True] * 3
    some = dataclasses.replace(own, largest_in_row=("de",), largest_in_column=())
    assert some.to_frame()["largest_in_row"].tolist() == [False, True, False]
    assert "own is largest in 1 of 3 rows and 0 of 3 columns" in repr(some)


def test_what_was_written_as_a_table_is_a_row_for_each_text():
    frame = MADE["Generated"].to_frame()
    assert frame.to_dict("list") == {
        "prompt": ["", ""],
        "text": ["x", "y"],
        "seed": [0, 1],
        "ended": [True, False],
    }


# ---------------------------------------------------------------- bars


def test_a_bar_waits_two_seconds_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    file = io.StringIO()
    with bars.tqdm(total=2, file=file) as bar:
        bar.update(2)
    assert file.getvalue() == ""
    monkeypatch.setattr(bars, "SECONDS", 0.0)
    with bars.tqdm(total=2, file=file, mininterval=0) as bar:
        bar.update(1)
    *_, shown, blank, end = file.getvalue().split("\r")
    assert "50%|" in shown
    assert (blank.strip(), end) == ("", "")


def test_all_loops_have_that_bar():
    """None has other settings, or a bar of another kind."""
    sources = {path: path.read_text("utf-8") for path in Path(interp.__file__).parent.rglob("*.py")}
    using = [path for path, text in sources.items() if re.search(r"\btqdm\(", text)]
    assert len(using) > 12
    for path, text in sources.items():
        if path.name != "bars.py":
            assert not re.search(r"^\s*(from|import) tqdm", text, re.MULTILINE), path
            assert not re.search(r"\bleave=|\bdelay=", text), path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("llama", tmp_path_factory.mktemp("llama"))


def test_opening_a_small_model_shows_no_bar(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(transformers_logging, "_tqdm_active", True)  # whatever ran before
    capsys.readouterr()
    interp.load(checkpoint)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(bars, "SECONDS", 0.0)  # as if it took its time
    interp.load(checkpoint)
    assert "Loading weights" in capsys.readouterr().err


def test_bars_are_as_before_behind_a_model_and_behind_a_failure(checkpoint, tmp_path):
    asked: list[dict[str, Any]] = []

    def mine(make: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        asked.append(named)
        return make(*positional, **named)

    before = transformers_logging.set_tqdm_hook(mine)
    try:
        interp.load(checkpoint)
        assert [each["delay"] for each in asked] == [bars.SECONDS]
        broken = tiny_models.build("llama", tmp_path)
        (broken / "model.safetensors").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="cannot be read"):
            interp.load(broken)
        assert transformers_logging._tqdm_hook is mine
    finally:
        transformers_logging.set_tqdm_hook(before)
    with bars.bars_of_transformers():
        assert transformers_logging._tqdm_hook is not before
    assert transformers_logging._tqdm_hook is before
