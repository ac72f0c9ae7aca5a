from .neuron_page import NeuronPage
from .report import Picture, Section

__all__ = ["NeuronPage", "Picture", "Section"]
