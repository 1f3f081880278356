#!/usr/bin/env bash
# Installs git, bubblewrap and a Docker engine, and starts the engine. Never fails: without an engine bubblewrap is used.
#   infra/engine.sh up      install what is missing when that is allowed, start the engine when none answers
#   infra/engine.sh down    stop the engine if `up` started it
set -uo pipefail
cd "$(dirname "$0")/.."

run=.cache/protege/run/dockerd.pid
log=.cache/protege/logs/dockerd.log
mkdir -p .cache/protege/run .cache/protege/logs

answers() { command -v docker >/dev/null 2>&1 && timeout 20 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }
ours() { [ -s $run ] && [ "$(cat "/proc/$(cat $run)/comm" 2>/dev/null)" = dockerd ]; }

install_missing() {
    local wanted=()
    command -v git >/dev/null 2>&1 || wanted+=(git)
    command -v bwrap >/dev/null 2>&1 || wanted+=(bubblewrap)
    if [ -z "${DOCKER_HOST:-}" ] && ! command -v dockerd >/dev/null 2>&1 && ! answers; then wanted+=(docker.io); fi
    [ ${#wanted[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        echo "engine: to have everything, install: ${wanted[*]} (on Debian or Ubuntu: sudo apt-get install ${wanted[*]})"
        return 0
    fi
    echo "engine: installing ${wanted[*]}"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${wanted[@]}"; } \
        >.cache/protege/logs/apt.log 2>&1 || echo "engine: apt-get could not install ${wanted[*]} (see .cache/protege/logs/apt.log)"
}

start() {  # start FLAGS...: dockerd in the background; true once it answers
    setsid dockerd "$@" >>$log 2>&1 </dev/null &
    local pid=$!
    echo $pid >$run
    for _ in $(seq 60); do
        answers && return 0
        kill -0 $pid 2>/dev/null || break
        sleep 0.5
    done
    kill $pid 2>/dev/null
    rm -f $run
    return 1
}

up() {
    install_missing
    if answers; then
        echo "engine: Docker $(docker version --format '{{.Server.Version}}') answers"
    elif [ -z "${DOCKER_HOST:-}" ] && [ "$(id -u)" = 0 ] && command -v dockerd >/dev/null 2>&1; then
        : >$log
        # Sandboxes have no network, so an engine without a bridge will do where iptables is not allowed;
        # vfs where overlay is not (inside some containers).
        if start || start --iptables=false --ip6tables=false --bridge=none ||
            start --iptables=false --ip6tables=false --bridge=none --storage-driver=vfs; then
            echo "engine: started Docker $(docker version --format '{{.Server.Version}}') (make down stops it; log in $log)"
        else
            echo "engine: dockerd does not start here ($log says why)"
            without_engine
        fi
    else
        echo "engine: no Docker engine answers"
        without_engine
    fi
}

without_engine() {
    if command -v bwrap >/dev/null 2>&1; then
        echo "engine: sandboxes are made with bubblewrap; for Docker, install docker.io and start it (or run this as root)"
    else
        echo "engine: nothing here can make a sandbox: install bubblewrap, or install docker.io and start it"
    fi
}

down() {
    if ours; then
        local pid
        pid=$(cat $run)
        kill "$pid"
        for _ in $(seq 60); do kill -0 "$pid" 2>/dev/null || break; sleep 0.5; done
        kill -0 "$pid" 2>/dev/null && kill -9 "$pid"
        echo "engine: stopped the Docker engine that was started here"
    fi
    rm -f $run
}

case ${1:-up} in
    up) up ;;
    down) down ;;
    *) echo "usage: infra/engine.sh up|down" >&2; exit 2 ;;
esac
