# Two commands matter to a newcomer: `make demo` and `make test`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
SEEDS ?= 3 4 5
.PHONY: help setup engine server demo desk seeds nightly serve frontier results test test-all lint lock lock-check unit ui down clean
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONUNBUFFERED := 1

help:  ## what there is
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup:  ## make .venv with the pinned versions
	@infra/setup.sh

engine:  ## see to a Docker engine
	@infra/engine.sh up

server: setup  ## start the project's Prefect server
	@python -m tasks.server start

demo: setup engine  ## the whole pipeline at the scale of params.yaml, then where to look
	@python -m infra.demo

frontier: setup engine server  ## Pass@1 against expert tokens: who decides when to ask (optional, long)
	@dvc repro frontier/dvc.yaml
	@cat data/frontier/frontier.md

desk: setup engine  ## the pipeline at the scale of profile desk: about two hours, real learning
	@protege profile desk
	@python -m infra.demo

seeds: setup engine  ## the pipeline of params.yaml once for each of SEEDS="3 4 5" (FROM=rl: one SFT for all), and one table
	@python -m infra.seeds $(if $(FROM),--first-stage $(FROM)) $(SEEDS)

nightly: setup engine  ## one night now: fresh instances, all stages, promotion, message
	@python -m flows.nightly

serve: setup engine  ## every night by itself, on this machine (docs/operate.md)
	@python -m infra.serve

results:  ## the table of results again
	@protege results

test: setup engine  ## every test, lint and types among them, four at a time (tests/schedule.py)
	python -m pytest -n 4 --durations=10

test-all: setup engine lint  ## those of tests/chaos too: kills, whole nights, tours in a browser (hours)
	python -m pytest -n 4 --durations=10 -o norecursedirs=.*

unit: setup  ## lint, types, and the tests that need neither Docker nor vLLM
	python -m pytest -n 4 -m "not docker and not slow"

lint: setup  ## ruff, mypy, typos
	ruff check .
	ruff format --check .
	mypy protege tasks flows infra
	typos

lock: setup  ## compile all versions with hashes from pyproject.toml (UPGRADE=1: the newest allowed)
	@python -m infra.lock $(if $(UPGRADE),--upgrade)

lock-check: setup  ## say whether they are stale, and resolve both sets again
	@python -m infra.lock --check

ui: server  ## print the address of the Prefect UI
	@python -m tasks.server url

down:  ## stop what was started here: server, model servers, sandboxes, engine
	@infra/down.sh

clean: down  ## remove what was generated (data, cache, virtual environment), nothing else
	@infra/clean.sh
