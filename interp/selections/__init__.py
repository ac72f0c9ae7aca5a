"""Scores in, sets of neurons out: algebra, files, stability."""
