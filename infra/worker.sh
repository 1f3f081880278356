#!/bin/sh
# What a worker does from its start on: see to its pool and to the deployments of prefect.yaml, then run what is due.
# Needs PREFECT_API_URL; PROTEGE_FOLDER is the checkout (default: this one).
set -eu
cd "$(dirname "$0")/.."
export PROTEGE_FOLDER="${PROTEGE_FOLDER:-$PWD}" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
git rev-parse --git-dir >/dev/null 2>&1 || git config --global --add safe.directory "$PWD" # a checkout of another user, mounted
python -m infra.serve --recover
prefect --no-prompt work-pool inspect protege >/dev/null 2>&1 || prefect --no-prompt work-pool create protege --type process
prefect --no-prompt deploy --all
exec prefect worker start --pool protege --type process --limit 4 --with-healthcheck
