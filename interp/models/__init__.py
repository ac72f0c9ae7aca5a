"""Models with named neuron sites; only load.py imports TransformerLens."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
