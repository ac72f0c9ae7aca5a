"""Edits of neuron outputs, in a `with` block or written to files, and training of chosen units."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
