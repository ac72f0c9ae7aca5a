"""What a mixture of experts does not have is refused in a sentence, before anything is computed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import interp
from interp.counting.keep import Keep
from interp.models.load import load
from interp.models.mixture_model import MixtureModel
from interp.prompts.ending import Ending
from interp.text.corpora import Corpora
from interp.text.reading import prompt_rows
from interp.text.sources import read_prompts
from tests import tiny_models

PROMPT, ANSWER = "the dog sees", " a moon"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(tiny_models.build("qwen3_moe", tmp_path_factory.mktemp("mixture")))


@pytest.fixture(scope="module")
def rows(model: MixtureModel) -> Corpora:
    lists = {"en": [PROMPT, "a cat"], "de": ["der Hund sieht", "eine Katze"]}
    return prompt_rows(read_prompts(lists, ["en", "de"]), model)


@pytest.mark.parametrize(
    "keep",
    [
        Keep(sign_cases=True),
        Keep(negative_side=True),
        Keep(histograms=True),
        Keep(loss_effects=True),
        Keep(heads=True),
        Keep(sentence_means=("resid_post",)),
        Keep(signs="gate"),
    ],
    ids=["cases", "negative", "histograms", "effects", "heads", "means", "signs"],
)
def test_of_neurons_only_firing_moments_and_contexts_are_kept(
    model: MixtureModel, rows: Corpora, keep: Keep
):
    with pytest.raises(ValueError, match="of which only firing, moments and contexts are kept"):
        interp.collect(model, rows, keep=keep, progress=False)


ASKED: dict[str, Callable[[MixtureModel, Corpora], object]] = {
    "integrated gradients": lambda model, rows: interp.integrated_gradients(model, PROMPT, ANSWER),
    "gradient times activation": lambda model, rows: interp.prompts.gradient_times_activation(
        model, PROMPT, ANSWER, "log_probability"
    ),
    "contributions": lambda model, rows: interp.prompts.contribution_score(
        model, torch.zeros(model.n_layers, model.d_mlp)
    ),
    "neurons at the end of a prompt": lambda model, rows: Ending(
        model, torch.tensor(model.encode(PROMPT)), kinds=("post",)
    ),
    "sharing over tokens": lambda model, rows: interp.scores.sharing_over_tokens(model, rows),
    "activations": lambda model, rows: model.act(0, torch.zeros(3)),
    "weights": lambda model, rows: model.w_out(0),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_needs_neurons_on_every_token_is_refused(
    model: MixtureModel, rows: Corpora, what: str
):
    with pytest.raises(ValueError, match="is a mixture of experts"):
        ASKED[what](model, rows)
