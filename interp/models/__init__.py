"""A model whose neurons have names; the one file that imports TransformerLens is load.py."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
