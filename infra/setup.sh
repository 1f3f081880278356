#!/usr/bin/env bash
# Makes .venv with the versions of infra/constraints-{cpu,gpu}.txt, whose hashes it checks (`make lock` compiles them).
# Instant when nothing changed since the last time. FLAVOUR=cpu or gpu; else as nvidia-smi finds a GPU or none.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv
log=.cache/protege/logs/setup.log
mkdir -p "$(dirname "$log")"

if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then flavour=gpu; else flavour=cpu; fi
flavour=${FLAVOUR:-$flavour}
lock=infra/constraints-$flavour.txt
# The folder is part of the stamp: a moved or copied virtual environment points at its old place.
wanted=$(cat pyproject.toml "$lock" infra/setup.sh <(echo "$flavour $PWD") | sha256sum | cut -d' ' -f1)
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
pip="$venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check --no-deps"

only() {  # only REGEX FILE: the entries of these packages, with their hashes
    awk -v want="^($1)==" '/^[A-Za-z0-9]/ { keep = $0 ~ want } !/^#/ && keep' "$2"
}

pytorch() {
    only 'torch|triton' "$lock" >$venv/torch.txt
    $pip --require-hashes --requirement $venv/torch.txt && return
    [ $flavour = cpu ] || return 1
    echo "setup: no index here has the CPU build of PyTorch (docs/run.md); taking the one with CUDA"
    only 'torch|triton|cuda-.*|nvidia-(cu|nccl|nvjitlink|nvshmem|nvtx).*' infra/constraints-gpu.txt >$venv/torch.txt
    $pip --require-hashes --requirement $venv/torch.txt
}

everything() {  # uv takes half a minute where pip takes five; it reads none of pip's settings, so pip where those name an index
    awk '/^[A-Za-z0-9]/ { keep = $0 !~ /^(torch|triton)==/ } !/^#/ && keep' "$lock" >$venv/rest.txt
    if ! $venv/bin/python -m pip config list 2>/dev/null | grep -q '\.index-url='; then
        $venv/bin/uv pip install --quiet --python $venv/bin/python --no-deps --no-build-isolation --require-hashes \
            --requirement $venv/rest.txt && return
        echo "setup: uv could not; trying pip"
    fi
    $pip --no-build-isolation --require-hashes --requirement $venv/rest.txt
}

echo "setup: Python $("$python" -c 'import platform; print(platform.python_version())'), $flavour build of vLLM, into $venv (3 GB; the first time takes some minutes)"
stage "virtual environment" "$python" -m venv --clear $venv
only 'setuptools|uv' "$lock" >$venv/tools.txt
stage "build tools" $pip --require-hashes --requirement $venv/tools.txt
stage "PyTorch" pytorch
stage "everything else (vLLM, TRL, Prefect, DVC, SWE-bench, Great Expectations)" everything
stage "this project" $pip --no-build-isolation --editable .
stage "checking the imports" $venv/bin/python -c 'import torch, transformers, trl, vllm, prefect, dvc, swebench, great_expectations, docker'
echo "$wanted" >$venv/.stamp
