from .hub import from_hub, push_to_hub
from .neuron_page import NeuronPage
from .neuronpedia import read_neuronpedia, write_neuronpedia
from .report import Picture, Section

__all__ = [
    "NeuronPage",
    "Picture",
    "Section",
    "from_hub",
    "push_to_hub",
    "read_neuronpedia",
    "write_neuronpedia",
]
