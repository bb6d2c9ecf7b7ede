# The image that steps run in: `ssl-core step NAME` and nothing else. Build it with `make image-training`.
ARG BASE_IMAGE=python:3.11.14-slim-bookworm
# What installs the packages; another one than the base where it needs what the image must not hold, such as local wheels.
ARG BUILD_IMAGE=${BASE_IMAGE}

FROM ${BUILD_IMAGE} AS packages
# No pins: Debian's mirrors keep only the newest build of a release's packages.
# hadolint ignore=DL3008
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
COPY requirements/build.txt /requirements/
RUN python3 -m venv /opt/build \
    && /opt/build/bin/python -m pip install --no-cache-dir --disable-pip-version-check -q -r /requirements/build.txt
# cpu, cu130, ...: a build of torch, as in `make setup`. Empty: the one that the package index serves (CUDA on Linux).
ARG TORCH=
COPY requirements/job.txt docker/slim /requirements/
RUN python3 -m venv --without-pip /opt/venv \
    && /opt/build/bin/uv pip install -q --no-cache --compile-bytecode -p /opt/venv \
        ${TORCH:+--torch-backend "${TORCH}"} -r /requirements/job.txt \
    && sh /requirements/slim /opt/venv/lib/python3*/site-packages \
    && for site in /opt/venv/lib/python3*/site-packages; do echo /opt/ssl-core > "$site/ssl-core.pth"; done \
    && /opt/venv/bin/python -c 'import boto3, matplotlib.pyplot, mlflow.pyfunc, pandas, peft, pyarrow.dataset, sklearn.svm, torch, transformers.models.modernbert.modeling_modernbert'

FROM packages AS package
COPY pyproject.toml README.md LICENSE /source/
COPY ssl_core /source/ssl_core
RUN /opt/build/bin/uv build -q --wheel --no-build-isolation -p /opt/build/bin/python -o /dist /source \
    && /opt/build/bin/uv pip install -q --no-cache --no-deps --compile-bytecode -p /opt/venv --target /opt/ssl-core /dist/*.whl
# The platform refuses an image by this version, so it must be the one inside.
ARG VERSION
RUN found=$(/opt/venv/bin/python -c 'import importlib.metadata as m; print(m.version("ssl-core"))') \
    && [ "${VERSION:-}" = "$found" ] \
    || { echo "VERSION=${VERSION:-}, but this is ssl-core ${found:-}: --build-arg VERSION=${found:-}" >&2; exit 1; }

FROM ${BASE_IMAGE}
# Git over https and ssh for the data repository. ssh refuses a user that /etc/passwd does not know, as the runner's may be:
# libnss-wrapper lends it one.
# No pins: Debian's mirrors keep only the newest build of a release's packages.
# hadolint ignore=DL3008
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends ca-certificates git libnss-wrapper openssh-client \
    && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/* /usr/share/locale/* /usr/share/man/*
COPY docker/ssh /usr/local/bin/ssh
# Scratch is a volume of the job, and all that it may write; the cache is one that jobs share.
# The data repository is mounted, and belongs to whom it belongs.
RUN groupadd -g 10001 ssl && useradd -u 10001 -g 10001 -d /scratch -M -s /usr/sbin/nologin ssl \
    && mkdir -m 1777 /scratch /cache && chmod 755 /usr/local/bin/ssh \
    && git config --system safe.directory '*'
COPY --from=packages /opt/venv /opt/venv
COPY --from=package /opt/ssl-core /opt/ssl-core
# LOGNAME: who asks for a user's name gets one, whatever the uid. Nothing phones home.
ENV PATH=/opt/ssl-core/bin:/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/scratch TMPDIR=/scratch LOGNAME=ssl LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLBACKEND=Agg \
    MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true DVC_NO_ANALYTICS=1 GX_ANALYTICS_ENABLED=false HF_HUB_DISABLE_TELEMETRY=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /scratch
USER 10001:10001
CMD ["ssl-core", "--help"]
ARG VERSION
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ssl-core training" \
      org.opencontainers.image.description="What the steps of ssl-core run in" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      ssl-core.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
