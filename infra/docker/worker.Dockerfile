# The worker of infra/compose.yaml: this project's pinned versions. The checkout itself is mounted at /project.
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG FLAVOUR=cpu
RUN apt-get update \
 && apt-get install -y --no-install-recommends git patch make procps bubblewrap curl \
 && rm -rf /var/lib/apt/lists/*
ARG PIP_FIND_LINKS
COPY pyproject.toml README.md LICENSE /src/
COPY infra /src/infra
COPY protege /src/protege
COPY tasks /src/tasks
COPY flows /src/flows
RUN FLAVOUR=${FLAVOUR} /src/infra/setup.sh && /src/.venv/bin/python -m pip uninstall --yes swe-protege
ENV PATH=/src/.venv/bin:$PATH
ENV PYTHONPATH=/project PYTHONUNBUFFERED=1
WORKDIR /project
