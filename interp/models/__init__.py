"""A model whose neurons have names; the one file that imports TransformerLens is load.py."""
