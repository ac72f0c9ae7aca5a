"""What the end of one prompt depends on: attribution, patching, lens."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
