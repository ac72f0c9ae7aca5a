"""How sure a number is: intervals, permutation tests, claims."""
