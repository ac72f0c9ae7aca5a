"""Progress bars: tqdm's, drawn by ipywidgets in a notebook that has them, and as text elsewhere.

Without ipywidgets tqdm draws text in a notebook too, but first warns in a red box, once, whoever
loads it. So this is where the library takes it from, and in a notebook `import interp` loads it.
"""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "IProgress not found")
    from tqdm.auto import tqdm

__all__ = ["tqdm"]
