# docker build --tag vilt-server .                      for CPUs
# docker build --tag vilt-server:gpu --target gpu .     for NVIDIA's GPUs; --build-arg TENSORRT=1 adds TensorRT
#
# What is installed is for pyproject.toml to say: for CPUs in the versions, and by the hashes, that requirements-serve.txt locks
# (make lock). A change of code rebuilds the last layer, of 15 MB.
# Where packages do not come from PyPI: --secret id=pip,src=pip.conf, and --secret id=ca,src=ca.pem for a pip.conf that
# says cert=/run/secrets/ca. Neither stays in the image. BASE may be pinned by digest, or any image with Python 3.11.

ARG BASE=python:3.11-slim

FROM ${BASE} AS builder
RUN python3 -m venv /tools && python3 -m venv --without-pip /opt/vilt
ENV PIP_PYTHON=/opt/vilt/bin/python PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source

FROM builder AS cpu-packages
COPY requirements-serve.txt .
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    /tools/bin/pip install --require-hashes --requirement requirements-serve.txt

FROM builder AS code
RUN command -v gcc || (apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev)
COPY pyproject.toml setup.py README.md LICENSE ./
COPY models models
COPY server server
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    /tools/bin/pip install --no-deps --root /code . \
    && rm /code/opt/vilt/bin/vilt-export /code/opt/vilt/bin/vilt-bench

FROM ${BASE} AS runtime
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin vilt \
    && install --directory --owner vilt --group vilt /var/cache/vilt
ENV PATH=/opt/vilt/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    VILT_CACHE_DIR=/var/cache/vilt \
    VILT_HOST=0.0.0.0 \
    VILT_PORT=8000
VOLUME /var/cache/vilt
EXPOSE 8000
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import os, urllib.request as web; web.urlopen(f'http://127.0.0.1:{os.environ[\"VILT_PORT\"]}/readyz', timeout=4)"]
ENTRYPOINT ["vilt-serve"]

FROM runtime AS cpu
COPY --from=cpu-packages /opt/vilt /opt/vilt
COPY --from=code /code/ /
RUN python3 -c "import importlib.util as of, server.single, models.image as image; assert image.resizes_as_pillow() \
    and image.decodes_as_pillow() and not any(map(of.find_spec, ('torch', 'transformers')))" \
    && python3 -c "from server.gpu import _operators, kernels; assert kernels.SOURCE.exists()"

FROM builder AS gpu-packages
ARG TENSORRT=
COPY pyproject.toml .
RUN touch README.md LICENSE  # the package without its code asks for the same packages
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    /tools/bin/pip install '.[gpu]' ${TENSORRT:+'.[gpu,tensorrt]'} && /tools/bin/pip uninstall --yes vilt-server

# CUDA and cuDNN are packages; the driver is the machine's, by NVIDIA's container toolkit: docker run --gpus all.
FROM runtime AS gpu
ENV VILT_PROVIDER=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=gpu-packages /opt/vilt /opt/vilt
COPY --from=code /code/ /
RUN python3 -c "import importlib.util as of, server.single, models.image as image; assert image.resizes_as_pillow() \
    and image.decodes_as_pillow() and not any(map(of.find_spec, ('torch', 'transformers')))" \
    && python3 -c "from server.gpu import _operators, kernels; assert kernels.SOURCE.exists()"

# The last stage is what is built unless --target says otherwise.
FROM cpu
