# The worker of infra/compose.yaml: this project's pinned versions. The checkout itself is mounted at /project.
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG FLAVOUR=cpu
RUN apt-get update \
 && apt-get install -y --no-install-recommends git patch make procps bubblewrap curl \
 && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md /src/
COPY infra/constraints.txt /src/infra/
COPY protege /src/protege
COPY tasks /src/tasks
COPY flows /src/flows
RUN pip install --no-cache-dir --constraint /src/infra/constraints.txt setuptools wheel \
 && pip install --no-cache-dir --constraint /src/infra/constraints.txt --no-build-isolation "/src[${FLAVOUR},s3]" \
 && pip uninstall --yes swe-protege \
 && if [ "${FLAVOUR}" = cpu ]; then pip uninstall --yes torchvision torchaudio torchcodec; fi
ENV PYTHONPATH=/project PYTHONUNBUFFERED=1
WORKDIR /project
