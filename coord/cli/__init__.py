"""The `coord` command: one module for each group of subcommands. A library user needs nothing of it."""
