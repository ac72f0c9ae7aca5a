"""Which neurons of a multilingual language model belong to a language, and what they do.

A name is loaded when it is first used, so that what needs no model starts at once. The names are
those of __init__.pyi, which type checkers read. EAGER_IMPORT=1 in the environment loads them all.
"""

import sys

import lazy_loader

if "IPython" in sys.modules:  # first of all that loads tqdm: see there
    from interp.results import bars as bars

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
