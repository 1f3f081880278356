"""Grading in a fresh sandbox that the agent never touched, by the official harness."""
