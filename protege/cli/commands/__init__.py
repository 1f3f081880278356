"""The arguments of each subcommand; importing them loads none of the work behind."""
