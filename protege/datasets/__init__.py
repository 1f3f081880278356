"""Rows in: other systems' instances, and their splits."""
