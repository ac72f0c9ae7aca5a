"""Train Babel, the small multilingual model that the package ships.

    python -m babel_training.train tiny                  # seconds; synthetic text
    python -m babel_training.train cpu --text FOLDER     # 4 hours on 2 cores
    python -m babel_training.train gpu --text FOLDER     # the same recipe, ten times the tokens

Reads   FOLDER/<language>.txt[.gz], with FOLDER/<language>.src.gz to choose lines by their source;
        interp/babel/facts/*.json
Writes  results/babel_training/train/<preset>/: tokenizer, checkpoint, curve.csv, the finished model

The shipped model was trained in all rounds of the preset `cpu`. With one more round in the recipe,
training continues from the checkpoint where this one ended.

A killed run resumes from its last checkpoint and ends with the same weights as an unbroken one:
every batch is drawn from a generator seeded with the step's number.
"""

import csv
import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from babel_training.corpus import Stream, synthetic_text, train_tokenizer
from babel_training.recipe import PRESETS, Config, schedule
from interp.results import artifacts


def new_model(config: Config) -> LlamaForCausalLM:
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.d_model,
            intermediate_size=config.d_mlp,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            max_position_embeddings=config.length,
            tie_word_embeddings=True,
            hidden_act=config.activation,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        )
    )


def new_optimizers(config: Config, model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            matrices,
            lr=config.rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=config.embedding_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def row_losses(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Mean loss of each row, in nats per token."""
    with torch.autocast(rows.device.type, dtype=torch.bfloat16):
        hidden = model.model(rows).last_hidden_state[:, :-1]
        logits = hidden @ model.lm_head.weight.T
    per_token = functional.cross_entropy(
        logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction="none"
    )
    return per_token.view(len(rows), -1).mean(dim=1)


def save_checkpoint(path: Path, step: int, model, optimizers, config: Config) -> None:
    """Save atomically: a kill in the middle leaves the previous checkpoint."""
    part = path.with_suffix(".part")
    torch.save(
        {
            "step": step,
            "model": model.state_dict(),
            "optimisers": [optimizer.state_dict() for optimizer in optimizers],
            "config": {key: str(value) for key, value in asdict(config).items()},
        },
        part,
    )
    part.replace(path)


def train(config: Config, out: Path, stop_after: int | None = None) -> LlamaForCausalLM:
    """Train, or resume a stopped run; `stop_after` ends this call after that many steps."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / "tokenizer" / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")
    else:
        tokenizer = train_tokenizer(config)
        tokenizer.save_pretrained(out / "tokenizer")
    stream = Stream.build(config, tokenizer, out)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = new_model(config)
    nn.Module.to(model, device)
    optimizers = new_optimizers(config, model)
    checkpoint, first = out / "checkpoint.pt", 0
    if checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True, map_location=device)
        first = stored["step"]
        model.load_state_dict(stored["model"])
        for optimizer, state in zip(optimizers, stored["optimisers"], strict=True):
            optimizer.load_state_dict(state)
    loss_of = torch.compile(row_losses, dynamic=False) if config.fused else row_losses
    peaks = (config.rate, config.embedding_rate)
    curve = out / "curve.csv"
    drop_later(curve, first)
    started, seen = time.perf_counter(), 0
    sums: dict[str, list[float]] = {}
    last = min(config.steps, first + stop_after) if stop_after else config.steps
    for step in range(first, last):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule(config, step)
        rows, names = stream.batch(config, step)
        losses = loss_of(model, rows.to(device))
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += rows.numel()
        for name, loss in zip(names, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                raise RuntimeError(f"The loss of a {name} row is {loss} at step {step}.")
            sums.setdefault(name, []).append(loss)
        done = step + 1
        if done % 25 == 0 or done == last:
            means = {name: sum(values) / len(values) for name, values in sorted(sums.items())}
            append_curve(curve, done, done * rows.numel(), means)
            pace = seen / (time.perf_counter() - started)
            shown = " ".join(f"{name} {mean:.2f}" for name, mean in means.items())
            print(f"step {done}/{config.steps}  {pace:.0f} tokens/s  {shown}", flush=True)
            sums = {}
        if done % config.checkpoint_every == 0 or done == last:
            save_checkpoint(checkpoint, done, model, optimizers, config)
            if done % (4 * config.checkpoint_every) == 0:
                export(model, tokenizer, out / "history" / f"step-{done:05d}")
    if last == config.steps:
        export(model, tokenizer, out / "model")
        artifacts.write_text(out / "config.json", tyro.extras.to_yaml(config))
    return model


def drop_later(path: Path, step: int) -> None:
    """Drop the rows that a killed run wrote after its last checkpoint."""
    if path.exists():
        head, *rows = path.read_text().splitlines()
        rows = [row for row in rows if int(row.split(",")[0]) <= step]
        artifacts.write_text(path, "\n".join([head, *rows]) + "\n")


def append_curve(path: Path, step: int, tokens: int, means: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", "tokens", "rows", "nats_per_token"])
        for name, mean in means.items():
            writer.writerow([step, tokens, name, f"{mean:.4f}"])


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save a Hugging Face checkpoint with weights in bfloat16."""
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    nn.Module.to(half, torch.bfloat16)
    half.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parsed = tyro.extras.subcommand_type_from_defaults(
        {name: config for name, (_, config) in PRESETS.items()},
        {name: text for name, (text, _) in PRESETS.items()},
    )
    config = tyro.cli(parsed, description=__doc__)
    preset = next(
        (n for n, (_, c) in PRESETS.items() if replace(c, text=config.text) == config), "custom"
    )
    out = Path("results/babel_training/train") / preset
    if preset == "tiny" and not config.text.exists():
        config = replace(config, text=out / "text")
        synthetic_text(config.text, config.languages)
    train(config, out)
    print(f"The model is in {out / 'model'}.")


if __name__ == "__main__":
    main()
