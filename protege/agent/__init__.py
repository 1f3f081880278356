"""The agent: its loop, its tools, its prompts."""
