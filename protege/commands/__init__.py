"""Subcommands of ``protege``: one module each, with ``register(app)``."""
