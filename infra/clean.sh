#!/usr/bin/env bash
# Removes what was generated: outs, cache, virtual environment, tool caches. Nothing that git tracks or that you put here.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf data/models data/instances data/trajectories data/validation data/sft data/rl data/evaluation data/report data/metrics data/plots data/inspect data/frontier data/seeds
rm -rf .cache/protege .venv .dvc/cache .dvc/tmp .mypy_cache .ruff_cache .pytest_cache .hypothesis ./*.egg-info
for lock in dvc.lock frontier/dvc.lock; do git ls-files --error-unmatch $lock >/dev/null 2>&1 || rm -f $lock; done  # made by the first run; DVC's users commit it
rmdir .cache 2>/dev/null || true
find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
echo "clean: generated files removed"
