"""Any task of the Language Model Evaluation Harness (EleutherAI's lm-eval), under any intervention.

The harness runs the module that carries the hooks, so its batching, request types and chat
templates work unchanged. It is an optional dependency: pip install polyneuron[eval].
"""

import copy
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from interp.inference.intervals import mean_over_examples
from interp.interventions.edits import Change
from interp.interventions.under import Under, applied, check_under
from interp.models.any_model import AnyModel, as_model
from interp.models.hooked_transformer import HookedTransformerModel
from interp.models.neuron_model import NeuronModel
from interp.results.display import Shown, counted, listed
from interp.results.words import NOTHING


@dataclass(frozen=True, kw_only=True, eq=False)
class HarnessScores(Shown):
    """Scores that the harness measured, and the value of every example.

    >>> import pandas as pd
    >>> right = {"nothing": (1.0, 1.0, 0.0), "off": (1.0, 0.0, 0.0)}  # three examples
    >>> named = {"task": "sums", "metric": "acc", "filter": "none"}
    >>> rows = [{"intervention": name, **named, "doc": doc, "value": value}
    ...         for name, values in right.items() for doc, value in enumerate(values)]
    >>> samples = pd.DataFrame(rows)
    >>> keys = ["intervention", *named]
    >>> scores = samples.groupby(keys, as_index=False)["value"].mean()
    >>> results = interp.evaluations.HarnessScores(scores=scores, samples=samples)
    >>> results
    HarnessScores(sums; nothing, off; 3 examples)
    >>> results.to_frame()["difference"].round(2).tolist()
    [0.0, -0.33]
    """

    scores: pd.DataFrame
    """One row per intervention, task and metric; `metric` and `filter` as the harness names them,
    `value` as it prints it."""

    samples: pd.DataFrame
    """One row per intervention, task, metric, filter and example (`doc`), for metrics with one
    number per example; others, such as corpus BLEU, are only in `scores`."""

    def __repr__(self) -> str:
        tasks, under = (listed(self.scores[name].unique()) for name in ("task", "intervention"))
        examples = len(self.samples.drop_duplicates(["task", "doc"]))
        return f"HarnessScores({tasks}; {under}; {counted(examples, 'example')})"

    def to_frame(self, level: float = 0.95) -> pd.DataFrame:
        """The scores, with intervals over examples, and differences from the first intervention.

        `low` and `high` are of the mean over examples; `difference` is paired: the same examples
        under both. NaN: the metric is not a mean over examples, or there is only one example.
        """
        keys = ["task", "metric", "filter"]
        first = self.scores["intervention"].iloc[0]
        rows = []
        for row in self.scores.to_dict("records"):
            named = {key: row[key] for key in keys}
            values, base = (self._examples(name, named) for name in (row["intervention"], first))
            columns = _interval("", values, level)
            if not math.isclose(columns.pop(""), row["value"], rel_tol=1e-6, abs_tol=1e-9):
                columns = dict.fromkeys(columns, math.nan)  # not a mean, such as perplexity
            columns |= _interval("difference", values - base, level)
            if math.isnan(columns["low"]):
                columns |= dict.fromkeys(list(columns), math.nan)
            rows.append({**row, **columns})
        return pd.DataFrame(rows)

    def _examples(self, intervention: str, named: Mapping[str, Any]) -> pd.Series:
        """One metric per example, ordered by example number."""
        selected = self.samples["intervention"] == intervention
        for key, value in named.items():
            selected &= self.samples[key] == value
        docs, values = (self.samples.loc[selected, name].tolist() for name in ("doc", "value"))
        return pd.Series(values, index=docs, dtype="float64").sort_index()


def run_harness(
    model: AnyModel,
    tasks: Sequence[str],
    under: Under | None = None,
    *,
    include_path: Path | str | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 16,
    **settings: Any,
) -> HarnessScores:
    """Run harness tasks, by name, under each intervention; the first intervention is the reference.

    Changes must be at all tokens (tokens="all"), since the harness does not mark the prompt.
    `include_path` is a folder of your own task files (YAML); then only these are available, and
    nothing is downloaded unless they ask for it. `settings`, such as `apply_chat_template=True`, go
    to `lm_eval.simple_evaluate`.

    The numbers are the harness's own. It lets the tokenizer add special tokens; where that adds a
    beginning-of-text token, a text that is scored as a whole gets a second one, which is predicted
    and counted.

    >>> import json
    >>> row = {"text": "One plus one is", "options": [" two", " three"], "answer": 0}
    >>> _ = (folder / "sums.json").write_text(json.dumps(row))
    >>> task = {"task": "sums", "output_type": "multiple_choice", "target_delimiter": ""}
    >>> task |= {"doc_to_text": "{{text}}", "doc_to_choice": "options", "doc_to_target": "answer"}
    >>> task |= {"dataset_path": "json", "test_split": "test"}
    >>> task["dataset_kwargs"] = {"data_files": {"test": str(folder / "sums.json")}}
    >>> _ = (folder / "sums.yaml").write_text(json.dumps(task))  # JSON is YAML
    >>> under = {"nothing": None, "off": neurons.change("en", interp.deactivate)}
    >>> interp.evaluations.run_harness(model, ["sums"], under, include_path=folder)
    HarnessScores(sums; nothing, off; 1 example)
    """
    model = as_model(model)
    if isinstance(model, HookedTransformerModel):
        raise ValueError(
            f"The harness runs Hugging Face modules, and {model.name} is a HookedTransformer: open "
            "it with interp.load(name)."
        )
    if isinstance(tasks, str) or not tasks:
        raise ValueError(f"tasks is {tasks!r}: give a list of one or more task names.")
    named = check_under(model, {NOTHING: None} if under is None else under)
    given = [change for changes in named.values() for change in changes]
    at = {change.tokens for change in given if isinstance(change, Change)}
    if other := at - {"all"}:
        raise ValueError(
            f'The harness does not mark the prompt: give changes with tokens="all", not '
            f"{other.pop()!r}."
        )
    evaluate = _evaluator(model, batch_size, include_path)
    scores, samples = [], []
    for name, changes in named.items():
        with applied(changes, model):
            output = evaluate(
                tasks=list(tasks),
                limit=limit,
                num_fewshot=num_fewshot,
                bootstrap_iters=0,  # intervals come from the examples
                log_samples=True,
                **settings,
            )
        scores += _scores(name, output["results"])
        samples += _samples(name, output["samples"])
    columns = ["intervention", "task", "metric", "filter", "doc", "value"]
    return HarnessScores(
        scores=pd.DataFrame(scores), samples=pd.DataFrame(samples, columns=columns)
    )


def _evaluator(
    model: NeuronModel, batch_size: int, include_path: Path | str | None
) -> Callable[..., dict[str, Any]]:
    """`lm_eval.simple_evaluate` of this model, with the harness's tasks or your own."""
    try:
        names = ("lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks")
        package, models, tasks = map(importlib.import_module, names)
    except ImportError:
        raise ImportError(
            "Harness tasks need lm-eval, which is not installed: pip install polyneuron[eval]"
        ) from None
    # The harness sets a padding token on its tokenizer, so it gets a copy.
    wrapped = models.HFLM(
        pretrained=model.bridge.original_model,
        tokenizer=copy.deepcopy(model.tokenizer),
        batch_size=batch_size,
        max_length=model.max_length,
    )
    manager = tasks.TaskManager(
        include_path=None if include_path is None else str(include_path),
        include_defaults=include_path is None,
    )
    return partial(package.simple_evaluate, model=wrapped, task_manager=manager)


def _scores(intervention: str, results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Entries such as "acc,none"; standard errors and names are left out."""
    rows = []
    for task, entries in results.items():
        for key, value in entries.items():
            metric, comma, filtered = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
                named = {"intervention": intervention, "task": task, "metric": metric}
                rows.append({**named, "filter": filtered, "value": float(value)})
    return rows


def _samples(
    intervention: str, samples: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    rows = []
    for task, examples in samples.items():
        for example in examples:
            named = {"intervention": intervention, "task": task, "filter": example["filter"]}
            for metric in example["metrics"]:
                value = example[metric]
                if isinstance(value, int | float):
                    row = {"metric": metric, "doc": example["doc_id"], "value": float(value)}
                    rows.append({**named, **row})
    return rows


def _interval(name: str, values: pd.Series, level: float) -> dict[str, float]:
    """Mean and interval; NaN where there are fewer than two examples."""
    columns = (name, f"{name}_low".lstrip("_"), f"{name}_high".lstrip("_"))
    if len(values) < 2:
        return dict.fromkeys(columns, math.nan)
    mean = mean_over_examples(torch.tensor(values.to_list(), dtype=torch.float64), level=level)
    numbers = (mean.value.item(), mean.low.item(), mean.high.item())
    return dict(zip(columns, numbers, strict=True))
