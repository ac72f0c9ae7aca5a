"""The subcommands of `interp`: each reads options, makes one call, prints the result."""
