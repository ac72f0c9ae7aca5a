"""What a run keeps besides firing counts."""

from dataclasses import dataclass
from typing import Any

from interp.counting.statistics import STATISTICS
from interp.results.words import FiresBy, Kind


@dataclass(frozen=True)
class Keep:
    """What a run keeps besides firing counts, which every run keeps.

    >>> keep = interp.Keep(moments=True, contexts=2)
    >>> interp.collect(model, text, keep=keep, progress=False).kept
    ('firing', 'moments', 'contexts')
    """

    fires_by: FiresBy = "gate"
    """What must be above zero for a neuron to fire, in the counts that every run keeps."""

    moments: bool = False
    """Mean and standard deviation of act(gate) and of the neuron's output, per language."""

    sign_cases: bool = False
    """How often the gate and the linear branch are above zero, together and alone, see `SignCases`;
    the MLP must be gated."""

    negative_side: bool = False
    """How often the gate is below zero, and mean and mean square of the output there."""

    histograms: bool = False
    """Histograms of act(gate): 400 bins between two open ones, see `Histograms`. They take 1.6 kB
    of each neuron and piece, and a run that would not fit into memory or disk is refused. Where the
    bins are says grid.safetensors in the run's folder; if it is there before, it is used."""

    loss_effects: bool = False
    """Gradient times activation of the loss at every token, see `LossEffects`. It takes another
    pass, forward and backward: three times as long in all."""

    heads: bool = False
    """Mean and standard deviation of the norm of every attention head's output, see `UnitMoments`;
    the model must be loaded with attention="hooked"."""

    head_effects: bool = False
    """How the loss of each row depends on every attention head, see `HeadEffects`. It takes the
    pass of `loss_effects`, and attention="hooked"."""

    dimensions: bool = False
    """Mean and standard deviation of every dimension of the residual stream after each layer, see
    `UnitMoments`."""

    sentence_means: tuple[Kind, ...] = ()
    """Sites whose units are averaged over the tokens of each row; rows must be sentences."""

    special_tokens: bool = False
    """Include special tokens, such as beginning-of-text, in sentence means, as the code of Kojima
    et al. (2024) does if the tokenizer adds them; `bos` of `read_sentences` says what rows contain.
    Activations at the first token can be so large that they dominate the mean.
    Firing counts and moments always leave special tokens out."""

    signs: FiresBy | None = None
    """Which neurons fire at the last token of each row, by the sign of this value; rows must be
    parallel prompts."""

    signs_above: float = 0.0
    """Threshold that the value must exceed to fire; affects `signs` only."""

    contexts: int = 0
    """Number of rows to keep per neuron and language: those where its gate is highest, with their
    tokens, see `interp.counting.top_contexts`."""

    def __post_init__(self) -> None:
        if self.special_tokens and not self.sentence_means:
            raise ValueError(
                "special_tokens=True affects sentence means only, and none are kept: name their "
                'sites too, such as sentence_means=("pre",).'
            )
        if self.signs_above and self.signs is None:
            raise ValueError(
                f"signs_above={self.signs_above:g} affects signs only, and none are kept: add "
                'signs="gate", "activation" or "output".'
            )
        if self.contexts < 0:
            raise ValueError(f"contexts is {self.contexts}; it must be 0 or more.")

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics to keep, of those in `interp.counting.statistics`."""
        return tuple(name for name in STATISTICS if getattr(self, name))

    @property
    def of_gradients(self) -> bool:
        """Whether it takes a pass forward and backward besides the one that counts."""
        return any(STATISTICS[name].of_gradients for name in self.statistics)

    def plan(self) -> dict[str, Any]:
        """The entry in run.json. Options added later are written only if they are used, so that
        older runs can be resumed."""
        entry: dict[str, Any] = {
            "moments": self.moments,
            "sentence_means": list(self.sentence_means),
            "signs": self.signs is not None,
        }
        entry |= {name: True for name in self.statistics if name != "moments"}
        if self.special_tokens:
            entry["special_tokens"] = True
        if self.contexts:
            entry["contexts"] = self.contexts
        if self.signs not in (None, "gate"):
            entry["signs_of"] = self.signs
        if self.fires_by != "gate":
            entry["fires_by"] = self.fires_by
        if self.signs_above:
            entry["signs_above"] = self.signs_above
        return entry


FIRING_ALONE = Keep()
"""Firing counts and nothing else."""
