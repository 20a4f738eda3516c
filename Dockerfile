# objtune for machines with an NVIDIA GPU:
#   docker build -t objtune .
#   docker run --rm --gpus all -v "$PWD:/work" -v objtune-models:/models objtune train photo.jpg --class dog --base sdxl
# The container's user is 1000:1000; pass --user "$(id -u):$(id -g)" if yours differs.
FROM python:3.12-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/models \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# The wheels of torch on PyPI contain CUDA's libraries; the driver comes from the host.
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY objtune_cli ./objtune_cli
RUN pip install -c constraints.txt . \
    && useradd --uid 1000 --create-home objtune \
    && mkdir -p /work /models \
    && chown objtune:objtune /work /models \
    && objtune --version

USER 1000:1000
WORKDIR /work
VOLUME ["/work", "/models"]
ENTRYPOINT ["objtune"]
CMD ["doctor"]
