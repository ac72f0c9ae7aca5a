"""Progress bars: tqdm's, drawn by ipywidgets in a notebook that has them, as text elsewhere.

Without ipywidgets tqdm draws text in a notebook too, but its first import there prints a warning in
a red box. So the whole library imports tqdm from here, and in a notebook `import interp` does too.
"""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "IProgress not found")
    from tqdm.auto import tqdm

__all__ = ["tqdm"]
