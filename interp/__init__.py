"""Find the language-specific neurons of a multilingual language model, and what they do.

Names are loaded on first use, so that code which needs no model starts at once. The names are
those in __init__.pyi, which type checkers read. EAGER_IMPORT=1 in the environment loads them all.
"""

import sys

import lazy_loader

if "IPython" in sys.modules:  # before anything else loads tqdm: see that module
    from interp.results import bars as bars

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
