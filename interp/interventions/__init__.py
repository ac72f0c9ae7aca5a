"""Change what neurons give, in a `with` block or for good."""
