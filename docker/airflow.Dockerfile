# Airflow with the platform's DAGs: `airflow api-server`, `airflow scheduler`, ... Build it with `make image-airflow`.
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
COPY requirements/airflow.txt /requirements/
RUN python3 -m venv --without-pip /opt/venv \
    && /opt/build/bin/uv pip install -q --no-cache --compile-bytecode -p /opt/venv -r /requirements/airflow.txt \
    && for site in /opt/venv/lib/python3*/site-packages; do echo /opt/ssl-core > "$site/ssl-core.pth"; done

FROM packages AS package
COPY pyproject.toml README.md LICENSE /source/
COPY ssl_core /source/ssl_core
RUN /opt/build/bin/uv build -q --wheel --no-build-isolation -p /opt/build/bin/python -o /dist /source \
    && /opt/build/bin/uv pip install -q --no-cache --no-deps --compile-bytecode -p /opt/venv --target /opt/ssl-core /dist/*.whl
COPY dags /opt/ssl-core/dags
RUN /opt/venv/bin/python -m compileall -q /opt/ssl-core/dags
ARG VERSION
RUN found=$(/opt/venv/bin/python -c 'import importlib.metadata as m; print(m.version("ssl-core"))') \
    && [ "${VERSION:-}" = "$found" ] \
    || { echo "VERSION=${VERSION:-}, but this is ssl-core ${found:-}: --build-arg VERSION=${found:-}" >&2; exit 1; }

FROM ${BASE_IMAGE}
RUN groupadd -g 10001 ssl && useradd -u 10001 -g 10001 -m -d /home/ssl -s /usr/sbin/nologin ssl \
    && mkdir -m 1777 /projects \
    && install -d -o 10001 -g 10001 -m 700 /home/ssl/airflow
COPY --from=packages /opt/venv /opt/venv
COPY --from=package /opt/ssl-core /opt/ssl-core
# What `ssl-core up` sets as well, but for addresses and secrets, which belong to where the container runs.
ENV PATH=/opt/ssl-core/bin:/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/opt/ssl-core/dags HOME=/home/ssl LANG=C.UTF-8 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    SSL_HOME=/home/ssl SSL_PROJECTS_DIR=/projects AIRFLOW_HOME=/home/ssl/airflow \
    AIRFLOW__CORE__LOAD_EXAMPLES=False \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/ssl-core/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/ssl-core/dags/plugins \
    AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST='[{"name": "projects", "classpath": "ssl_dags.bundle.ProjectsBundle", "kwargs": {}}]'
WORKDIR /home/ssl
USER 10001:10001
ENTRYPOINT ["airflow"]
CMD ["version"]
ARG VERSION
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ssl-core Airflow" \
      org.opencontainers.image.description="Airflow with the DAGs of ssl-core" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
