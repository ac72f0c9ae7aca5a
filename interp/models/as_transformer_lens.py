"""What users of TransformerLens call on a model: the same names, with the same defaults."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from interp.models.running import Pass
from interp.results.words import Tokens

Hook = Callable[..., Tensor | None]
HookPoints = str | Callable[[str], bool]
"""The name of a hook, or a function that chooses among names."""


class AsTransformerLens:
    """The calls that a model passes on to the TransformerBridge or HookedTransformer it wraps.

    While one of them runs, changes of chosen tokens know which tokens are the prompt.
    """

    bridge: Any
    name: str
    tokenizer: Any
    _trained: Sequence[nn.Parameter]
    _pass: Pass | None = None

    @property
    def cfg(self) -> Any:
        """The configuration that TransformerLens keeps."""
        return self.bridge.cfg

    def __call__(self, *inputs: Any, **settings: Any) -> Any:
        """Logits of token ids or text, as TransformerLens gives them."""
        with self._reading(inputs, settings):
            return self.bridge(*inputs, **settings)

    def run_with_cache(self, *inputs: Any, **settings: Any) -> tuple[Any, Any]:
        """Logits and an ActivationCache of token ids or text, as TransformerLens gives them.

        >>> _, cache = model.run_with_cache("One and one is two.")
        >>> interp.counting.fires(cache).shape
        torch.Size([6, 1, 2048])
        """
        with self._reading(inputs, settings), self._with_gradients(settings.get("incl_bwd")):
            return self.bridge.run_with_cache(*inputs, **settings)

    def run_with_hooks(self, *inputs: Any, **settings: Any) -> Any:
        """Logits under `fwd_hooks`, as TransformerLens gives them."""
        with self._reading(inputs, settings), self._with_gradients(settings.get("bwd_hooks")):
            return self.bridge.run_with_hooks(*inputs, **settings)

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Sequence[tuple[HookPoints, Hook]] = (),
        bwd_hooks: Sequence[tuple[HookPoints, Hook]] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[Any]:
        """Within the block, call `hook(activation, hook)` at each named site.

        A hook's return value replaces the activation; None leaves it unchanged. Hooks of an outer
        block run first. All hooks are removed on exit, even after an error.
        """
        names = {name for name, _ in (*fwd_hooks, *bwd_hooks) if isinstance(name, str)}
        if unknown := sorted(names - set(self.bridge.hook_dict)):
            # TransformerLens 3.9 would silently run without them.
            raise ValueError(
                f"{self.name} has no hook called {', '.join(unknown)}: "
                "build names with model.site(layer, kind)."
            )
        hooks = (list(fwd_hooks), list(bwd_hooks), reset_hooks_end, clear_contexts)
        with self._with_gradients(bwd_hooks), self.bridge.hooks(*hooks):
            yield self

    def generate(self, *inputs: Any, **settings: Any) -> Any:
        """A prompt with its continuation, sampled unless `do_sample=False`, as TransformerLens
        gives it; `continuations` takes rows of token ids and is greedy.

        >>> model.generate("Eins und eins ist", max_new_tokens=2, do_sample=False, verbose=False)
        'Eins und eins ist zwei.'
        """
        with self._tracked_pass(Pass(generates=True)):
            return self.bridge.generate(*inputs, **settings)

    def to_tokens(self, *inputs: Any, **settings: Any) -> Int[Tensor, "batch pos"]:
        """Token ids of text, padded, with a beginning-of-text token where TransformerLens puts one;
        `text_mask` tells them from text, and `encode` gives the text alone."""
        return self.bridge.to_tokens(*inputs, **settings)

    def to_str_tokens(self, *inputs: Any, **settings: Any) -> Any:
        """The tokens of a text as strings, as TransformerLens gives them."""
        return self.bridge.to_str_tokens(*inputs, **settings)

    def to_string(self, *inputs: Any, **settings: Any) -> Any:
        """The text of token ids, as TransformerLens gives it."""
        return self.bridge.to_string(*inputs, **settings)

    def to_single_token(self, *inputs: Any, **settings: Any) -> int:
        """The id of a text that is one token."""
        return self.bridge.to_single_token(*inputs, **settings)

    def to_single_str_token(self, *inputs: Any, **settings: Any) -> str:
        """The text of one token id."""
        return self.bridge.to_single_str_token(*inputs, **settings)

    if not TYPE_CHECKING:  # so that type checkers find misspelled names

        def __getattr__(self, name: str) -> Any:
            """Everything else that TransformerLens offers, such as `W_E`, `blocks`, `add_hook`."""
            bridge = vars(self).get("bridge")
            if name.startswith("_") or not hasattr(bridge, name):
                raise AttributeError(f"{type(self).__name__} has no attribute {name!r}.")
            return getattr(bridge, name)

    # ------------------------------------------------------------ passes

    def positions(self, n_positions: int, tokens: Tokens) -> Bool[Tensor, "_ pos"]:
        """Inside a hook: the positions of the current pass that `tokens` selects.

        "generated": generated tokens; "prompt": all others; "last": those that predict a new
        token, which are the last prompt token and every generated one. With a cache, each pass
        after the first holds only the newest token.
        """
        if self._pass is None:
            raise ValueError(
                f"tokens={tokens!r} needs to know which tokens are the prompt, which a bare model "
                "of TransformerLens does not say: run interp.wrap(model), not the model itself, or "
                'give tokens="all".'
            )
        return self._pass.positions(n_positions, tokens)

    @contextmanager
    def _tracked_pass(self, current: Pass) -> Iterator[None]:
        """Within the block, `positions` knows the padding and the prompt length."""
        outer_pass, self._pass = self._pass, current
        module = getattr(self.bridge, "original_model", None)
        if module is None:  # HookedTransformer.generate calls `forward` directly: no hooks on it
            module = self.bridge.embed

        def count(*_: Any) -> None:
            current.number += 1

        handle = module.register_forward_pre_hook(count) if current.generates else None
        try:
            yield
        finally:
            self._pass = outer_pass
            if handle is not None:
                handle.remove()

    @contextmanager
    def _reading(self, inputs: Sequence[Any], settings: Mapping[str, Any]) -> Iterator[None]:
        """A pass over text that TransformerLens encodes and pads itself."""
        mask = settings.get("attention_mask")
        if mask is None:
            mask = self._not_padding(next(iter(inputs), settings.get("input")), settings)
        with self._tracked_pass(Pass(mask=mask)):
            yield

    def _not_padding(
        self, given: Any, settings: Mapping[str, Any]
    ) -> Bool[Tensor, "batch pos"] | None:
        """False on padding tokens; None: there is no padding."""
        if isinstance(given, list) and len(given) > 1:
            side = {name: settings[name] for name in settings.keys() & {"padding_side"}}
            given = self.to_tokens(given, **side)
        pad = getattr(self.bridge.tokenizer, "pad_token_id", None)
        if not isinstance(given, Tensor) or given.ndim != 2 or pad is None:
            return None
        return given != pad

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within the block, no gradient reaches the parameters, so that none is computed."""
        thawed = [parameter for parameter in self._trained if parameter.requires_grad]
        for parameter in thawed:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in thawed:
                parameter.requires_grad_(True)

    @contextmanager
    def _with_gradients(self, wanted: Any) -> Iterator[None]:
        """Within the block, if wanted, gradients reach the activations of a frozen model."""
        if not wanted or any(parameter.requires_grad for parameter in self._trained):
            yield
            return

        def as_leaf(values: Tensor, hook: Any) -> Tensor:
            return values.detach().requires_grad_(torch.is_grad_enabled())

        with self.bridge.hooks(fwd_hooks=[("hook_embed", as_leaf)]):
            yield
