"""How a text begins: with what the tokenizer puts there, in every function."""

import inspect
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import models as token_models
from tokenizers import pre_tokenizers, processors

import interp
from interp import cli
from interp.commands.options import Parser
from interp.evaluations.losses import losses_under
from interp.models.beginning import Beginning, measure_beginning
from interp.models.load import load
from interp.models.neuron_model import NeuronModel
from interp.models.prefix import bos_of, prefix_of
from interp.prompts.alignment import align_prompts
from interp.prompts.attribution import integrated_gradients_by_position
from interp.prompts.targets import target_ids
from interp.text.tokens import against_the_tokenizer, beginning, prompt_ids
from tests import tiny_models
from tests.tiny_models import BOS, EOS, RESERVED

TEXTS = ("the quiet end of the day", "another end", "und der Tag", "in the den the hen")
LINES = {"en": list(TEXTS), "de": [text.upper() for text in TEXTS]}

TEMPLATES = {
    "nothing": ("$A", ()),
    "one": ("<bos> $A", (BOS,)),
    "another": ("<eos> $A", (EOS,)),  # XGLM names <s> and puts </s>
    "two": ("<reserved> <bos> $A", (RESERVED, BOS)),
    "an end": ("$A <eos>", ()),
    "both ends": ("<bos> $A <eos>", (BOS,)),
    "the same at both ends": ("<eos> $A <eos>", (EOS,)),
}
"""Name → template, and what it puts before a text."""


def shown(template: str) -> Any:
    tokenizer = tiny_models.tokenizer()
    special = [
        (name, id) for id, name in enumerate(tiny_models.SPECIAL) if name in template.split()
    ]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair="$A $B", special_tokens=special
    )
    return tokenizer


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> NeuronModel:
    """A tiny model whose tokenizer has the template that the test names."""
    folder = tmp_path_factory.mktemp("begins")
    tiny_models.build("llama", folder)
    shown(TEMPLATES[request.param][0]).save_pretrained(folder)
    return load(folder)


def read(command: str, *arguments: str) -> Any:
    """A subcommand with its options."""
    return Parser(command, cli.COMMANDS[command]).read(arguments)


def on(*names: str) -> Any:
    return pytest.mark.parametrize("model", names, indirect=True)


# ---------------------------------------------------------------- what the tokenizer puts there


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("space", [False, True])
def test_what_a_tokenizer_puts_before_a_text_is_found(name: str, space: bool):
    template, expected = TEMPLATES[name]
    tokenizer = shown(template)
    # A space of its own before every text, as SentencePiece writes it, is text.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.ByteLevel(add_prefix_space=space)]
    )
    assert prefix_of(tokenizer) == expected
    named = expected or (BOS,)
    assert bos_of(tokenizer) == (BOS if BOS in named else named[0])
    for text in TEXTS:  # the definition
        whole = tokenizer(text)["input_ids"]
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert whole[: len(expected) + len(bare)] == [*expected, *bare]


def test_a_tokenizer_without_special_tokens_puts_nothing():
    tokenizer = shown("$A")
    tokenizer.bos_token = None
    assert (prefix_of(tokenizer), bos_of(tokenizer)) == ((), None)
    tokenizer = shown("<reserved> $A")
    tokenizer.bos_token = None  # it puts a token that it does not name
    assert (prefix_of(tokenizer), bos_of(tokenizer)) == ((RESERVED,), RESERVED)
    assert (prefix_of(None), bos_of(None)) == ((), None)


def test_letters_that_a_tokenizer_does_not_know_are_no_prefix():
    tokenizer = shown("<bos> $A")
    vocabulary = {token: id for id, token in enumerate([*tiny_models.SPECIAL, "<unk>", "der"])}
    tokenizer.backend_tokenizer.model = token_models.WordLevel(vocabulary, unk_token="<unk>")
    assert tokenizer("a")["input_ids"] == tokenizer("b")["input_ids"] == [BOS, 4]
    assert prefix_of(tokenizer) == (BOS,)


# ---------------------------------------------------------------- the setting


@on("nothing", "one", "another", "two")
def test_a_prompt_begins_as_the_setting_says(model: NeuronModel):
    prefix, text = model.prefix_ids, model.encode(TEXTS[0])
    assert prompt_ids(model, TEXTS[0]) == model.tokenizer(TEXTS[0])["input_ids"]
    assert prompt_ids(model, TEXTS[0]) == [*prefix, *text]
    assert prompt_ids(model, TEXTS[0], "none") == text
    for bos in ("document", "block"):
        assert prompt_ids(model, TEXTS[0], bos) == [*(prefix or (BOS,)), *text]
    assert prompt_ids(model, text, "document") == text  # ids are left as they are
    with pytest.raises(ValueError, match="bos must be one of auto, none, document, block, not 'b"):
        inspect.unwrap(beginning)(model, "bos")  # pyright: ignore[reportArgumentType]


@on("nothing", "one", "another", "two")
def test_rows_begin_as_the_setting_says_and_no_such_token_counts(model: NeuronModel):
    prefix, settings = model.prefix_ids, {"n_shards": 1, "hygiene": "off", "progress": False}
    blocks: dict[Any, Any] = {
        bos: interp.read_corpora(LINES, ("en", "de"), model, block_length=8, bos=bos, **settings)
        for bos in ("auto", "none", "document", "block")
    }
    auto, none = (blocks[bos].rows["en"].ids for bos in ("auto", "none"))
    assert (auto[:, : len(prefix)] == torch.tensor(prefix, dtype=torch.int32)).all()
    stream = none.flatten().tolist()
    assert auto[:, len(prefix) :].flatten().tolist()[:20] == stream[:20]
    assert (blocks["auto"].bos, blocks["auto"].prefix_ids) == ("auto", prefix)
    assert blocks["auto"].tokens()["en"] == len(auto) * (8 - len(prefix))
    assert not set(stream) & set(tiny_models.SPECIAL)
    first = prefix or (BOS,)
    assert (blocks["block"].rows["en"].ids[:, 0] == first[0]).all()
    assert (blocks["document"].rows["en"].ids == first[-1]).sum() >= 3
    for corpora in blocks.values():
        kept = [
            id
            for rows in corpora.rows.values()
            for id in rows.ids[corpora.keep(rows.ids, rows.length)].tolist()
        ]
        assert not set(kept) & {BOS, EOS, RESERVED}
    sentences = interp.read_sentences(LINES, ("en", "de"), model, **settings)
    prompts = interp.text.prompt_rows(interp.read_prompts(LINES, ["en", "de"]), model)
    for corpora in (sentences, prompts):
        rows = {tuple(row[:n].tolist()) for row, n in zip(
            corpora.rows["en"].ids, corpora.rows["en"].length.tolist(), strict=True)}  # fmt: skip
        assert rows == {tuple(model.tokenizer(text)["input_ids"]) for text in TEXTS}
        assert corpora.tokens()["en"] == sum(len(model.encode(text)) for text in TEXTS)
        assert corpora.languages_only(["de"]).prefix_ids == prefix


@on("two")
def test_losses_and_statistics_leave_out_what_is_put_before_text(model: NeuronModel):
    corpora = interp.read_sentences(
        LINES, ("en",), model, n_shards=1, hygiene="off", progress=False
    )
    losses = losses_under(model, corpora, {"nothing": None}, progress=False)
    rows = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    nats = sum(model.losses(torch.tensor([ids]))[0, 1:].sum().item() for ids in rows)
    assert losses.nats.item() == pytest.approx(nats, rel=1e-4)
    assert losses.tokens.item() == sum(len(model.encode(text)) for text in TEXTS)
    keep = interp.Keep(sentence_means=("pre",))
    run = interp.collect(model, corpora, keep=keep, progress=False)
    assert run.firing.tokens.sum().item() == losses.tokens.item()
    assert run.bos == "auto"
    assert run.provenance["bos"] == {"setting": "auto", "ids": [RESERVED, BOS]}
    pre = model.run_with_cache(torch.tensor([rows[0]]))[1]["blocks.0.mlp.hook_pre"][0, 2:]
    distance = (run.sentence_means.read("pre", 0) - pre.mean(dim=0)).abs().max(dim=1).values
    assert distance.min() < 1e-5


# ---------------------------------------------------------------- one prompt


@on("another", "two")
def test_a_prompt_given_as_text_equals_the_tokens_that_the_tokenizer_gives(model: NeuronModel):
    text, ids = TEXTS[0], model.tokenizer(TEXTS[0])["input_ids"]
    bare = model.encode(text)
    assert target_ids(model, text, " the end") == target_ids(model, bare, " the end")
    shares = [
        interp.integrated_gradients(model, prompt, 9, 3).values for prompt in (text, ids, bare)
    ]
    assert torch.equal(shares[0], shares[1])
    assert not torch.equal(shares[0], shares[2])
    none = interp.integrated_gradients(model, text, 9, 3, bos="none")
    assert torch.equal(none.values, shares[2])
    by_position = integrated_gradients_by_position(model, text, 9, 3)
    assert by_position.values.shape[1] == len(bare)
    assert by_position.prompt == tuple(ids)
    answers = {"one": 9, "other": 12}
    patched = [
        interp.patch(model, TEXTS[1], target, answers).log_probability for target in (text, ids)
    ]
    assert torch.equal(*patched)
    without = interp.patch(model, TEXTS[1], text, answers, bos="none").log_probability
    assert not torch.equal(without, patched[0])
    question = interp.prompts.Question(text, {"en": "the", "de": "quiet"})
    lens = [
        interp.logit_lens(model, [question._replace(prompt=prompt)]).probability
        for prompt in (text, ids)
    ]
    assert torch.equal(*lens)


@on("two")
def test_no_span_holds_what_is_put_before_text(model: NeuronModel):
    text = TEXTS[0]
    n = len(model.encode(text))
    whole = tuple(range(2, 2 + n))
    assert [span.target for span in align_prompts(model, text, text, "all")] == [whole]
    single = align_prompts(model, text, text, "tokens")
    assert [span.target for span in single] == [(position,) for position in whole]
    mixed = align_prompts(model, model.encode(text), text, "tokens")
    assert [(span.source, span.target) for span in mixed] == [((n,), (n + 2,)) for n in range(n)]


@on("nothing", "one")
def test_a_result_against_the_tokenizer_is_said_to_be(model: NeuronModel):
    sentences = {bos: against_the_tokenizer(model, bos) for bos in ("auto", "none", "document")}
    assert not sentences["auto"]
    if model.prefix_ids:
        assert sentences["none"].startswith("Read without <bos>, which the tokenizer of ")
        assert not sentences["document"]
    else:
        assert not sentences["none"]
        assert sentences["document"].startswith("Read with <bos> before each document, where ")


# ---------------------------------------------------------------- what the model wants


def test_the_doctor_measures_with_and_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny_models.build("llama", tmp_path)
    shown("<bos> $A").save_pretrained(tmp_path)
    model = load(tmp_path)
    monkeypatch.setattr("interp.models.beginning._sentences", lambda: list(TEXTS))
    found = measure_beginning(model)
    assert found is not None
    assert (found.tokens, found.put_by_tokenizer) == ("<bos>", True)
    nats: dict[bool, list[float]] = {True: [], False: []}
    for text in TEXTS:
        for put, ids in ((True, [BOS, *model.encode(text)]), (False, model.encode(text))):
            shares = model.logits(torch.tensor([ids]))[0].log_softmax(-1)
            first = 2 if put else 1  # the same tokens: all but the first of the text
            nats[put] += [-shares[n - 1, ids[n]].item() for n in range(first, len(ids))]
    assert len(nats[True]) == len(nats[False])
    assert found.loss_with == pytest.approx(sum(nats[True]) / len(nats[True]), rel=1e-4)
    assert found.loss_without == pytest.approx(sum(nats[False]) / len(nats[False]), rel=1e-4)


@pytest.mark.parametrize(
    ("put", "losses", "verdict"),
    [
        (True, (3.94, 6.19), "The tokenizer puts it there; the model wants it."),
        (True, (6.19, 3.94), 'the model does better without it: use bos="none".'),
        (False, (3.94, 6.19), 'does not put it there; the model wants it: use bos="document".'),
        (False, (6.19, 3.94), "does not put it there; the model does better without it."),
        (True, (3.94, 3.941), "for this model it makes no difference."),
        (True, (float("nan"), 1.0), "for this model it makes no difference."),
    ],
)
def test_the_doctor_says_what_the_model_wants(put: bool, losses: Any, verdict: str):
    found = Beginning(
        tokens="<bos>", put_by_tokenizer=put, loss_with=losses[0], loss_without=losses[1]
    )
    assert str(found).endswith(verdict)
    assert str(found).startswith(f"A text begins with <bos>? {losses[0]:.2f} nats per token with")


@on("one")
def test_the_doctor_shows_it(model: NeuronModel):
    diagnosis = interp.doctor(model)
    assert diagnosis.beginning is not None
    assert str(diagnosis).endswith(str(diagnosis.beginning))
    assert "&lt;bos&gt;" in diagnosis._repr_html_()
    model.tokenizer.bos_token = None
    model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    assert measure_beginning(model) is None


# ---------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, text, a task, and runs that begin text as the tokenizer does, and that do not."""
    place = tmp_path_factory.mktemp("place")
    tiny_models.build("llama", place / "model")
    (place / "text").mkdir()
    (place / "task").mkdir()
    words = ("the", "den", "der", "in", "ein", "chat", "quiet", "end", "hen", "la")
    for code, step in (("en", 1), ("de", 3)):
        lines = [
            " ".join(words[(n * step + k * (n + 1)) % 10] for k in range(12)) for n in range(40)
        ]
        (place / "text" / f"{code}.txt").write_text("\n".join(lines), encoding="utf-8")
        items = [
            {"id": f"{n}", "text": line[:20], "endings": [" the", " den"], "answer": n % 2}
            for n, line in enumerate(lines[:3])
        ]
        (place / "task" / f"{code}.jsonl").write_text(
            "\n".join(map(json.dumps, items)), encoding="utf-8"
        )
    for name, more in (("auto", ()), ("none", ("--bos", "none"))):
        cli.main(
            ["collect", str(place / "model"), "--text", str(place / "text"), "--languages", "en",
             "de", "--n-shards", "2", "--block-length", "16", "--hygiene", "off", "--moments",
             "--out", str(place / name), *more]
        )  # fmt: skip
        cli.main(["find", str(place / name), "--fraction", "0.05", "--busy-quantile", "0.6"])
    return place


def test_a_run_keeps_how_its_text_began(place: Path):
    for name, ids in (("auto", [BOS]), ("none", [])):
        run = interp.Run.open(place / name)
        assert run.bos == name
        assert run.provenance["bos"] == {"setting": name, "ids": ids}
        assert json.loads((place / name / "run.json").read_text())["bos"]["ids"] == ids
        assert run.provenance["settings"]["bos"] == name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["auto", "none"])
def test_what_follows_on_a_run_begins_text_alike(place: Path, name: str, tmp_path: Path, capsys):
    seen: list[Any] = []
    model = str(place / "model")
    reads = {
        "deactivate": (interp, "read_corpora"),
        "steer": (interp.evaluations, "steer_towards"),
        "evaluate": (interp.evaluations, "ablate_tasks"),
        "patch": (interp, "patch"),
    }
    arguments = {
        "deactivate": [str(place / name), model],
        "steer": [str(place / name), model],
        "evaluate": [str(place / name), model, "--tasks", str(place / "task")],
        "patch": ["the end", "the hen", model, "--answers", " der", " la", "--part", "neurons",
                  "--neurons", str(place / name), "--language", "en"],
    }  # fmt: skip

    def caught(*args: Any, bos: str, **settings: Any) -> None:
        seen.append(bos)
        raise InterruptedError

    for command, (owner, function) in reads.items():
        for more in ([], ["--bos", "document"]):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(owner, function, caught, raising=False)
                with pytest.raises(InterruptedError):
                    read(command, *arguments[command], *more).run()
        assert seen[-2:] == [name, "document"], command


@pytest.mark.slow
def test_a_table_made_against_the_tokenizer_says_so(place: Path, tmp_path: Path, capsys):
    text = ["--text", str(place / "text"), "--n-shards", "2", "--block-length", "16"]
    model, folder = str(place / "model"), str(place / "none")
    for more, said in (([], True), (["--bos", "auto"], False)):
        out = tmp_path / str(said)
        cli.main(["deactivate", folder, model, *text, "--n-draws", "1", "--out", str(out), *more])
        assert ("Read without <bos>, which the tokenizer" in capsys.readouterr().out) == said


def test_every_template_differs_from_every_other():
    encoded = [tuple(shown(template)("the")["input_ids"]) for template, _ in TEMPLATES.values()]
    assert all(one != other for one, other in itertools.combinations(encoded, 2))
