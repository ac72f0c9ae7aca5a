"""One pass over text, and the statistics of every neuron that it yields."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
