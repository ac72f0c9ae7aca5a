"""Which neurons are shared between languages, and do the shared ones carry the answer?

    python -m experiments.map_shared_neurons tiny      # seconds
    python -m experiments.map_shared_neurons babel     # 20 minutes on 2 cores
    python -m experiments.map_shared_neurons paper --study.model NAME --tasks FOLDER FOLDER

Reads   a model; tasks whose items are the same in every language
Writes  results/map_shared_neurons/<preset>/<task>/profile.csv (shares by layer, with both
        baselines), off.csv (each category off, also at equal size), sums.csv (integrated gradients
        by category), enrichment.csv; numbers.csv and thresholds.csv (the all-shared share by number
        of languages, and by what the gate must exceed to count as firing); claims.json

The claims of Wang et al. (2024) are put to the test with what their comparison lacks: what firing
rates alone would give, and sets of equal size.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import tyro
from einops import rearrange, reduce
from jaxtyping import Float64
from torch import Tensor
from tqdm.auto import tqdm

import interp
from experiments.study import Study
from interp import artifacts
from interp.claims import Claim, claim_of, counted, markdown, save_claims
from interp.evaluations.category_sums import attribute_categories
from interp.evaluations.switch_off import SwitchOff, categories_at, end_of_prompt, switch_off
from interp.evaluations.task_files import Task, align, prompts_of, read_task
from interp.evaluations.tasks import encode_items, told_apart
from interp.scores.attribution import contribution_score
from interp.scores.sharing import Sharing, SharingProfile, sharing_categories, sharing_profile
from interp.stats import FiringSigns
from interp.uncertainty import Estimate, mean_over_examples
from interp.whatif import Ending

COMMAND = "python -m experiments.map_shared_neurons"
SOURCE = "Wang et al. (2024)"


@dataclass(frozen=True)
class Config:
    """What is looked at."""

    study: Study
    """Model and languages; its text is not read."""

    tasks: tuple[str, ...] = (
        "babel/fact_completion",
        "babel/statements",
        "babel/word_translation",
    )
    """Where the items come from; see interp.evaluations.task_files."""

    n_prompts: int = 60
    """Items per task whose neurons are switched off and attributed; sharing is of all items."""

    steps: int = 20
    """Points on the path of integrated gradients."""

    top_share: float = 0.05
    """Of a layer's neurons, the largest contributions; the paper takes 800 of 16,384."""

    thresholds: tuple[float, ...] = (0.0, 0.1, 0.2, 0.5)
    """What a gate must exceed to count as firing; the paper takes zero."""

    n_draws: int = 3
    """Random sets, wherever neurons are drawn."""

    out: Path = Path("results/map_shared_neurons/babel")
    """Folder for the tables."""


PRESETS = {
    "tiny": (
        "Three items of one task in two languages: seconds.",
        Config(
            Study(languages=("de", "ja")),
            tasks=("babel/word_translation",),
            n_prompts=3,
            steps=4,
            n_draws=1,
            out=Path("results/map_shared_neurons/tiny"),
        ),
    ),
    "babel": ("The shipped model on its three tasks: 20 minutes on 2 cores.", Config(Study())),
    "paper": (
        "A model and tasks of your own.",
        Config(Study(), n_prompts=1000, out=Path("results/map_shared_neurons/paper")),
    ),
}


def profile_of(
    model: interp.NeuronModel, tasks: Sequence[Task], folder: Path, config: Config
) -> tuple[FiringSigns, SharingProfile]:
    """Who fires at the last token of every prompt, and how much of it is shared."""
    rows = interp.prompt_rows(
        prompts_of(tasks),
        model,
        bos="none" if model.bos_id is None else "document",
        n_shards=min(10, len(tasks[0].items)),
    )
    interp.collect(model, rows, folder, wanted=interp.Wanted(signs=True), progress=False)
    signs = FiringSigns.load(folder / "signs.safetensors")
    generator = torch.Generator().manual_seed(config.study.seed)
    return signs, sharing_profile(signs, generator, n_draws=config.n_draws)


def by_number(signs: FiringSigns, task: str, config: Config) -> list[dict[str, object]]:
    """The all-shared share among the first two languages, the first three, and so on."""
    rows: list[dict[str, object]] = []
    for n in range(2, len(signs.languages) + 1):
        generator = torch.Generator().manual_seed(config.study.seed)
        found = sharing_profile(
            signs, generator, languages=signs.languages[:n], n_draws=config.n_draws
        )
        share = found.share().value[:, Sharing.ALL_SHARED].mean().item()
        chance = found.independent[:, Sharing.ALL_SHARED].mean().item()
        rows.append({"task": task, "languages": n, "all_shared": share, "independent": chance})
    return rows


def by_threshold(
    model: interp.NeuronModel, tasks: Sequence[Task], name: str, config: Config
) -> list[dict[str, object]]:
    """The all-shared share where a gate must exceed more than zero to count as firing."""
    encoded = [encode_items(model, task) for task in tasks]
    shares: dict[float, list[float]] = {threshold: [] for threshold in config.thresholds}
    for rows in zip(*encoded, strict=True):
        gates = torch.stack([end_of_prompt(model, row).values["pre"][:, 0] for row in rows])
        for threshold, found in shares.items():
            category = sharing_categories(gates > threshold)
            found.append((category == Sharing.ALL_SHARED).double().mean().item())
    return [
        {"task": name, "threshold": threshold, "all_shared": sum(found) / len(found)}
        for threshold, found in shares.items()
    ]


def enrichment(
    model: interp.NeuronModel, tasks: Sequence[Task], config: Config
) -> Float64[Tensor, "prompt layer category"]:
    """How much more often a category is among the largest contributions than among all that fire.

    One: as often as chance gives. Mean over languages; NaN: no neuron of the category fires there.
    """
    encoded = [encode_items(model, task) for task in tasks]
    ratios = []
    for place in tqdm(range(len(tasks[0].items)), "contributions", leave=False):
        rows = [items[place] for items in encoded]
        category = categories_at([end_of_prompt(model, row) for row in rows])
        found = []
        for row in rows:
            ids = torch.tensor(row.rows[0][: row.begin])
            values = Ending(model, ids, kinds=("post",)).values["post"]
            score = contribution_score(
                model, rearrange(values, "layer 1 neuron -> layer neuron").float()
            )
            n = max(1, round(config.top_share * model.d_mlp))
            top = score.argsort(dim=1, descending=True).argsort(dim=1) < n
            firing = score > 0
            inside = torch.stack([category == each for each in Sharing])
            among_top = (inside & top & firing).sum(dim=2) / (top & firing).sum(dim=1)
            among_firing = (inside & firing).sum(dim=2) / firing.sum(dim=1)
            found.append(rearrange(among_top / among_firing, "category layer -> layer category"))
        ratios.append(torch.stack(found).double().nanmean(dim=0))
    return torch.stack(ratios)


def difference(found: SwitchOff, one: str, other: str) -> Estimate:
    """By how much more the answer's probability falls with one set off than with another, paired,
    both of equal size."""
    names = [(each.off, each.size) for each in found.conditions]
    a, b = names.index((one, "equal")), names.index((other, "equal"))
    score = reduce(found.probability, "prompt condition language -> prompt condition", "mean")
    return mean_over_examples(score[:, b] - score[:, a])


def task_claims(
    name: str, profile: SharingProfile, off: SwitchOff, ratio: Tensor, on: str
) -> list[Claim]:
    """The checkable claims of the paper on one task."""
    short = name.split("/")[-1].replace("_", " ")
    said = {"source": SOURCE, "on": f"{on}, {short}", "command": COMMAND}
    more = difference(off, "all shared", "random")
    least = ratio[:, :, Sharing.ALL_SHARED].nanmean(dim=0).min().item()
    kept = profile.repeatability.nan_to_num(0.0)
    share = profile.share().value[:, Sharing.ALL_SHARED]
    return [
        claim_of(
            more,
            name=f"all-shared-off-{short}",
            statement="Switching all-shared neurons off costs more than other neurons.",
            how="fall of the answer's probability beyond that with equally many random neurons",
            **said,
        ),
        counted(
            least,
            name=f"all-shared-enriched-{short}",
            statement="All-shared neurons are over-represented among the largest contributions.",
            how="ratio to their share of all that fire, in the layer where it is least",
            bar=1.0,
            **said,
        ),
        counted(
            kept[:, [Sharing.SILENT, Sharing.SPECIFIC]].max().item(),
            name=f"repeatability-{short}",
            statement="Few neurons stay silent, or specific, on every example.",
            how="largest repeatability over layers, of silent and specific neurons",
            bar=0.1,
            side="below",
            control=profile.shuffled_repeatability[..., [Sharing.SILENT, Sharing.SPECIFIC]]
            .nan_to_num(0.0)
            .max()
            .item(),
            control_name="with shuffled prompts",
            **said,
        ),
        counted(
            (share[0] - share[-1]).item(),
            name=f"all-shared-falls-{short}",
            statement="The all-shared part falls from early to late layers.",
            how="share in the first layer less that in the last",
            control=(
                profile.independent[0, Sharing.ALL_SHARED]
                - profile.independent[-1, Sharing.ALL_SHARED]
            ).item(),
            control_name="by firing rates alone",
            **said,
        ),
    ]


def falls(table: pd.DataFrame, column: str) -> float:
    """The least fall of the all-shared share from one value of the column to the next, any task."""
    steps = [
        -pd.Series(rows.sort_values(column)["all_shared"].tolist()).diff().dropna()
        for _, rows in table.groupby("task", sort=False)
    ]
    return float(min(step.min() for step in steps))


def claims_over_tasks(
    numbers: pd.DataFrame, thresholds: pd.DataFrame, shares: dict[str, Tensor], on: str
) -> list[Claim]:
    """The claims that need several tasks, numbers of languages or thresholds."""
    said = {"source": SOURCE, "on": on, "command": COMMAND}
    order = thresholds.pivot(index="threshold", columns="task", values="all_shared").rank(axis=1)
    claims = [
        counted(
            falls(numbers, "languages"),
            name="falls-with-languages",
            statement="The all-shared part falls with every language that is added.",
            how="least fall from one number of languages to the next, over tasks",
            control=falls(
                numbers.drop(columns="all_shared").rename(columns={"independent": "all_shared"}),
                "languages",
            ),
            control_name="by firing rates alone",
            **said,
        ),
        counted(
            falls(thresholds, "threshold"),
            name="falls-with-threshold",
            statement="The all-shared part falls as a gate must exceed more.",
            how="least fall from one threshold to the next, over tasks",
            **said,
        ),
        counted(
            float((order == order.iloc[0]).all(axis=1).mean()),
            name="order-of-tasks",
            statement="Which task shares more does not hang on the threshold.",
            how="thresholds at which tasks have the order that they have at zero",
            bar=0.999,
            **said,
        ),
    ]
    reasoning, facts = (f"babel/{name}" for name in ("statements", "fact_completion"))
    if reasoning in shares and facts in shares:
        means = [mean_over_examples(shares[name]) for name in (reasoning, facts)]
        more = means[0].value - means[1].value
        error = (means[0].standard_error ** 2 + means[1].standard_error ** 2).sqrt()
        estimate = Estimate(more, error, more - 1.96 * error, more + 1.96 * error, 0.95)
        claims.append(
            claim_of(
                estimate,
                name="questions-share-more",
                statement="Judging statements shares more neurons than completing facts.",
                how="all-shared share of statements less that of facts, mean over layers",
                **said,
            )
        )
    return claims


def main(config: Config) -> None:
    study = config.study
    model = study.open()
    numbers: list[dict[str, object]] = []
    thresholds: list[dict[str, object]] = []
    shares: dict[str, Tensor] = {}
    claims: list[Claim] = []
    for name in config.tasks:
        tasks = align([read_task(name, code) for code in study.languages])
        folder = config.out / name.replace("/", "-")
        signs, profile = profile_of(model, tasks, folder / "signs", config)
        numbers += by_number(signs, name, config)
        thresholds += by_threshold(model, tasks, name, config)
        part = profile.count[..., Sharing.ALL_SHARED].double() / profile.d_mlp
        shares[name] = reduce(part, "prompt layer -> prompt", "mean")
        held_out = {item.id for task in tasks for item in task.items if item.held_out}
        # What-ifs at the last token choose among first tokens, so these must differ.
        apart = told_apart(model, tasks)
        kept = [item.id for item in apart[0].items if item.id not in held_out][: config.n_prompts]
        some = [task.where(lambda item, kept=kept: item.id in kept) for task in apart]
        generator = torch.Generator().manual_seed(study.seed)
        off = switch_off(model, some, generator, where="last", n_draws=config.n_draws)
        sums = attribute_categories(model, some, folder / "pieces", steps=config.steps)
        ratio = enrichment(model, some, config)
        mean = mean_over_examples(ratio.nan_to_num(1.0))
        enriched = [
            {
                "layer": layer,
                "category": each.name.lower().replace("_", " "),
                "ratio": mean.value[layer, each].item(),
                "low": mean.low[layer, each].item(),
                "high": mean.high[layer, each].item(),
            }
            for layer, each in itertools.product(range(model.n_layers), Sharing)
        ]
        for table, frame in (
            ("profile", profile.to_frame()),
            ("off", off.to_frame()),
            ("sums", sums.to_frame()),
            ("enrichment", pd.DataFrame(enriched)),
        ):
            artifacts.write_text(folder / f"{table}.csv", frame.to_csv(index=False))
        claims += task_claims(name, profile, off, ratio, model.name)
        print(f"\n{name}\n{off.to_frame().to_string(index=False, float_format='%.3f')}", flush=True)
    found, cut = pd.DataFrame(numbers), pd.DataFrame(thresholds)
    artifacts.write_text(config.out / "numbers.csv", found.to_csv(index=False))
    artifacts.write_text(config.out / "thresholds.csv", cut.to_csv(index=False))
    claims += claims_over_tasks(found, cut, shares, model.name)
    save_claims(claims, config.out / "claims.json")
    for each in (found, cut):
        print(f"\n{each.to_string(index=False, float_format='%.3f')}")
    print(f"\n{markdown(claims)}")


if __name__ == "__main__":
    parsed = tyro.extras.subcommand_type_from_defaults(
        {name: config for name, (_, config) in PRESETS.items()},
        {name: text for name, (text, _) in PRESETS.items()},
    )
    main(tyro.cli(parsed, description=__doc__))
