# Worker, query service and command line in one image: slim, not root, tini as the first process.
#   docker build -t streamtask .
# Your own app on top of it (docs/containers.md):
#   FROM streamtask
#   RUN pip install …
#   COPY app.py .
#   CMD ["worker", "app:app"]
# BASE: any Debian or Ubuntu image with Python 3.11 or newer and its venv.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
WORKDIR /src
# A venv is one folder to copy, and `pip` in it works on every base (Debian's own Python refuses to be installed into).
RUN python3 -m venv /opt/streamtask
ENV PATH=/opt/streamtask/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# What it depends on first: a change of the code does not install that again.
COPY pyproject.toml .
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    print(*p['dependencies'], *(d for e in ('server', 'failover', 'registry') for d in p['optional-dependencies'][e]), sep='\n')" \
    > requirements && pip install --quiet -r requirements
COPY README.md LICENSE ./
COPY schemas schemas
COPY streamtask streamtask
RUN pip wheel --quiet --no-deps --wheel-dir /wheel . && pip install --quiet --no-deps /wheel/*.whl

FROM ${BASE}
# tini passes SIGTERM on and reaps what a killed worker leaves behind.
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin streamtask \
    && mkdir -p /app /data && chown streamtask /data
COPY --from=build /opt/streamtask /opt/streamtask
COPY deploy/healthcheck.py /usr/local/bin/streamtask-healthcheck
# A number, not a name: Kubernetes can then see that it is not root.
USER 10001
WORKDIR /app
# 9400: a worker tells /health, /ready and /metrics there (the query service does so on its own port, 8080).
ENV PATH=/opt/streamtask/bin:$PATH PYTHONUNBUFFERED=1 STREAMTASK_METRICS_PORT=9400
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python3", "/usr/local/bin/streamtask-healthcheck"]
ENTRYPOINT ["tini", "--", "streamtask"]
CMD ["--help"]
