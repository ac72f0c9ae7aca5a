"""A plain training loop over some rows and columns of a model's matrices."""

import math
import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Bool, Int64
from torch import Tensor, nn
from torch.nn import Parameter, functional

from interp.interventions.movable import Movable
from interp.interventions.recipe import Recipe
from interp.results import artifacts
from interp.text.corpora import Corpora

TRAINING_STATE = "TrainingState"
"""Kind of the file of a checkpoint."""


class TrainingLoop:
    """A plain model, the parts of it that move, their optimizer, and how far it has come."""

    def __init__(
        self, plain: nn.Module, movables: Sequence[Movable], text: Corpora, recipe: Recipe
    ) -> None:
        """`plain` is a model of transformers, and is changed."""
        self._plain, self._movables = plain, movables
        self._text, self._recipe = text, recipe
        plain.requires_grad_(False)
        self._masters: dict[str, Parameter] = {}
        for movable in movables:
            self._masters[movable.key] = Parameter(movable.read(self._stored(movable)).float())
        for name in {movable.name for movable in movables}:
            parameter = plain.get_parameter(name)
            parameter.requires_grad_(True)
            parameter.register_post_accumulate_grad_hook(self._keeper(name))
        self._optimizer = torch.optim.AdamW(
            list(self._masters.values()),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
        )
        self._rows = [
            (code, row) for code in text.languages for row in range(len(text.rows[code].ids))
        ]
        self.step = 0
        """How many steps were taken."""
        self.losses: list[float] = []
        """Nats per token of the text of each step, before the step."""

    def advance(self) -> float:
        """One step; the loss of its text before it."""
        rows = self._rows_of_step()
        n_tokens = sum(int(self._keep(row)[1:].sum()) for row in rows)
        if n_tokens == 0:
            raise ValueError("The text holds no token to predict: give rows of two tokens or more.")
        total = 0.0
        for start in range(0, len(rows), self._recipe.rows_at_once):
            nats = self._nats(rows[start : start + self._recipe.rows_at_once])
            (nats / n_tokens).backward()
            total += float(nats.detach())
        loss = total / n_tokens
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss is {loss} at step {self.step}: lower the learning rate, or load the "
                "model with dtype=torch.float32."
            )
        torch.nn.utils.clip_grad_norm_(list(self._masters.values()), self._recipe.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.rate(self.step)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._write()
        self.step += 1
        self.losses.append(loss)
        return loss

    def values(self) -> dict[str, Tensor]:
        """The trained parts, on the CPU."""
        return {key: master.detach().cpu().clone() for key, master in self._masters.items()}

    # ------------------------------------------------------------ checkpoints

    def save(self, path: Path) -> None:
        """Everything that the next step depends on."""
        tensors = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        for key, master in self._masters.items():
            state = self._optimizer.state[master]
            moments = {name: state[name].cpu() for name in ("exp_avg", "exp_avg_sq")}
            entries = {"values": master.detach().cpu(), **moments}
            tensors |= {f"{name} of {key}": tensor for name, tensor in entries.items()}
        artifacts.save(path, TRAINING_STATE, tensors, {"step": self.step}, artifacts.provenance())

    def resume(self, path: Path) -> None:
        """Go on from what was saved."""
        stored = artifacts.load(path, TRAINING_STATE)
        self.step = int(stored.labels["step"])
        self.losses = stored.tensors["losses"].tolist()
        for key, master in self._masters.items():
            values, first, second = (
                stored.tensors[f"{name} of {key}"].to(master.device)
                for name in ("values", "exp_avg", "exp_avg_sq")
            )
            master.data.copy_(values)
            step = torch.tensor(float(self.step))
            self._optimizer.state[master] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
        self._write()

    # ------------------------------------------------------------ weights

    def _stored(self, movable: Movable) -> Tensor:
        return self._plain.get_parameter(movable.name)

    def _write(self) -> None:
        for movable in self._movables:
            movable.write(self._stored(movable), self._masters[movable.key].detach())

    def _keeper(self, name: str) -> Callable[[Tensor], None]:
        """As a hook: keep the chosen part of a matrix's gradient, and drop the rest.

        What a hook refers to is never freed if it refers to the hook's parameter, as this loop
        does: so it refers to the loop weakly.
        """
        own = [movable for movable in self._movables if movable.name == name]
        this = weakref.ref(self)

        def keep(parameter: Tensor) -> None:
            loop = this()
            if loop is None:  # trained, and now a model like any other
                return
            assert parameter.grad is not None
            for movable in own:
                master, part = loop._masters[movable.key], movable.read(parameter.grad).float()
                master.grad = part if master.grad is None else master.grad + part
            parameter.grad = None

        return keep

    # ------------------------------------------------------------ text

    def _rows_of_step(self) -> list[tuple[str, int]]:
        """Drawn without replacement until all rows were read; they depend on seed and step."""
        first = self.step * self._recipe.rows
        return [self._row(index) for index in range(first, first + self._recipe.rows)]

    def _row(self, index: int) -> tuple[str, int]:
        reading, position = divmod(index, len(self._rows))
        order = _order(self._recipe.seed, reading, len(self._rows))
        return self._rows[int(order[position])]

    def _keep(self, row: tuple[str, int]) -> Bool[Tensor, " pos"]:
        code, index = row
        rows = self._text.rows[code]
        return self._text.keep(rows.ids[index : index + 1], rows.length[index : index + 1])[0]

    def _nats(self, rows: list[tuple[str, int]]) -> Tensor:
        """Loss of these rows, summed over the tokens that count, except the first of a row."""
        lengths = [int(self._text.rows[code].length[index]) for code, index in rows]
        longest = max(lengths)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        keep = torch.zeros(len(rows), longest, dtype=torch.bool)
        for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            code, index = row
            ids[number, :length] = self._text.rows[code].ids[index, :length].long()
            keep[number, :length] = self._keep(row)[:length]
        device = next(self._plain.parameters()).device
        mask = torch.arange(longest) < rearrange(torch.tensor(lengths), "batch -> batch 1")
        logits = self._plain(
            input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False
        ).logits[:, :-1]
        chosen = keep[:, 1:].to(device)
        targets = ids[:, 1:].to(device)[chosen]
        return functional.cross_entropy(logits[chosen].float(), targets, reduction="sum")


@lru_cache(maxsize=2)
def _order(seed: int, reading: int, n_rows: int) -> Int64[Tensor, " row"]:
    """In which order all rows are read for the first, second, ... time."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + reading)
    return torch.randperm(n_rows, generator=generator)
