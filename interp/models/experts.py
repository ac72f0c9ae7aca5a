"""Mixtures of experts while they run: one computation that shows and takes edits of every neuron.

Since version 5, transformers computes all routed experts of a layer in one function, which the
configuration names. The one registered here gives what its "grouped_mm" gives. On the way it shows
each hook the neurons' values, one row for each token and each expert that the token was routed to,
sorted by expert. Dense MLPs and shared experts show theirs in the same form, one row per token.
Experts with a loop of their own, as in Llama 4, are computed by the same function while hooked.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.integrations import moe

from interp.models.as_transformer_lens import Hook
from interp.models.expert_loops import LOOPS
from interp.models.neuron_model import activation_of
from interp.models.sites import has_loop, is_routed

IMPLEMENTATION = "polyneuron"
"""Its name among transformers' implementations of experts."""

RowKind = Literal["routing", "pre", "pre_linear", "post"]
"""What a hook sees. "routing": the weights with which a token's experts are added, [token rank]."""

_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_SPLIT = ("gate", "in", "out")
"""The same in a bridge that splits the matrix of gate and linear branch, as of Granite 4."""


@dataclass(frozen=True, eq=False)
class Rows:
    """What the rows of a hooked tensor stand for; hooks of a mixture get it as `hook`."""

    token: Int[Tensor, " row"]
    """Index of the row's token among those of the pass, batch times position."""

    expert: Int[Tensor, "*row"] | None
    """The expert of each row, in increasing order; None: these neurons see every token. Of weights
    of routing: the expert of each."""

    first: int
    """Index in the layer of the first of these neurons."""

    n_experts: int
    """Experts with neurons here; 1 if every token is seen."""

    shape: tuple[int, int] | None
    """Texts and positions of the pass; None if the layer did not say."""

    def chosen(self, units: Float[Tensor, " neuron"] | Bool[Tensor, " neuron"], width: int) -> Any:
        """One row of `units`, which has a number for each neuron of the layer, per row."""
        own = units[self.first : self.first + self.n_experts * width]
        by_expert = rearrange(own, "(expert neuron) -> expert neuron", neuron=width)
        return by_expert if self.expert is None else by_expert[self.expert]


@dataclass(frozen=True, eq=False)
class DensePart:
    """A dense MLP, or shared experts: neurons of a layer that see every token."""

    mlp: nn.Module
    first: int

    @property
    def _names(self) -> tuple[str, str, str]:
        """Of gate, linear branch and output projection."""
        return _SPLIT if _is_split(self.mlp) else _PROJECTIONS

    @property
    def _down(self) -> Any:
        return getattr(self.mlp, self._names[2])

    @property
    def d_expert(self) -> int:
        return _linear_width(self._down)

    @property
    def gated(self) -> bool:
        return self._names[0] in self.mlp._modules

    n_experts = 1
    weighs_output = False

    @property
    def module(self) -> nn.Module:
        """What gets the layer's hidden states."""
        return self.mlp

    def gate(self, state: Float[Tensor, " d_model"], expert: int) -> Float[Tensor, " neuron"]:
        """The gates that the weights make of one token's hidden state."""
        return self._input("pre")(state)

    def _input(self, kind: RowKind) -> Any:
        """The projection that gives values of this kind."""
        gate, up, _ = self._names
        return getattr(self.mlp, gate if kind == "pre" and self.gated else up)

    def activated(self, gate: Float[Tensor, "row neuron"]) -> Float[Tensor, "row neuron"]:
        """What the neurons' gates become, by the activation function."""
        activation = activation_of(self.mlp)
        if activation is None:
            raise ValueError(
                f"The activation function of {type(self.mlp).__name__} has no known name: count "
                'with fires_by="gate" or "output".'
            )
        return activation(gate)

    def down(self) -> tuple[Tensor, int]:
        """The weights that write the neurons' output, to be changed, and the axis of neurons."""
        return self._down.weight, 1

    def written(
        self, expert: Int[Tensor, " row"] | None, neuron: Int[Tensor, " row"]
    ) -> Float[Tensor, "row d_model"]:
        """What one neuron of each row adds to the output, per unit of its own."""
        return self.down()[0][:, neuron].T

    @contextmanager
    def hooked(
        self, kind: RowKind, hook: Hook, shape: Callable[[], tuple[int, int] | None]
    ) -> Iterator[None]:
        """Within the block, `hook` sees and may replace the values of one kind."""

        def run(values: Tensor) -> Tensor:
            flat = values.reshape(-1, values.shape[-1])
            token = torch.arange(len(flat), device=flat.device)
            given = hook(flat, hook=Rows(token, None, self.first, 1, shape()))
            return values if given is None else given.view_as(values)

        def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (run(args[0]), *args[1:])

        def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
            return run(output)

        if kind == "post":
            handle = self._down.register_forward_pre_hook(before)
        else:
            handle = self._input(kind).register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True, eq=False)
class RoutedPart:
    """The routed experts of a layer."""

    experts: Any
    first: int

    @property
    def weighs_output(self) -> bool:
        """Whether a token's weights of routing multiply what its experts write."""
        return getattr(self.experts, "weighs_output", True)

    @property
    def n_experts(self) -> int:
        return int(self.experts.num_experts)

    @property
    def d_expert(self) -> int:
        stored, axis = self.down()
        return stored.shape[axis]

    @property
    def gated(self) -> bool:
        return bool(self.experts.has_gate)

    @property
    def module(self) -> nn.Module:
        """What gets the layer's hidden states."""
        return self.experts

    def gate(self, state: Float[Tensor, " d_model"], expert: int) -> Float[Tensor, " neuron"]:
        """The gates that the weights make of one token's hidden state."""
        experts = self.experts
        name = "gate_up_proj" if self.gated else "up_proj"
        weight = getattr(experts, name)[expert]
        both = state @ weight if experts.is_transposed else weight @ state
        if experts.has_bias:
            both = both + getattr(experts, f"{name}_bias")[expert]
        if not self.gated:
            return both
        return both[: self.d_expert] if experts.is_concatenated else both[::2]

    def activated(self, gate: Float[Tensor, "row neuron"]) -> Float[Tensor, "row neuron"]:
        """The output that the neurons' gates have beside a linear branch of 1."""
        default = getattr(self.experts._apply_gate, "__func__", None) is moe._default_apply_gate
        if not self.gated or default:
            return self.experts.act_fn(gate)
        both = torch.stack([gate, torch.ones_like(gate)])
        packed = rearrange(both, f"branch row neuron -> {_axes(self.experts)}")
        return self.experts._apply_gate(packed)

    def down(self) -> tuple[Tensor, int]:
        """The weights that write the neurons' output, to be changed, and the axis of neurons."""
        return self.experts.down_proj, 1 if self.experts.is_transposed else 2

    def written(
        self, expert: Int[Tensor, " row"] | None, neuron: Int[Tensor, " row"]
    ) -> Float[Tensor, "row d_model"]:
        """What one neuron of each row adds to its expert's output, per unit of its own."""
        stored, axis = self.down()
        return stored[expert, neuron] if axis == 1 else stored[expert, :, neuron]

    @contextmanager
    def hooked(
        self, kind: RowKind, hook: Hook, shape: Callable[[], tuple[int, int] | None]
    ) -> Iterator[None]:
        """Within the block, `hook` sees and may replace the values of one kind."""
        entry = (kind, hook, self.first, shape)
        watched = vars(self.experts).setdefault(_WATCHED, [])
        watched.append(entry)
        try:
            with self._watched():
                yield
        finally:
            watched.remove(entry)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Within the block, `watched_experts` computes the experts."""
        moe.ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, watched_experts)
        config = self.experts.config
        before, config._experts_implementation = config._experts_implementation, IMPLEMENTATION
        try:
            yield
        finally:
            config._experts_implementation = before


class LoopPart(RoutedPart):
    """The routed experts of a layer that has a loop of its own: a `Loop`."""

    @property
    def module(self) -> nn.Module:
        return self.experts.block

    def gate(self, state: Float[Tensor, " d_model"], expert: int) -> Float[Tensor, " neuron"]:
        return super().gate(self.experts.read(state, expert), expert)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        own = vars(self.experts.block)
        before = {"forward": own["forward"]} if "forward" in own else {}
        own["forward"] = partial(self.experts.forward, watched_experts)
        try:
            yield
        finally:
            del own["forward"]
            own.update(before)


Part = DensePart | RoutedPart

_WATCHED = "_polyneuron_hooks"
"""Attribute of an experts module: the hooks of its rows, in the order in which they run."""


def parts_of(layer: nn.Module) -> list[Part]:
    """The dense neurons of a layer, then those of its routed experts."""
    modules = list(dict.fromkeys(layer.modules()))
    up_and_down = set(_PROJECTIONS[1:])
    dense = [one for one in modules if up_and_down <= one._modules.keys() or _is_split(one)]
    routed = [module for module in modules if is_routed(module)]
    if len(dense) > 1 or len(routed) > 1:
        raise ValueError(
            f"A layer has {len(dense)} dense MLPs and {len(routed)} sets of experts: one of each "
            "at most can be read."
        )
    parts: list[Part] = [DensePart(module, 0) for module in dense]
    first = sum(part.d_expert for part in parts)
    for module in routed:
        loop = LOOPS[type(module).__name__] if has_loop(module) else None
        parts.append(LoopPart(loop(module), first) if loop else RoutedPart(module, first))
    return parts


@contextmanager
def all_hooked(
    layer: nn.Module, parts: Sequence[Part], hooks: Sequence[tuple[RowKind, Hook]]
) -> Iterator[None]:
    """Within the block, the hooks of a layer run on every part that has their kind of value."""
    seen: dict[str, tuple[int, int]] = {}

    def remember(module: nn.Module, args: tuple[Any, ...], settings: Mapping[str, Any]) -> None:
        hidden = args[0] if args else settings["hidden_states"]
        seen["shape"] = (hidden.shape[0], hidden.shape[1])

    with ExitStack() as stack:
        handle = layer.register_forward_pre_hook(remember, with_kwargs=True)
        stack.callback(handle.remove)
        for kind, hook in hooks:
            for part in parts:
                if kind != "routing" or isinstance(part, RoutedPart):
                    stack.enter_context(part.hooked(kind, hook, lambda: seen.get("shape")))
        yield


# ---------------------------------------------------------------- the computation


def watched_experts(
    module: Any,
    hidden: Float[Tensor, "token d_model"],
    expert: Int[Tensor, "token rank"],
    weight: Float[Tensor, "token rank"],
) -> Float[Tensor, "token d_model"]:
    """What transformers' "grouped_mm" computes, with hooks on the way."""
    weighs_output = getattr(module, "weighs_output", True)
    assert not module._is_expert_parallel, "experts on several processes are refused when loading"
    n_ranks = expert.shape[1]
    ordered, order = rearrange(expert, "token rank -> (token rank)").sort(stable=True)
    token = order // n_ranks
    ends = torch.bincount(ordered, minlength=module.num_experts).cumsum(0).int()
    each_token = torch.arange(len(hidden), device=hidden.device)
    weight = _shown(module, "routing", weight, expert, each_token)
    by_row = rearrange(weight, "token rank -> (token rank) 1")[order]

    states = hidden[token] if weighs_output else hidden[token] * by_row
    values = _project(module, "gate_up_proj" if module.has_gate else "up_proj", states, ends)
    if module.has_gate:
        values = _shown_gates(module, values, ordered, token)
        post = module._apply_gate(values)
    else:
        post = module.act_fn(_shown(module, "pre", values, ordered, token))
    post = _shown(module, "post", post, ordered, token)
    output = _project(module, "down_proj", post, ends, ordered)
    if module.has_post_expert_norm:
        output = module.post_expert_norm(output)
    output = output * by_row if weighs_output else output
    by_token = torch.empty_like(output).index_copy(0, order, output)
    by_rank = rearrange(by_token, "(token rank) d_model -> token rank d_model", rank=n_ranks)
    return reduce(by_rank, "token rank d_model -> token d_model", "sum").to(hidden.dtype)


def _project(
    module: Any,
    name: str,
    rows: Float[Tensor, "row width"],
    ends: Int[Tensor, " expert"],
    expert: Int[Tensor, " row"] | None = None,
) -> Float[Tensor, "row _"]:
    bias = None
    if module.has_bias:
        if expert is None:
            sizes = ends.diff(prepend=ends.new_zeros(1))
            expert = torch.arange(len(ends), device=ends.device).repeat_interleave(sizes)
        bias = getattr(module, f"{name}_bias")[expert]
    weight = getattr(module, name)
    return moe._grouped_linear(rows, weight, ends, bias=bias, is_transposed=module.is_transposed)


def _shown_gates(
    module: Any,
    both: Float[Tensor, "row _"],
    expert: Int[Tensor, " row"],
    token: Int[Tensor, " row"],
) -> Float[Tensor, "row _"]:
    """Gate and linear branch, which are halves of each row, or alternate."""
    axes = _axes(module)
    branches = rearrange(both, f"{axes} -> branch row neuron", branch=2)
    gate, linear = branches[0], branches[1]
    new_gate = _shown(module, "pre", gate, expert, token)
    new_linear = _shown(module, "pre_linear", linear, expert, token)
    if new_gate is gate and new_linear is linear:
        return both
    return rearrange(torch.stack([new_gate, new_linear]), f"branch row neuron -> {axes}")


def _axes(experts: Any) -> str:
    """How gate and linear branch are laid out in a row: as halves, or in turn."""
    return "row (branch neuron)" if experts.is_concatenated else "row (neuron branch)"


def _shown(
    module: Any,
    kind: RowKind,
    values: Tensor,
    expert: Int[Tensor, "..."],
    token: Int[Tensor, " row"],
) -> Tensor:
    """The values after the hooks of this kind."""
    for wanted, hook, first, shape in vars(module).get(_WATCHED, ()):
        if wanted == kind:
            rows = Rows(token, expert, first, module.num_experts, shape())
            given = hook(values, hook=rows)
            values = values if given is None else given
    return values


def _is_split(mlp: nn.Module) -> bool:
    return "fused_attr" in vars(mlp)


def _linear_width(projection: Any) -> int:
    """The inputs of a linear layer, whether or not a bridge is around it."""
    return int(getattr(projection, "in_features", 0) or projection.weight.shape[1])
