"""``protege ...`` for people: one module or package for each subcommand."""
