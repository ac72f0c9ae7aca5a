"""What the end of one prompt depends on: attribution, patching, lens."""
