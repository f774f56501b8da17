# syntax=docker/dockerfile:1
# docker build -t distllm .
# The lock pins torch by version; without more said, pip takes the build with CUDA, some gigabytes. For a small image
# that serves on CPUs, let the build argument TORCH_INDEX_URL name PyTorch's index of CPU wheels.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS builder
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/distllm
ENV PATH=/opt/distllm/bin:${PATH} \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src

# Dependencies first: they change less often than the code. The lock pins them; pyproject.toml says which are needed.
COPY pyproject.toml requirements.lock ./
ARG TORCH_INDEX_URL=""
RUN pip install --constraint requirements.lock setuptools wheel \
    && pip install --constraint requirements.lock \
        ${TORCH_INDEX_URL:+--extra-index-url "${TORCH_INDEX_URL}"} torch \
    && python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > /tmp/runtime.txt \
    && pip install --constraint requirements.lock --requirement /tmp/runtime.txt
# Once more, with its shared-memory all-reduce built: the image that serves has no compiler.
RUN DS_ACCELERATOR=cpu DS_BUILD_SHM_COMM=1 pip install --constraint requirements.lock \
        --no-deps --no-build-isolation --force-reinstall deepspeed

COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && pip install --no-deps /wheels/*.whl


FROM ${BASE}
# libaio: DeepSpeed's asynchronous reads of offloaded layers; numactl: binds processes to the memory beside their cores.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libaio-dev numactl \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 distllm \
    && install --directory --owner distllm /models /state /tokens
COPY --from=builder /opt/distllm /opt/distllm
ENV PATH=/opt/distllm/bin:${PATH} \
    HF_HOME=/models \
    PYTHONUNBUFFERED=1
USER distllm
WORKDIR /home/distllm
VOLUME /models
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as http; http.build_opener(http.ProxyHandler({})).open('http://127.0.0.1:' + (os.environ.get('DISTLLM_PORT') or '8000') + '/health/ready', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["distllm", "serve", "--host", "0.0.0.0"]
