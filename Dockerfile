# dns on a GPU, or with --build-arg INDEX=https://download.pytorch.org/whl/cpu on CPUs alone:
#
#     docker build --tag dns .
#     docker run --rm --gpus all --volume "$PWD:/work" dns train --solver solver.prototxt -gpu 0
FROM python:3.12-slim

# Triton compiles the launchers of kernels when they first run.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

ARG INDEX=https://download.pytorch.org/whl/cu128
RUN pip install --no-cache-dir --index-url "$INDEX" torch

COPY . /src
RUN pip install --no-cache-dir "/src[all]" && rm -rf /src

WORKDIR /work
ENTRYPOINT ["dns"]
CMD ["--help"]
