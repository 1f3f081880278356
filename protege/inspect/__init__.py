"""Look at a trajectory: as one self-contained HTML page, in the terminal, or as JSON.

Entry points: :func:`protege.inspect.model.view` (what is shown), :func:`protege.inspect.write.write_pages`
(pages and their index), :func:`protege.inspect.terminal.print_view`.
"""
