"""Sandboxes: one protocol (base.py), two backends (docker.py, bubblewrap.py)."""
