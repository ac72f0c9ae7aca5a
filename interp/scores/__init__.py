"""Numbers in, scores out: LAPE, average precision, sharing, baselines."""
