"""The records and the pure functions over them; no I/O beyond their own files."""
