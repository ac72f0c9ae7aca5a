"""Many variants of the end of one prompt, in one further forward pass.

Attention is causal: a change at the last tokens leaves everything before them as it was. So the
prompt is run once, its keys and values are cached, and each variant costs as many positions as the
end has tokens, however long the prompt is.

    ending = Ending(model, ids, last=2)
    for variants, logits in ending.run(1000, {("post", 3): edit}):
        ...  # edit(values, variants) made these variants differ

The prompt, its cache, and three variants packed side by side in one row:

    prompt        t0 t1 t2 t3 t4 t5 | t6 t7            the end: the last 2 tokens
    KV cache      kv kv kv kv kv kv |                  of the tokens before the end: computed once
    packed row                      | t6 t7 | t6 t7 | t6 t7 | t6 t7 |
                                    variant 0       1       2  control row, unedited
    position id    0  1  2  3  4  5 |  6  7 |  6  7 |  6  7 |  6  7 |

    the keys that the mask lets variant 1 see (x):

    t6 of variant 1  x  x  x  x  x  x |  .  . |  x  . |  .  . |  .  . |
    t7 of variant 1  x  x  x  x  x  x |  .  . |  x  x |  .  . |  .  . |

Three strategies give the same numbers. "packed": as drawn, all variants share one copy of the keys
and values. "copied": each variant is a row of a batch with its own copy of the cache; for long ends
and for models whose position ids cannot be set (ALiBi). "whole": each variant runs the whole
prompt; for a HookedTransformer, a model with recurrent layers, or if the end is the whole prompt.

The control row must reproduce the prompt's logits. If it does not, the model does not apply
position ids or masks as it should, and the next, slower strategy is used instead.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from interp.models.any_model import AnyModel, as_model
from interp.models.as_transformer_lens import Hook
from interp.models.hooked_transformer import HookedTransformerModel
from interp.models.neuron_model import NeuronModel
from interp.models.recording import recording
from interp.models.running import running_instead
from interp.results.words import Kind

Strategy = Literal["packed", "copied", "whole"]

Edit = Callable[
    [Float[Tensor, "variant pos unit"], Int[Tensor, " variant"]],
    Float[Tensor, "variant pos unit"],
]
"""A site's new values at the last tokens, from its old ones and the numbers of these variants.

It returns a new tensor. It may be called for any subset of the variants, and must treat each
variant the same whichever others are in the call.
"""

# A key and a value are small compared with the activations that a position stores for the backward
# pass: a pass over copied keys may hold this many times more keys than positions.
_KEYS_PER_POSITION = 64

# Packed variants mask most of the attention scores. Up to ends of this many tokens, that costs less
# than copies of the keys.
_SHORT = 20


class Ending:
    """The last tokens of one prompt, ready to be run in many variants.

    Creating one costs a forward pass over the prompt. The caller's hooks that are active then must
    be active in `run` too; a hook that treats positions differently needs strategy="whole".

    >>> ending = interp.prompts.Ending(model, torch.tensor(model.encode("Eins und eins ist")))
    >>> def off(values, variants):
    ...     return values * 0
    >>> for variants, logits in ending.run(2, {("post", 3): off}):
    ...     print(variants.tolist(), logits.shape)
    [0, 1] torch.Size([2, 16384])
    """

    logits: Float[Tensor, " vocab"]
    """The prompt's own, at its last token."""

    values: dict[Kind, Float[Tensor, "layer pos unit"]]
    """For each of `kinds`, the prompt's activations at its last tokens, in every layer."""

    def __init__(
        self,
        model: AnyModel,
        ids: Int[Tensor, " pos"],
        last: int = 1,
        kinds: tuple[Kind, ...] = (),
        strategy: Strategy | None = None,
    ):
        """Variants may differ at the `last` tokens. `strategy` None: the fastest that works."""
        model = as_model(model)
        if not 1 <= last <= len(ids) <= model.max_length:
            raise ValueError(
                f"Cannot vary the last {last} of {len(ids)} tokens: give 1 or more of a prompt "
                f"of at most {model.max_length} tokens, the longest that {model.name} reads."
            )
        self.model = model
        self.ids = ids.to(model.device)
        self.last = last
        self._strategies = self._possible_strategies()
        if strategy is not None:
            if strategy not in self._strategies:
                raise ValueError(
                    f"{strategy!r} is not possible with {model.name} and the last {last} of "
                    f"{len(ids)} tokens: give {' or '.join(self._strategies)}, or leave `strategy` "
                    "out."
                )
            self._strategies = (strategy,)
        with torch.inference_mode(False), torch.no_grad():
            self._run_prompt(kinds)

    def __repr__(self) -> str:
        return (
            f"Ending(the last {self.last} of {len(self.ids)} tokens, read by {self.model.name}; "
            f"variants are {self.strategy})"
        )

    @property
    def strategy(self) -> Strategy:
        """How the next pass will run its variants."""
        return self._strategies[0]

    def run(
        self, n_variants: int, edits: Mapping[tuple[Kind, int], Edit], max_positions: int = 96
    ) -> Iterator[tuple[Int[Tensor, " variant"], Float[Tensor, "variant vocab"]]]:
        """For each pass, the numbers of its variants and their logits at the last token.

        `edits` are given by (kind, layer); layers below the lowest are not run again.
        `max_positions` bounds memory: a pass has at most this many positions, or a single variant.
        Gradients reach whatever the edits put in, and the graph of a pass can be freed before the
        next begins.

        Every pass has a control row, unless whole prompts are run. If its logits are not the
        prompt's own, the pass is repeated with the next strategy.
        """
        if max_positions < 1:
            raise ValueError(f"max_positions is {max_positions}: give 1 or more, such as 96.")
        done = 0
        while done < n_variants:
            variants = torch.arange(done, min(done + self._per_pass(max_positions), n_variants))
            logits = self._pass(variants, edits)
            if self.strategy != "whole" and not self._matches_prompt(logits[-1].detach()):
                self._next_strategy()
                continue
            yield variants, logits[: len(variants)]
            done += len(variants)

    def _run_prompt(self, kinds: tuple[Kind, ...]) -> None:
        """Run the prompt unedited; store its logits, the values at its end, the keys before it."""
        layers = range(self.model.n_layers)
        recorded: tuple[Kind, ...] = tuple(dict.fromkeys((*kinds, "resid_pre")))

        def at_the_end(values: Tensor) -> Tensor:
            return values.flatten(2)[0, -self.last :].detach().clone().to(self.model.device)

        ids = rearrange(self.ids, "pos -> 1 pos")
        with recording(self.model, recorded, at_the_end) as passes:
            if self.strategy != "whole":
                # Without a config the cache keeps all keys, even those outside a sliding window.
                self._prompt: Any = DynamicCache()
                block = self.model.bridge.blocks[0]
                handle = block.register_forward_hook(self._note_output_type)
                logits = self.model.bridge.original_model(
                    input_ids=ids,
                    use_cache=True,
                    logits_to_keep=1,
                    **{self._cache_name: self._prompt},
                ).logits
                handle.remove()
                for layer in self._prompt.layers:
                    layer.keys = layer.keys[:, :, : -self.last]
                    layer.values = layer.values[:, :, : -self.last]
            else:
                logits = self.model.logits(ids, keep=1)
        self.logits = logits[0, -1]
        values = {kind: [passes[kind, layer][0] for layer in layers] for kind in recorded}
        self.values = {kind: torch.stack(values[kind]) for kind in kinds}
        self._residual = values["resid_pre"]

    @property
    def _cache_name(self) -> str:
        """The forward pass's name for its keys and values; transformers 5.24 renamed them."""
        parameters = inspect.signature(self.model.bridge.original_model.forward).parameters
        return "cache" if "cache" in parameters else "past_key_values"

    def _note_output_type(self, block: Any, args: Any, output: Any) -> None:
        self._blocks_give_tuples = isinstance(output, tuple)

    def _possible_strategies(self) -> tuple[Strategy, ...]:
        """Strategies that may be tried, fastest first."""
        if isinstance(self.model, HookedTransformerModel) or self.last == len(self.ids):
            return ("whole",)
        if self.model.bridge.original_model._is_stateful:  # what a recurrence has read stays in it
            return ("whole",)
        if not _takes_mask(self.model):
            return ("copied", "whole")
        short = self.last <= _SHORT
        return ("packed", "copied", "whole") if short else ("copied", "packed", "whole")

    def _matches_prompt(self, control: Float[Tensor, " vocab"]) -> bool:
        tolerance = 1e-4 if control.dtype in (torch.float32, torch.float64) else 0.05
        difference = (control - self.logits).abs().max()
        return bool(difference <= tolerance * self.logits.abs().max())

    def _next_strategy(self) -> None:
        if len(self._strategies) == 1:
            raise ValueError(
                f"{self.model.name} does not give its own logits when variants are "
                f"{self.strategy}: leave `strategy` out."
            )
        self._strategies = self._strategies[1:]

    def _per_pass(self, max_positions: int) -> int:
        """The number of variants that a pass may have."""
        if self.strategy == "whole":
            return max(1, max_positions // len(self.ids))
        if self.strategy == "packed":
            return max(1, max_positions // self.last)
        keys = _KEYS_PER_POSITION * max_positions // len(self.ids)
        return max(1, min(max_positions // self.last, keys))

    def _pass(
        self, variants: Int[Tensor, " variant"], edits: Mapping[tuple[Kind, int], Edit]
    ) -> Float[Tensor, "row vocab"]:
        """Logits of the variants, then of the control row if there is one."""
        hooks = [
            (self.model.site(layer, kind), self._hook(edit, variants))
            for (kind, layer), edit in edits.items()
        ]
        if self.strategy == "whole":
            with self.model.hooks(hooks):
                return self._whole(len(variants))
        n = len(variants) + 1
        first = min((layer for _, layer in edits), default=0)
        with self._starting_at(first, n), self.model.hooks(hooks), self.model.frozen():
            return self._packed(n) if self.strategy == "packed" else self._copied(n)

    @contextmanager
    def _starting_at(self, first: int, n: int) -> Iterator[None]:
        """Within the block, layers below `first` are skipped, and `first` starts as in the prompt.

        Below `first`, no variant differs from the prompt. The control row would reveal an error.
        """
        axes = "1 (variant pos) unit" if self.strategy == "packed" else "variant pos unit"

        def put(values: Tensor, hook: Any) -> Tensor:
            return repeat(self._residual[first], f"pos unit -> {axes}", variant=n).to(values)

        def pass_through(hidden_states: Tensor, *args: Any, **settings: Any) -> Any:
            return (hidden_states, None) if self._blocks_give_tuples else hidden_states

        skipped = [self.model.bridge.blocks[layer] for layer in range(first)]
        hooks = [(self.model.site(first, "resid_pre"), put)] if first else []
        with running_instead(pass_through, skipped), self.model.hooks(hooks):
            yield

    def _hook(self, edit: Edit, variants: Int[Tensor, " variant"]) -> Hook:
        """Applies an edit to each variant's last tokens, with heads joined to one axis of units."""

        def run(values: Tensor, hook: Any) -> Tensor:
            rows = values.flatten(2)
            if self.strategy == "packed":
                rows = rearrange(rows, "1 (variant pos) unit -> variant pos unit", pos=self.last)
            ends = (slice(len(variants)), slice(-self.last, None))  # without the control row
            changed = rows.clone()
            changed[ends] = edit(rows[ends], variants.to(values.device))
            return changed.reshape(values.shape)

        return run

    def _packed(self, n: int) -> Float[Tensor, "variant vocab"]:
        n_before = len(self.ids) - self.last
        position = (n_before + torch.arange(self.last, device=self.ids.device)).repeat(n)
        last_tokens = torch.arange(self.last - 1, self.last * n, self.last, device=self.ids.device)
        logits = self.model.bridge.original_model(
            input_ids=rearrange(self.ids[n_before:].repeat(n), "pos -> 1 pos"),
            position_ids=rearrange(position, "pos -> 1 pos"),
            attention_mask=self._mask(position),
            use_cache=True,
            logits_to_keep=0 if self.last == 1 else last_tokens,
            **{self._cache_name: self._keys(1)},
        ).logits[0]
        return logits if len(logits) == n else logits[last_tokens]  # it may have kept them all

    def _copied(self, n: int) -> Float[Tensor, "variant vocab"]:
        return self.model.bridge.original_model(
            input_ids=self.ids[-self.last :].expand(n, -1),
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: self._keys(n)},
        ).logits[:, -1]

    def _whole(self, n: int) -> Float[Tensor, "variant vocab"]:
        return self.model.logits(self.ids.expand(n, -1), keep=1)[:, 0]

    def _keys(self, n: int) -> Any:
        """The prompt's keys and values for `n` rows; a pass adds to this cache, not to ours."""
        cache = copy.copy(self._prompt)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in cache.layers:
            layer.keys = layer.keys.expand(n, -1, -1, -1)
            layer.values = layer.values.expand(n, -1, -1, -1)
        return cache

    def _mask(self, position: Int[Tensor, " pos"]) -> Tensor | dict[str, Tensor]:
        """What is added to attention scores: zero where a query may attend, else minus infinity.

        If only some layers use a sliding window, there is one mask for each kind of layer.
        """
        n_before, device = len(self.ids) - self.last, position.device
        variant = torch.arange(len(position), device=device) // self.last
        key_variant = torch.cat([torch.full((n_before,), -1, device=device), variant])
        key = torch.cat([torch.arange(n_before, device=device), position])
        query_variant = rearrange(variant, "query -> query 1")
        query = rearrange(position, "query -> query 1")
        sees = ((key_variant == -1) | (key_variant == query_variant)) & (key <= query)
        window = _window(self.model)
        if window is None:
            return self._added(sees)
        nearby = self._added(sees & (key > query - window))
        if _layer_types(self.model) == {"full_attention", "sliding_attention"}:
            return {"full_attention": self._added(sees), "sliding_attention": nearby}
        return nearby

    def _added(self, sees: Bool[Tensor, "query key"]) -> Float[Tensor, "1 1 query key"]:
        dtype = self.model.bridge.original_model.dtype
        added = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
        return rearrange(added.masked_fill(~sees, float("-inf")), "query key -> 1 1 query key")


def _takes_mask(model: NeuronModel) -> bool:
    """Whether position ids can be set, and attention applies a mask of queries by keys."""
    hf = model.bridge.original_model
    return (
        "position_ids" in inspect.signature(hf.forward).parameters
        and not getattr(hf.config, "alibi", False)
        and hf.config._attn_implementation in ("eager", "sdpa")
        and _layer_types(model) <= {"full_attention", "sliding_attention"}
    )


def _layer_types(model: NeuronModel) -> set[str]:
    config = model.bridge.original_model.config.get_text_config()
    return set(getattr(config, "layer_types", None) or ())


def _window(model: NeuronModel) -> int | None:
    """How many keys a query sees in sliding-window attention, itself included."""
    if _layer_types(model) == {"full_attention"}:
        return None
    config = model.bridge.original_model.config.get_text_config()
    return getattr(config, "sliding_window", None)
