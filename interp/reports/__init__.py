"""Results and neurons as pages of HTML that open anywhere."""
