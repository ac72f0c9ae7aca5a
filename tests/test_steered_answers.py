import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import t as student

import interp
from interp.evaluations.steered_answers import SteeredAnswers, _others, steer_answers


def answered(rows: list[tuple], relevance: list[float] | None = None) -> SteeredAnswers:
    """Rows of (to, condition, asked, id, whether it is in the language steered to)."""
    to, condition, asked, ids, forced = zip(*rows, strict=True)
    given = [math.nan] * len(rows) if relevance is None else relevance
    return SteeredAnswers(
        to=to,
        condition=condition,
        asked=asked,
        ids=ids,
        questions=tuple(f"{code} {id}?" for code, id in zip(asked, ids, strict=True)),
        texts=tuple(f"answer {row}" for row in range(len(rows))),
        found=tuple(code if hit else "xx" for code, hit in zip(to, forced, strict=True)),
        relevance=torch.tensor(given, dtype=torch.float64),
    )


def one_condition(forced: list[bool], relevance: list[float] | None = None) -> SteeredAnswers:
    rows = [("de", "neurons", "en", str(id), hit) for id, hit in enumerate(forced)]
    return answered(rows, relevance)


@pytest.fixture
def many() -> SteeredAnswers:
    """Two targets, two conditions, questions asked in two languages or three."""
    rows = [
        (to, condition, asked, str(id))
        for to in ("de", "fr")
        for condition in ("no edit", "neurons")
        for asked in ("en", "de", "zh")
        if asked != to
        for id in range(4)
    ]
    dice = torch.Generator().manual_seed(0)
    forced = (torch.rand(len(rows), generator=dice) < 0.6).tolist()
    relevance = torch.rand(len(rows), generator=dice, dtype=torch.float64).tolist()
    return answered([(*row, hit) for row, hit in zip(rows, forced, strict=True)], relevance)


# ---------------------------------------------------------------- the score


def slowly(answers: SteeredAnswers, measure: str, condition: str, to, without=None) -> float:
    n, forced, relevance, both = 0, 0, 0.0, 0.0
    for row in range(len(answers.ids)):
        chosen = answers.condition[row] == condition and to in (None, answers.to[row])
        if chosen and answers.ids[row] != without:
            hit = answers.found[row] == answers.to[row]
            n, forced = n + 1, forced + hit
            relevance += answers.relevance[row].item()
            both += answers.relevance[row].item() if hit else 0.0
    shares = {"forcing": forced / n, "relevance": relevance / n, "both": both / n}
    ends = (shares["forcing"], shares["relevance"])
    return shares.get(measure, 2 * ends[0] * ends[1] / sum(ends))


@pytest.mark.parametrize("to", ["de", "fr", None])
@pytest.mark.parametrize("minus", [None, "no edit"])
@pytest.mark.parametrize("measure", ["forcing", "relevance", "both", "score"])
def test_an_estimate_leaves_one_question_out_at_a_time(many, measure, minus, to):
    def slow(without: str | None) -> float:
        rest = 0.0 if minus is None else slowly(many, measure, minus, to, without)
        return slowly(many, measure, "neurons", to, without) - rest

    left_out = [slow(id) for id in ("0", "1", "2", "3")]
    middle = sum(left_out) / 4
    error = math.sqrt(3 / 4 * sum((value - middle) ** 2 for value in left_out))
    half = student.ppf(0.975, 3) * error
    found = many.estimate(measure, "neurons", to, minus)
    assert found.value.item() == pytest.approx(slow(None))
    assert found.standard_error.item() == pytest.approx(error)
    assert found.low.item() == pytest.approx(max(0.0 if minus is None else -1, slow(None) - half))
    assert found.high.item() == pytest.approx(min(1, slow(None) + half))


@pytest.mark.parametrize(
    ("forced", "relevance", "score"),
    [
        ([True] * 4, [1.0] * 4, 1.0),
        ([True] * 4, [0.0] * 4, 0.0),
        ([False] * 4, [1.0] * 4, 0.0),
        ([False] * 4, [0.0] * 4, 0.0),
        ([True, True, False, False], [1.0, 1.0, 0.0, 0.0], 0.5),
        ([True] * 4, [0.5] * 4, 2 / 3),
    ],
)
def test_limits_of_the_score(forced, relevance, score):
    found = one_condition(forced, relevance).estimate("score", "neurons")
    assert found.value.item() == pytest.approx(score)


def test_only_both_sees_that_the_forced_answers_are_the_irrelevant_ones():
    judged = one_condition([True, True, False, False], [0.0, 0.0, 1.0, 1.0])
    assert judged.estimate("score", "neurons").value.item() == pytest.approx(0.5)
    assert judged.estimate("both", "neurons").value.item() == 0


def test_twenty_of_twenty_is_not_certain():
    found = one_condition([True] * 20, [1.0] * 20).estimate("score", "neurons")
    assert 0.7 < found.low.item() < 0.9
    assert found.high.item() == 1


def test_a_condition_minus_itself_is_zero(many):
    assert many.estimate("score", "neurons", minus="neurons").value.item() == 0


def test_languages_renamed_rename_the_table(many):
    names = {"de": "sv", "fr": "it", "xx": "xx", "en": "en", "zh": "zh"}
    renamed = replace(
        many,
        to=tuple(names[code] for code in many.to),
        found=tuple(names[code] for code in many.found),
    )
    before, after = many.to_frame(), renamed.to_frame()
    assert after["to"].tolist() == [names.get(code, code) for code in before["to"]]
    assert after.drop(columns="to").equals(before.drop(columns="to"))


def test_the_gain_is_over_no_edit_and_targets_are_pooled_last(many):
    frame = many.to_frame().set_index(["to", "condition"])
    assert list(frame.index) == [
        (to, name) for to in ("de", "fr", "all") for name in ("no edit", "neurons")
    ]
    gain = many.estimate("score", "neurons", "fr", minus="no edit")
    assert frame.loc[("fr", "neurons"), "gain"] == gain.value.item()
    assert frame.loc[("fr", "neurons"), "gain_low"] == gain.low.item()
    assert frame.loc[("all", "neurons"), "answers"] == 20


# ---------------------------------------------------------------- the judge


def test_without_a_judge_forcing_alone_is_reported_and_it_says_so(many):
    unjudged = replace(many, relevance=torch.full_like(many.relevance, torch.nan))
    frame = unjudged.to_frame()
    assert frame[["relevance", "both", "score"]].isna().all(axis=None)
    gain = unjudged.estimate("forcing", "neurons", "de", minus="no edit").value.item()
    assert frame.loc[1, "gain"] == gain
    assert "forcing alone" in unjudged.table()
    assert "forcing alone" in unjudged._repr_html_()
    assert "not judged" in repr(unjudged)
    assert "forcing alone" not in many.table()


def test_a_judge_sees_each_question_with_its_answer_once():
    rows = [("de", "no edit", "en", "1", True), ("fr", "no edit", "en", "1", False)]
    rows += [("de", "no edit", "en", "2", True), ("fr", "no edit", "en", "2", False)]
    answers = replace(answered(rows), texts=("a", "a", "b", "b"))
    asked = []

    def judge(question: str, answer: str) -> int:
        asked.append((question, answer))
        return answer == "a"

    assert answers.judged_by(judge).relevance.tolist() == [1, 1, 0, 0]
    assert asked == [("en 1?", "a"), ("en 2?", "b")]
    assert answers.relevance.isnan().all()  # the answers themselves stay as they are


@pytest.mark.parametrize("given", [2, -0.1, math.nan, "0.5", None])
def test_a_rating_that_is_no_share_is_refused(given):
    with pytest.raises(ValueError, match=r"judge gave .* question '0' asked in en.*from 0 to 1"):
        one_condition([True, False]).judged_by(lambda question, answer: given)


def test_a_judge_that_fails_is_named_with_the_question_it_failed_on():
    def judge(question: str, answer: str) -> float:
        if question == "en 1?":
            raise TimeoutError("no answer")
        return 1.0

    with pytest.raises(ValueError, match=r"question '1' asked in en.*TimeoutError: no answer"):
        one_condition([True, False]).judged_by(judge)


def test_answers_can_be_judged_after_they_were_saved(many, tmp_path):
    many.save(tmp_path / "answers.safetensors")
    loaded = SteeredAnswers.load(tmp_path / "answers.safetensors")
    assert loaded.to_frame().equals(many.to_frame())
    relevance = loaded.judged_by(lambda question, answer: 1.0).relevance
    assert relevance.tolist() == [1.0] * len(many.ids)


# ---------------------------------------------------------------- what is refused


def test_what_cannot_be_asked_is_refused():
    questions = interp.read_prompts({"de": ["Wer?", "Wo?"], "deu_Latn": ["Was?", "Wie?"]}, ["de"])
    for edits, sentence in (
        ({"de": interp.deactivate}, "none can be steered to de"),
        ({"deu_Latn": interp.deactivate}, "none can be steered to deu_Latn"),
        ({"poetry": interp.deactivate}, "cannot recognize poetry"),
    ):
        with pytest.raises(ValueError, match=sentence):
            _others(edits, questions)
    one = interp.read_prompts({"en": ["Who?"]}, ["en"])
    with pytest.raises(ValueError, match="1 question, and an interval"):
        _others({"de": interp.deactivate}, one)
    with pytest.raises(ValueError, match="no answers under 'prompt' towards de, only under neuron"):
        one_condition([True, False]).estimate("forcing", "prompt", "de")
    with pytest.raises(ValueError, match="1 question, and an interval"):
        one_condition([True])


# ---------------------------------------------------------------- a model that can be steered


@pytest.mark.slow
def test_a_push_that_steers_is_told_from_neurons_that_do_not(tmp_path):
    """Babel's residual stream steers its language; a few neurons switched off at random do not."""
    model = interp.load("babel")
    mask = torch.zeros(3, model.n_layers, model.d_mlp, dtype=torch.bool)
    mask[:, 2, :5] = True
    decoys = interp.NeuronSelection(mask, ("en", "de", "fr"))
    edits = {"de": interp.deactivate, "fr": interp.deactivate}
    questions = interp.read_prompts("everyday", ["en", "de"])
    settings = {"strength": 2.0, "max_new_tokens": 24, "progress": False}

    def asked() -> SteeredAnswers:
        out = tmp_path / "out"
        return steer_answers(model, edits, decoys, {}, "babel", questions, out=out, **settings)

    answers = asked()
    pairs = set(zip(answers.asked, answers.to, strict=True))
    assert pairs == {("en", "de"), ("en", "fr"), ("de", "fr")}  # never asked in the target itself
    pushed = answers.estimate("forcing", "residual stream", minus="no edit")
    assert pushed.low.item() > 0.2
    decoy = answers.estimate("forcing", "neurons", minus="no edit")
    assert decoy.low.item() <= 0 <= decoy.high.item() < 0.2
    row = answers.asked.index("de")
    assert answers.questions[row] == questions.texts["de"][0]
    again = asked()  # reads what was saved
    assert again.answers_frame().equals(answers.answers_frame())
