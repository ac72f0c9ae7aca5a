"""Every public name shows how it is used, and what it shows is true.

An example is a `>>>` line in the docstring, with what it prints. It may use what everybody has by
then, and nothing else:

    interp, torch, Path
    model        Babel, in 32 bits; where a function takes it, the bare model of TransformerLens,
                 of which `as_model` makes the other (test_doors)
    text         a little running text in three languages (Corpora)
    stats        its FiringStats, and `moments`, its ActivationMoments
    means        SentenceMeans of a few sentences, at the gate
    neurons      the neurons of the three languages, by LAPE (NeuronSelection)
    generator    a torch.Generator with seed 0
    folder       an empty folder
"""

import doctest
import inspect
import io
import typing
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import interp
from interp.models.bare_model import BareModel
from interp.models.neuron_model import NeuronModel
from tests.conftest import LOCK

NEEDS = {"run_harness": "lm_eval", "actor_pool": "ray"}
"""Examples of what is an extra, and what must be installed for them; it may warn as it likes."""

LANGUAGES = ("en", "de", "zh")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public() -> dict[str, Any]:
    """What has a docstring of its own: functions and classes, no modules and no values."""
    folders = [getattr(interp, name) for name in interp.__all__]
    spaces = [interp, *(each for each in folders if inspect.ismodule(each))]
    found = {name: getattr(space, name) for space in spaces for name in space.__all__}
    found = {name: thing for name, thing in found.items() if name not in interp.plots.__all__}
    return {
        name: each
        for name, each in found.items()
        if inspect.isclass(each) or inspect.isfunction(inspect.unwrap(each))
    }


def methods() -> dict[str, Any]:
    """Methods and properties of public classes, by `Class.method`, that have examples too."""
    return {
        f"{name}.{key}": value
        for name, thing in public().items()
        if inspect.isclass(thing)
        for key, value in vars(thing).items()
        if isinstance(value, property | staticmethod) or inspect.isfunction(value)
        if not key.startswith("_") and examples(value)
    }


def doors() -> dict[str, tuple[Any, str]]:
    """Public functions and methods that take a model, each with the name of that parameter."""
    found = {}
    for name, function in functions().items():
        for parameter, hint in typing.get_type_hints(inspect.unwrap(function)).items():
            allowed = [hint, *typing.get_args(hint)]
            if parameter != "return" and (NeuronModel in allowed or BareModel in allowed):
                found[name] = (function, parameter)
    return found


def functions() -> dict[str, Any]:
    """Everything public that can be called; classes by `__init__`, static methods unwrapped."""
    found = {}
    for name, thing in public().items():
        if not inspect.isclass(thing):
            found[name] = thing
            continue
        for key, value in vars(thing).items():
            value = getattr(value, "__func__", value)
            own = not key.startswith("_") or (key == "__init__" and not is_dataclass(thing))
            if own and inspect.isfunction(value) and thing is not NeuronModel:
                found[f"{name}.{key}"] = value
    return found


def examples(thing: object) -> list[doctest.Example]:
    """Of its own docstring; what it inherits does not count."""
    return doctest.DocTestParser().get_examples(inspect.cleandoc(thing.__doc__ or ""))


def failures(name: str, shown: list[doctest.Example], namespace: dict[str, Any]) -> str:
    """What is not as shown; empty: all is. A warning that points at an example points at ours."""
    said = io.StringIO()
    lines = {"__name__": "interp.examples", **namespace}
    test = doctest.DocTest(shown, lines, name, None, None, None)
    doctest.DocTestRunner(optionflags=OPTIONS, verbose=False).run(test, out=said.write)
    return said.getvalue()


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("examples")
    model = interp.load("babel", dtype=torch.float32)  # on a CPU several times as fast as 16 bits
    text = interp.read_corpora(
        "babel", LANGUAGES, model, block_length=64, n_shards=5, tokens=640, progress=False
    )
    run = interp.collect(
        model, text, folder / "text", keep=interp.Keep(moments=True), progress=False
    )
    rows = interp.read_sentences(
        "babel", LANGUAGES, model, sentences=20, n_shards=2, progress=False
    )
    keep = interp.Keep(sentence_means=("pre",))
    by_sentence = interp.collect(model, rows, folder / "sentences", keep=keep, progress=False)
    return {
        "interp": interp,
        "torch": torch,
        "Path": Path,
        "model": model,
        "text": text,
        "stats": run.firing,
        "moments": run.moments,
        "means": by_sentence.sentence_means,
        "neurons": interp.select_by_entropy(run.firing, fraction=0.03),
    }


_OF_GRADIENTS = ("LossEffects", "HeadEffects")
WITH_GRADIENTS = {f"{name}{end}" for name in _OF_GRADIENTS for end in ("", ".from_caches")}
"""Examples whose caches hold gradients, which a bare model with frozen weights does not give."""

OF_A_MODEL = {
    name
    for name in {**public(), **methods()}.keys() - WITH_GRADIENTS - NEEDS.keys()
    if any(f"{door}.".startswith(f"{name}.") for door in doors())
}
"""Functions that take a model, and classes with a method that does."""


@pytest.fixture(scope="module")
def bare() -> Any:
    """What `interp.load` wraps; what it lacks is added, as readers would."""
    model = interp.load("babel", dtype=torch.float32)
    for name in ("encode", "decode", "logits", "bos_id", "n_layers", "d_mlp"):
        vars(model.bridge)[name] = getattr(model, name)
    return model.bridge


@pytest.fixture
def names(
    name: str,
    namespace: dict[str, Any],
    bare: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """What an example may use."""
    own = {"generator": torch.Generator().manual_seed(0), "folder": tmp_path}
    if name not in OF_A_MODEL:
        return namespace | own

    def load(name: Any, **settings: Any) -> Any:
        if name == "babel" and settings.get("attention") == "hooked":
            return load_other(name, **settings).bridge
        return bare if name == "babel" else load_other(name, **settings)

    load_other = interp.load
    monkeypatch.setattr(interp, "load", load)
    return namespace | own | {"model": bare}


def test_every_public_name_has_an_example():
    assert [name for name, thing in public().items() if not examples(thing)] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.filterwarnings("ignore")) if name in NEEDS else name
        for name in {**public(), **methods()}
    ],
)
def test_the_example_is_true(
    name: str, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    said = failures(name, examples({**public(), **methods()}[name]), names)
    assert said == "", said


def test_a_false_example_is_caught():
    def half(number: float) -> float:
        """Half of it.

        >>> half(3)
        1.0
        """
        return number / 2

    assert "Expected:" in failures("half", examples(half), {"half": half})
    assert failures("half", examples(half), {"half": lambda number: 1.0}) == ""


@pytest.mark.skipif(not LOCK.is_file(), reason="warnings are errors in a locked environment")
def test_an_example_that_warns_is_caught():
    shown = doctest.DocTestParser().get_examples(">>> import warnings\n>>> warnings.warn('old')\n")
    assert "old" in failures("warning", shown, {})


def test_an_example_leaves_nothing_for_the_next():
    namespace: dict[str, Any] = {"kept": 1}
    shown = doctest.DocTestParser().get_examples(">>> kept = 2\n>>> other = 3\n")
    assert failures("one", shown, namespace) == ""
    assert namespace == {"kept": 1}
