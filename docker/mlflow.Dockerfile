# The MLflow server of the platform: database and artifacts by environment. Build it with `make image-mlflow`.
# It listens on all addresses of its own container: publish it on loopback (`-p 127.0.0.1:5000:5000`), or behind a proxy that
# asks who comes.
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
COPY requirements/mlflow.txt docker/slim /requirements/
RUN python3 -m venv --without-pip /opt/venv \
    && /opt/build/bin/uv pip install -q --no-cache --compile-bytecode -p /opt/venv -r /requirements/mlflow.txt \
    && sh /requirements/slim /opt/venv/lib/python3*/site-packages \
    && /opt/venv/bin/python -c 'import boto3, mlflow.pyfunc, mlflow.server, psycopg2'
# The platform is as one version: the server's label names the same as the others'.
COPY pyproject.toml /source/
ARG VERSION
RUN grep -qx "version = \"${VERSION:-}\"" /source/pyproject.toml \
    || { echo "VERSION=${VERSION:-} is not the $(grep -m1 ^version /source/pyproject.toml) of pyproject.toml" >&2; exit 1; }

FROM ${BASE_IMAGE}
RUN groupadd -g 10001 ssl && useradd -u 10001 -g 10001 -M -d /data -s /usr/sbin/nologin ssl \
    && install -d -o 10001 -g 10001 -m 700 /data
COPY --from=packages /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/data LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true \
    MLFLOW_BACKEND_STORE_URI=sqlite:////data/mlflow.db MLFLOW_ARTIFACTS_DESTINATION=/data/artifacts
WORKDIR /data
VOLUME /data
EXPOSE 5000
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:5000/health', timeout=4)"]
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000"]
ARG VERSION
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ssl-core MLflow" \
      org.opencontainers.image.description="The MLflow server of ssl-core" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
