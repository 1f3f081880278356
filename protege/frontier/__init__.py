"""Who decides when the expert is asked, and how good the expert is: the systems of stage frontier.

Outside policy/ and expert/, so that a change here invalidates no rollout but the frontier's own (docs/design/0008-frontier.md).
"""
