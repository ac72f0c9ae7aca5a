"""Try the library on every causal architecture that transformers knows, at tiny size.

    python -m tests.campaigns.architectures               # `make architectures`
    python -m tests.campaigns.architectures llama granite # some of them, without writing the table
    python -m tests.campaigns.architectures zamba --update # and their rows of the table

Reads   the configurations and modeling code of the installed transformers
Writes  docs/architectures.md

A model with random weights is built for each, in a process of its own with limits of time and
memory; then it is opened, checked by `doctor`, and taken through the jobs of `JOBS`.
"""

import argparse
import json
import math
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

import interp
from interp.models.doctor import Diagnosis
from interp.models.experts import Rows
from interp.models.load import class_of
from interp.models.mixture_model import MixtureModel
from tests import tiny_models

TABLE = Path(__file__).parents[2] / "docs" / "architectures.md"
SECONDS, GIBIBYTES = 180, 16
LARGEST = 30_000_000
"""Parameters of a model that is tiny enough; others say that they could not be made so."""

SIZES: Mapping[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size"), 160),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "dim_feedforward"), 160),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("decoder_layers", "encoder_layers"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 48),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **{"head_dim": 16, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size", "chunk_size"), 16),
    **dict.fromkeys(("mamba_chunk_size", "mamba_d_head", "mamba_head_dim"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **{"mamba_d_ssm": 128, "mamba_n_groups": 1},
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    **{"sliding_window": 8, "vocab_size": tiny_models.N_VOCAB},
    **{"pad_token_id": tiny_models.PAD, "bos_token_id": tiny_models.BOS},
    **{"eos_token_id": tiny_models.EOS, "is_decoder": True},
}
"""What a configuration calls its sizes, and how large they are here."""

MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
"""Rotary embeddings of time, height and width, which share half a head."""

DEEPSEEK = {
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8},
    **{"v_head_dim": 16, "head_dim": 8, "first_k_dense_replace": 1, "num_key_value_heads": 4},
}
SPECIAL: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "sarvam_mla", "youtu"), DEEPSEEK
    ),
    **{name: {**DEEPSEEK, "head_dim": None} for name in ("mistral4", "mistral_large4_text")},
    **dict.fromkeys(("glm_ocr_text", "hunyuan_vl_text", "paddleocr_vl_text"), MROPE),
    **dict.fromkeys(("qwen2_5_omni_text", "qwen2_5_vl_text"), MROPE),
    "falcon": {"head_dim": None, "new_decoder_architecture": True},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {
        **{"layer_types": ["linear_attention", "full_attention"] * 2},
        **{"shared_intermediate_size": 40},
    },
    "bailing_hybrid": {
        **{**DEEPSEEK, "n_group": 1, "topk_group": 1},
        **{"num_experts_per_tok": 2, "layer_group_size": 2},
    },
    "granitemoeshared": {"shared_intermediate_size": 40},
    "granitemoe_swa": {"shared_intermediate_size": 40},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "minicpm3": {**DEEPSEEK, "first_k_dense_replace": None},
    "gemma4_text": {
        **{"head_dim": None, "global_head_dim": 16, "num_experts": None},
        **{"vocab_size_per_layer_input": tiny_models.N_VOCAB, "hidden_size_per_layer_input": 16},
    },
}
"""Settings of an architecture that the sizes alone do not make valid; None: leave that one out."""


@dataclass(frozen=True)
class Outcome:
    """How far one architecture came."""

    architecture: str
    """Its `model_type`."""

    done: tuple[str, ...] = ()
    """Jobs that went well, in their order."""

    stopped_at: str = ""
    """The job that did not; empty if all did."""

    why: str = ""
    """The sentence with which the library refused, or the fault."""

    kind: str = "works"
    """works, refused (one sentence of ours), doctor (which says no), fault, or not built."""

    mixture: bool = False
    """Whether its neurons are those of experts."""


class _Stop(Exception):
    """A job's result is wrong, though nothing was raised."""


# ---------------------------------------------------------------- a tiny model


def tiny_config(architecture: str) -> transformers.PretrainedConfig:
    """The smallest valid configuration that the sizes above make."""
    return _shrunk(CONFIG_MAPPING[architecture], SPECIAL.get(architecture, {}))


def _shrunk(kind: Any, special: Mapping[str, Any]) -> Any:
    default = kind()
    renamed = getattr(default, "attribute_map", {})
    sizes = {key: size for key, size in SIZES.items() if _has(default, key) and key not in renamed}
    sizes = {key: size for key, size in {**sizes, **special}.items() if size is not None}
    inner = {name: getattr(default, name, None) for name in getattr(kind, "sub_configs", {})}
    parts = {
        name: _shrunk(type(part), SPECIAL.get(part.model_type, {})).to_dict()
        for name, part in inner.items()
        if part is not None
    }
    return kind(**sizes, **parts)


def _has(config: Any, key: str) -> bool:
    try:
        return hasattr(config, key)
    except Exception:  # some raise errors of their own for a key that differs by layer
        return True


def build(architecture: str, folder: Path) -> Path:
    """Save a model with random weights, and the tokenizer of the other tiny models."""
    config = tiny_config(architecture)
    with torch.device("meta"):
        size = sum(
            p.numel() for p in class_of(config, architecture).from_config(config).parameters()
        )
    if size > LARGEST:
        raise ValueError(f"its smallest configuration here has {size:,} parameters")
    torch.manual_seed(0)
    model = class_of(config, architecture).from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, weights in sorted(model.named_parameters()):
            if weights.ndim >= 2:  # larger than usual, so that every layer matters
                noise = torch.randn(weights.shape, generator=generator)
                weights.copy_(noise / math.sqrt(weights.shape[-1]))
        for name, table in model.named_buffers():
            if name.endswith("tid2eid"):  # the experts of each token id; zeros are no such table
                noise = torch.rand(len(table), config.num_local_experts, generator=generator)
                table.copy_(noise.topk(table.shape[1]).indices)
    model.save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- what is tried


TEXTS = {
    "de": "Das Wetter ist heute sehr schön, und die Kinder spielen im Garten.",
    "es": "La casa de la esquina tiene una puerta roja y muchas flores.",
}


@dataclass
class Trial:
    """What the jobs of one architecture share."""

    folder: Path
    model: Any = None
    selection: Any = None

    @property
    def corpora(self) -> Any:
        return interp.read_corpora(
            self.text, tuple(TEXTS), self.model, block_length=16, n_shards=2, progress=False
        )

    @property
    def text(self) -> Path:
        folder = self.folder.parent / "text"
        folder.mkdir(exist_ok=True)
        for label, sentence in TEXTS.items():
            lines = [f"{n} {sentence}" for n in range(24)]
            (folder / f"{label}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder


def open_it(trial: Trial) -> None:
    trial.model = interp.load(trial.folder)


def check(trial: Trial) -> None:
    diagnosis: Diagnosis = interp.doctor(trial.model)
    if failed := [check for check in diagnosis.checks if not check.passed]:
        raise _Stop(f"{failed[0].name}: {failed[0].detail}")


def count(trial: Trial) -> None:
    """Counts are those of hooks put on by hand."""
    corpora, model = trial.corpora, trial.model
    stats = interp.collect(model, corpora, progress=False).firing
    fired = torch.zeros(model.n_layers, model.d_mlp, dtype=torch.long)
    for ids, length in zip(corpora.rows["de"].ids, corpora.rows["de"].length, strict=True):
        row = ids[: int(length)].long()[None]
        keep = corpora.keep(row, length[None])[0]
        if isinstance(model, MixtureModel):
            _count_rows(model, row, keep, fired)
            continue
        names = [model.site(layer, "pre") for layer in range(model.n_layers)]
        _, cache = model.bridge.run_with_cache(row, names_filter=names)
        for layer, name in enumerate(names):
            fired[layer] += (cache[name][0, keep] > 0).sum(dim=0)
    counted = stats.fired[:, stats.languages.index("de")].sum(dim=0)
    if not torch.equal(counted.long(), fired):
        raise _Stop(f"{(counted != fired).sum()} counts differ from those of run_with_cache")


def _count_rows(
    model: MixtureModel, row: torch.Tensor, keep: torch.Tensor, fired: torch.Tensor
) -> None:
    def hook_for(layer: int) -> Callable[..., None]:
        def look(values: torch.Tensor, hook: Rows) -> None:
            for number, token in enumerate(hook.token.tolist()):
                expert = 0 if hook.expert is None else int(hook.expert[number])
                first = hook.first + expert * values.shape[1]
                fired[layer, first : first + values.shape[1]] += (values[number] > 0) & keep[token]

        return look

    layers = range(model.n_layers)
    with model.hooks([(model.rows_site(layer, "pre"), hook_for(layer)) for layer in layers]):
        model.body(row)


def find(trial: Trial) -> None:
    stats = interp.collect(trial.model, trial.corpora, progress=False).firing
    trial.selection = interp.select_by_entropy(stats, fraction=0.05)
    if not trial.selection.union().any():
        raise _Stop("no neuron was selected")


def deactivate(trial: Trial) -> None:
    matrix = interp.perplexity_matrix(
        trial.model, trial.selection, trial.corpora, n_draws=0, progress=False
    )
    if not matrix.increase.value.isfinite().all() or not matrix.increase.value.abs().max() > 0:
        raise _Stop("switching off changes no loss")


def attribute(trial: Trial) -> None:
    if isinstance(trial.model, MixtureModel):
        return  # neurons of experts have none
    with warnings.catch_warnings():  # random weights bend the path more than trained ones
        warnings.simplefilter("ignore")
        result = interp.integrated_gradients(trial.model, "The day", " th", steps=4)
    if not result.values.isfinite().all() or not result.values.abs().max() > 0:
        raise _Stop("no neuron has an attribution")


def write(trial: Trial) -> None:
    ids = torch.tensor([trial.model.encode("The day after")] * 8)
    everything = torch.ones(trial.model.n_layers, trial.model.d_mlp, dtype=torch.bool)

    def drawn() -> torch.Tensor:
        torch.manual_seed(0)
        mask = torch.ones_like(ids, dtype=torch.bool)
        return trial.model.continuations(ids, mask, max_new_tokens=12, do_sample=True)

    plain = drawn()
    with interp.intervene(trial.model, everything, interp.scale(-30.0)):
        changed = drawn()
    if torch.equal(plain, changed):
        raise _Stop("the text is the same under an edit of all neurons")


def bake(trial: Trial) -> None:
    units = trial.selection.union()
    out = interp.bake(trial.model, units, interp.deactivate, trial.folder / "baked")
    class_of(transformers.AutoConfig.from_pretrained(out), out.name).from_pretrained(out)


JOBS: Mapping[str, Callable[[Trial], None]] = {
    "open": open_it,
    "doctor": check,
    "count": count,
    "find": find,
    "deactivate": deactivate,
    "attribute": attribute,
    "write": write,
    "bake": bake,
}
"""In their order; the first that fails ends the trial."""

OURS = (ValueError, OSError, NotImplementedError)
"""What the library raises with a sentence for its user."""


def tried(architecture: str, folder: Path) -> Outcome:
    """Build a model and take it through all jobs."""
    warnings.simplefilter("ignore")
    try:
        trial = Trial(build(architecture, folder))
    except Exception as error:
        return Outcome(architecture, (), "build", _sentence(error), "not built")
    done: list[str] = []
    for name, job in JOBS.items():
        try:
            job(trial)
        except _Stop as stop:
            kind = "doctor" if job is check else "fault"
            why = str(stop).replace(str(folder), "the model")
            return Outcome(architecture, tuple(done), name, why, kind)
        except Exception as error:
            ours = isinstance(error, OURS) and _raised_by_us(error)
            where = "" if ours else _place(error)
            why = _sentence(error).replace(str(folder), "the model") + where
            return Outcome(architecture, tuple(done), name, why, "refused" if ours else "fault")
        done.append(name)
    return Outcome(architecture, tuple(done), mixture=isinstance(trial.model, MixtureModel))


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, OURS) and text else f"{type(error).__name__}: {text}"


def _raised_by_us(error: Exception) -> bool:
    return "/interp/" in traceback.extract_tb(error.__traceback__)[-1].filename


def _place(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({Path(last.filename).name}, {last.name})"


# ---------------------------------------------------------------- a process for each


def in_a_process(architecture: str) -> Outcome:
    """`tried`, in a forked process with limits of time and memory."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "outcome.json")
        process = os.fork()
        if process == 0:
            _work(architecture, Path(folder), answer)
        ended = _wait(process)
        if answer.is_file():
            read = json.loads(answer.read_text("utf-8"))
            return Outcome(**{**read, "done": tuple(read["done"])})
    return Outcome(architecture, (), "", f"its process {ended}", "fault")


def _work(architecture: str, folder: Path, answer: Path) -> None:
    """In the child, which never returns."""
    try:
        resource.setrlimit(resource.RLIMIT_AS, (GIBIBYTES << 30, GIBIBYTES << 30))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        torch.set_num_threads(1)
        outcome = tried(architecture, folder / "model")
        answer.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    finally:
        os._exit(0)


def _wait(process: int) -> str:
    """How the process ended, which is killed when its time is over."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return f"ended with code {os.waitstatus_to_exitcode(status)}"
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return f"took more than {SECONDS} seconds"


# ---------------------------------------------------------------- the table


WORK, MIXTURES = "They work", "Mixtures of experts: "
SECTIONS = {
    "refused": "Refused, and why",
    "doctor": "The doctor says no: do not trust their neurons",
    "fault": "Faults",
    "not built": "Not tried: no tiny model could be built",
}
"""Titles of the page, by the kind of outcome."""


def table(outcomes: Sequence[Outcome]) -> str:
    """The page, with what works first."""
    working = [each for each in outcomes if each.kind == "works"]
    n_mixtures = sum(each.mixture for each in working)
    versions = (
        f"transformers {version('transformers')}, TransformerLens {version('transformer-lens')}"
    )
    lines = [
        "# Architectures",
        "",
        f"Written by `make architectures` with {versions}: each architecture at tiny size with",
        f"random weights, taken through these jobs: {', '.join(JOBS)}.",
        f"**{len(working)} of {len(outcomes)} work to the end**, {n_mixtures} of them mixtures of "
        "experts.",
        "",
        f"## {WORK}",
    ]
    for mixture, words in ((False, "Dense models: "), (True, MIXTURES)):
        names = ", ".join(f"`{each.architecture}`" for each in working if each.mixture == mixture)
        lines += ["", f"{words}{names}."]
    for kind, title in SECTIONS.items():
        rows = [each for each in outcomes if each.kind == kind]
        if rows:
            lines += ["", f"## {title}", "", "| | stopped at | |", "|---|---|---|"]
            lines += [
                f"| `{each.architecture}` | {each.stopped_at} | {_cell(each.why)} |"
                for each in rows
            ]
    return "\n".join(lines) + "\n"


def read_table(page: str) -> list[Outcome]:
    """The outcomes that a page holds."""
    kinds = {title: kind for kind, title in SECTIONS.items()}
    known: list[Outcome] = []
    for section in page.split("\n## ")[1:]:
        title, *lines = section.splitlines()
        for line in lines:
            if title == WORK:
                names = re.findall("`([^`]+)`", line)
                known += [Outcome(name, mixture=line.startswith(MIXTURES)) for name in names]
            elif row := re.fullmatch(r"\| `(.+?)` \| (\w+) \| (.*) \|", line):
                name, stopped_at, why = row.groups()
                why = why.replace("\\|", "|").replace("&lt;", "<")
                known.append(Outcome(name, (), stopped_at, why, kinds[title]))
    return known


def _cell(text: str) -> str:
    text = text.replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= 400 else text[:399] + "…"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("architectures", nargs="*", help="model types; all that transformers knows")
    parser.add_argument("--update", action="store_true", help="rewrite the rows of these alone")
    options = parser.parse_args(arguments)
    chosen = options.architectures
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:  # imports what the forked processes then share
        tried("llama", Path(folder, "model"))
    outcomes = []
    for name in chosen or sorted(
        {**MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, **MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    ):
        outcome = in_a_process(name)
        outcomes.append(outcome)
        print(
            f"{name:<24} {outcome.kind:<10} {outcome.stopped_at:<11} {outcome.why[:200]}",
            flush=True,
        )
    if options.update:
        known = read_table(TABLE.read_text("utf-8"))
        outcomes = list({one.architecture: one for one in [*known, *outcomes]}.values())
    if options.update or not chosen:
        TABLE.write_text(
            table(sorted(outcomes, key=lambda one: one.architecture)), encoding="utf-8"
        )
        print(f"The table is in {TABLE.name}.")
    return int(any(each.kind == "fault" for each in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
