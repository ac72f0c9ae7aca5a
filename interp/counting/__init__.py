"""One pass over text, and what it leaves of every neuron."""
