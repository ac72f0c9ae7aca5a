"""The subcommands of `interp`: options, one call, a print."""
