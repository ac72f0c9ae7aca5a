"""A model whose MLP neurons can be read and changed, whatever TransformerLens calls its parts.

A neuron has two sites. `pre` is its gate before the activation function: the neuron fires where it
is above zero. `post` is the input to the output projection: zero there turns the neuron off. In a
gated MLP, `post` is act(pre) times `pre_linear`, so its sign is not that of the gate.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from interp.models.as_transformer_lens import AsTransformerLens
from interp.models.identity import hash_of_tokenizer, hash_of_weights
from interp.models.prefix import bos_of, prefix_of
from interp.models.running import Ids, Mask, Pass, check_padding, constant_output
from interp.models.sites import hook_name, share_weights
from interp.results.display import listed
from interp.results.words import Attention, Kind, UnitKind

_MOST_LOGITS = 1 << 26  # numbers in a chunk of logits: 256 MiB in float32
_HOOKED_ONLY = ("q", "k", "v", "z", "attn_out")

_ACTIVATIONS = ("act_fn", "activation_fn", "act", "activation", "gelu_impl")
_NAMED = ("hidden_activation", "hidden_act", "activation_function", "act_fn")  # in a config


class NeuronModel(AsTransformerLens):
    """A causal language model whose neurons have names; made by `load` or `wrap`.

    Gradients with respect to activations flow, none to parameters. What is not defined here is
    passed on to TransformerLens.

    >>> model.n_layers, model.d_mlp, model.gated
    (6, 2048, True)
    >>> model.site(3, "post")
    'blocks.3.mlp.hook_post'
    """

    def __init__(
        self,
        bridge: Any,
        tokenizer: Any,
        name: str,
        attention: Attention,
        parameters: Mapping[str, nn.Parameter],
        facts: Mapping[str, str] = {},
        precision: str = "",
    ):
        self.bridge = bridge
        self.tokenizer = tokenizer
        self.name = name
        self.attention: Attention = attention
        self._parameters = parameters
        self._facts = dict(facts)  # of the file that the weights come from, for the fingerprint
        self.ran_out_at: int | None = None  # tokens of the smallest batch too large for memory
        keys = ("architecture", "original_architecture")  # of a bridge, of a HookedTransformer
        self.architecture = next(filter(None, (getattr(bridge.cfg, key, None) for key in keys)))
        self.n_layers = len(getattr(bridge, "blocks", ()))
        shapes = {self._mlp_shape(layer) for layer in range(self.n_layers)}
        shape = shapes.pop() if len(shapes) == 1 else None
        if shape is None:
            refuse_experts(name, getattr(getattr(bridge, "original_model", None), "config", None))
            if share_weights(getattr(bridge, "blocks", ())):
                raise ValueError(
                    f"{name} ({self.architecture}) cannot be read neuron by neuron: some of its "
                    "layers share one MLP, so a neuron is not of one layer; use a model whose "
                    "layers each have an MLP of their own."
                )
            raise ValueError(
                f"{name} ({self.architecture}) cannot be read neuron by neuron: every layer needs "
                "one MLP with one output projection, all of the same width; mixtures of experts, "
                "state-space and encoder-decoder models are not supported."
            )
        self.d_mlp, self.d_model = shape
        self.gated = "blocks.0.mlp.hook_pre_linear" in bridge.hook_dict
        self.n_vocab: int = bridge.cfg.d_vocab
        self.max_length: int = bridge.cfg.n_ctx
        bridge.eval()
        self._trained = tuple(bridge.parameters())
        self.precision = precision or str(self.dtype).removeprefix("torch.")  # and why

    def __repr__(self) -> str:
        size = f"{self.n_layers} layers of {self.d_mlp} neurons"
        return f"NeuronModel({self.name!r}: {size}, {self.precision})"

    @property
    def device(self) -> torch.device:
        """The device for token ids; with a `device_map`, layers may be on other devices."""
        device = next(self.bridge.parameters()).device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.bridge.parameters() if p.is_floating_point())

    @property
    def offloaded(self) -> bool:
        """Whether some weights are off the device and loaded during each forward pass."""
        return any(parameter.is_meta for parameter in self._parameters.values())

    def layer_device(self, layer: int) -> torch.device:
        """The device of a layer's activations."""
        device = next(self.bridge.blocks[layer].parameters()).device
        return torch.device("cpu") if device.type == "meta" else device

    def width(self, layer: int, kind: UnitKind) -> int:
        """Units at a site: neurons, residual dimensions, heads, or heads times head width."""
        if kind in ("pre", "pre_linear", "post"):
            return self.d_mlp
        cfg = self.bridge.cfg
        if kind == "head":
            return cfg.n_heads
        if kind in ("q", "k", "v", "z"):
            grouped = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
            return (cfg.n_heads if kind in ("q", "z") else grouped) * cfg.d_head
        return self.d_model

    def rows_site(self, layer: int, kind: Kind) -> str:
        """As `site`, for hooks that also take the rows of a mixture of experts."""
        return self.site(layer, kind)

    def n_calls(self, layer: int, kind: Kind) -> int:
        """How often the hooks of a site run in a pass; more than once only in a mixture."""
        return 1

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Beginning-of-text, padding and other control tokens, which are not text."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        control = {id for id, token in added.items() if token.special}
        named = set(getattr(self.tokenizer, "all_special_ids", ()))
        return tuple(sorted(control | named | set(self.prefix_ids)))

    def text_mask(self, tokens: Ids) -> Bool[Tensor, "batch pos"]:
        """Which tokens are text: False on padding, beginning-of-text and other special ones.

        >>> model.text_mask(torch.tensor([[model.bos_id, 300, 301]]))
        tensor([[False,  True,  True]])
        """
        return ~torch.isin(tokens, torch.tensor(self.special_ids, device=tokens.device))

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """What the tokenizer puts before every text that it encodes by itself; () if nothing."""
        return prefix_of(self.tokenizer)

    @property
    def bos_id(self) -> int | None:
        """The beginning-of-text token; None if there is none. It may be one that no text gets."""
        return bos_of(self.tokenizer)

    @functools.cached_property
    def _weights(self) -> str:
        """Computed once: about a second per GB."""
        return hash_of_weights(self._parameters)

    @property
    def _processing(self) -> str:
        """What TransformerLens did to the weights; it changes residual streams, not neurons."""
        # Stored fingerprints hold this spelling.
        return "folded and centred" if self.bridge._weights_processed else "none"

    @property
    def fingerprint(self) -> dict[str, str]:
        """The model properties that results depend on. Weights are hashed once, at first use."""
        return {
            "name": self.name,
            "architecture": self.architecture,
            "weights": self._weights,
            "tokenizer": "none" if self.tokenizer is None else hash_of_tokenizer(self.tokenizer),
            "processing": self._processing,
            "attention": self.attention,
            "dtype": str(self.dtype).removeprefix("torch."),
            "library": f"transformer-lens {version('transformer-lens')}, "
            f"transformers {version('transformers')}",
            **self._facts,
        }

    @property
    def identity(self) -> dict[str, str]:
        """The fingerprint without the name, which may be a path: moving a model does not change
        it."""
        names = ("name", "file")
        return {key: value for key, value in self.fingerprint.items() if key not in names}

    def site(self, layer: int, kind: Kind) -> str:
        """The hook name of a site in one layer, for `hooks`."""
        if not 0 <= layer < self.n_layers:
            raise ValueError(f"Layer {layer} does not exist: {self.name} has {self.n_layers}.")
        name = hook_name(layer, kind)
        if name not in self.bridge.hook_dict:
            unhooked = kind in _HOOKED_ONLY and self.attention == "native"
            raise ValueError(
                f"{kind!r} is not a site of {self.name}, which has {listed(self.sites(layer))}."
                + (' Load it with attention="hooked" for sites in attention.' if unhooked else "")
            )
        return name

    def sites(self, layer: int) -> tuple[Kind, ...]:
        """The sites of a layer: what its hooks can read and change.

        >>> model.sites(0)
        ('pre', 'pre_linear', 'post', 'mlp_out', 'resid_pre', 'resid_post')
        """
        names = self.bridge.hook_dict
        return tuple(kind for kind in get_args(Kind) if hook_name(layer, kind) in names)

    def act(
        self, layer: int, pre: Float[Tensor, "*batch neuron"]
    ) -> Float[Tensor, "*batch neuron"]:
        """The layer's activation function: the same module that the model runs."""
        activation = self.activation(layer)
        if activation is not None:
            return activation(pre)
        # LFM2 and others call one of torch's functions; `doctor` checks that it is this one.
        config = self.bridge.cfg
        named = next(filter(None, (getattr(config, key, None) for key in _NAMED)), "silu")
        return ACT2FN[named](pre)

    def activation(self, layer: int) -> Callable[[Tensor], Tensor] | None:
        """The module or function that the model calls; None if it is under no known name."""
        mlp = self.bridge.blocks[layer].mlp
        return activation_of(getattr(mlp, "original_component", None), mlp)

    def w_in(self, layer: int) -> Float[Tensor, "d_model neuron"]:
        """Weights into `pre`, or into `pre_linear` if the MLP is gated."""
        return self._weight(layer, "W_in")

    def w_gate(self, layer: int) -> Float[Tensor, "d_model neuron"] | None:
        """Weights into `pre` if the MLP is gated, else None."""
        return self._weight(layer, "W_gate") if self.gated else None

    def w_out(self, layer: int) -> Float[Tensor, "neuron d_model"]:
        """Weights from `post` to the residual stream."""
        return self._weight(layer, "W_out")

    def written(
        self, layer: int, neurons: Int[Tensor, " neuron"]
    ) -> Float[Tensor, "neuron d_model"]:
        """What these neurons of a layer write to the residual stream, per unit of their output.

        >>> model.written(5, torch.tensor([7, 40])).equal(model.w_out(5)[[7, 40]])
        True
        """
        weight = self.w_out(layer)
        return weight[neurons.to(weight.device)]

    def _weight(self, layer: int, name: str) -> Tensor:
        try:
            return getattr(self.bridge.blocks[layer].mlp, name).detach()
        except NotImplementedError:
            raise self._unreadable(layer) from None

    def _unreadable(self, layer: int) -> ValueError:
        return ValueError(
            f"The weights of layer {layer} of {self.name} are quantized or offloaded, so their "
            "values cannot be read: its neurons can be recorded and edited, but for this, load "
            "it in full precision without offloading."
        )

    def _mlp_shape(self, layer: int) -> tuple[int, int] | None:
        """d_mlp and d_model, from the output projection; None if there is none."""
        mlp = getattr(self.bridge.blocks[layer], "mlp", None)
        if f"blocks.{layer}.mlp.hook_pre" not in self.bridge.hook_dict:
            return None
        projection = getattr(getattr(mlp, "out", None), "original_component", None)
        if projection is not None and hasattr(
            projection, "in_features"
        ):  # right even where quantized weights are packed
            return projection.in_features, projection.out_features
        weight = getattr(mlp, "W_out", None)
        return None if weight is None else tuple(weight.shape)

    def body(self, ids: Ids, mask: Mask | None = None) -> None:
        """Run all layers and their hooks, but not the unembedding. Right padding only."""
        self._hidden(ids, mask)

    def losses(
        self, ids: Ids, mask: Mask | None = None, rows: int = 256
    ) -> Float[Tensor, "batch _"]:
        """Loss in nats of each token given those before it; [i, j] is token j + 1 of text i.

        Zero on padding, where `mask[:, 1:]` is False. Float32 or better. At most `rows` rows of
        logits are in memory at a time, each as wide as the vocabulary, and fewer of a vocabulary
        over 262,144; hooks after the last layer run once per such chunk, in which texts are mixed.
        Right padding only.
        """
        if rows < 1:
            raise ValueError(f"rows is {rows}, but must be at least 1.")
        hidden = self._hidden(ids, mask)
        following = ids[:, 1:].to(self.device)
        real = torch.ones_like(following) if mask is None else mask[:, 1:].to(self.device)
        real = real.bool()
        rows = min(rows, max(1, _MOST_LOGITS // self.n_vocab))
        states = hidden[:, :-1][real.to(hidden.device)].split(rows)
        targets = following[real].long().split(rows)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        nats = torch.zeros(real.shape, dtype=dtype, device=self.device)
        if real.any():
            chunks = []
            for state, target in zip(states, targets, strict=True):
                logits = self._unembed(state).to(self.device, dtype)
                chunks.append(functional.cross_entropy(logits, target, reduction="none"))
            nats[real] = torch.cat(chunks)
        return nats

    def logits(
        self, ids: Ids, mask: Mask | None = None, keep: int = 0
    ) -> Float[Tensor, "batch _ vocab"]:
        """Logits at every position, or at the last `keep`. Right padding only."""
        attended = self._padded("right", mask)
        with self._tracked_pass(Pass(attended)), self.frozen():
            logits = self.bridge.original_model(
                input_ids=ids.to(self.device),
                attention_mask=attended,
                use_cache=False,
                logits_to_keep=keep,
            ).logits
        return logits[:, -keep:]  # of all positions where the model ignores `logits_to_keep`

    def continuations(self, ids: Ids, mask: Mask, **settings: Any) -> Int[Tensor, "batch _"]:
        """Prompts with their continuations; greedy unless `do_sample=True`. Left padding only.

        `settings` go to Hugging Face's `generate`, such as `max_new_tokens`. With its cache, hooks
        see the whole prompt once, then one position at a time.
        """
        pad = getattr(self.tokenizer, "pad_token_id", None) or 0  # the mask hides it
        settings = {"do_sample": False, "pad_token_id": pad, **settings}
        attended = self._padded("left", mask)
        with self._tracked_pass(Pass(attended, prompt=ids.shape[1], generates=True)):
            return self.bridge.original_model.generate(
                ids.to(self.device), attention_mask=attended, **settings
            )

    @property
    def _stack(self) -> Any:
        """The model without its unembedding, to which the base model of Llama 4 does not point."""
        model = self.bridge.original_model
        return model.model if model.base_model is model else model.base_model

    def _hidden(self, ids: Ids, mask: Mask | None) -> Float[Tensor, "batch pos _"]:
        """The input to the unembedding. Right padding only."""
        attended = self._padded("right", mask)
        with self._tracked_pass(Pass(attended)), self.frozen():
            return self._stack(
                input_ids=ids.to(self.device), attention_mask=attended, use_cache=False
            )[0]

    def _unembed(self, hidden: Float[Tensor, "row _"]) -> Float[Tensor, "row vocab"]:
        """Logits, computed by the model's own code, since many models scale or cap them.

        The model runs with `hidden` instead of the output of its layers.
        """
        model = self.bridge.original_model
        output = _Output()
        # Not an argument: transformers 5.22 annotates it as float32, which fails type checks.
        output["last_hidden_state"] = rearrange(hidden, "row d_model -> 1 row d_model")
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=self.device)
        # OPT bypasses its base model and calls the decoder inside.
        bodies = [self._stack, getattr(self._stack, "decoder", None)]
        replaced = constant_output([body for body in bodies if body is not None], output)
        with replaced, self.frozen():
            return model(input_ids=ids, use_cache=False).logits[0]

    def _padded(
        self, side: Literal["left", "right"], mask: Mask | None
    ) -> Int[Tensor, "batch pos"] | None:
        """The mask in the model's format, refused if its padding is on the wrong side."""
        if mask is None:
            return None
        check_padding(side, mask)
        return mask.long().to(self.device)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, from the unmodified tokenizer, without special tokens."""
        if not texts:
            return []
        if self.tokenizer is None:
            raise ValueError(f"{self.name} has no tokenizer: give one to wrap(model, tokenizer).")
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids: Sequence[int] | Int[Tensor, " pos"]) -> str:
        """The text of token ids, including special tokens."""
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


class _Output(BaseModelOutputWithPastAndCrossAttentions):
    """What the layers of a model give, without the parts of it that some models add, such as what
    they saw in a picture."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def activation_of(*modules: Any) -> Callable[[Tensor], Tensor] | None:
    """The activation function of an MLP, by the names that it has; None: by no known name."""
    pairs = itertools.product(modules, _ACTIVATIONS)
    named = (getattr(module, name, None) for module, name in pairs)
    found: list[Any] = [function for function in named if callable(function)]
    return found[0] if found else None


def refuse_experts(
    name: str | Path,
    config: Any,
    why: str = "they are not computed by transformers' ALL_EXPERTS_FUNCTIONS",
) -> None:
    """Refuse a mixture of experts that cannot be read, recognized by the known keys of configs."""
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    n_experts = n_experts_of(config)
    if n_experts is not None:
        raise ValueError(
            f"{name} ({text_config.model_type}) cannot be read neuron by neuron: it is a mixture "
            f"of {n_experts} experts per layer, and {why}; use another mixture, or a dense model."
        )


def n_experts_of(config: Any) -> int | None:
    """Experts per layer by the known keys of such configs; None: it names none."""
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        n_experts = getattr(text_config, key, None)
        if isinstance(n_experts, int) and n_experts > 0:
            return n_experts
    return None
