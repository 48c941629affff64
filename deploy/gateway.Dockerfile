# The gateway: `teacherfarm serve`, without PyTorch. Built by docker compose; by hand:
#   docker build --file deploy/gateway.Dockerfile --tag teacherfarm-gateway:0.1.0 .
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/teacherfarm
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY crops crops/
COPY demo demo/
COPY doctor doctor/
COPY export export/
COPY label_store label_store/
COPY networks networks/
COPY protos protos/
COPY student student/
COPY teacher_server teacher_server/
# The import name: links to the folders above, so it comes after them.
COPY teacherfarm teacherfarm/
RUN /opt/teacherfarm/bin/pip install --constraint constraints.txt '.[server,redis]'

FROM python:${PYTHON}
# /etc/teacherfarm: projects and keys; a fresh volume starts as this folder is.
RUN groupadd --gid 10001 teacherfarm \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin teacherfarm \
    && install --directory --owner 10001 --group 10001 --mode 0700 /etc/teacherfarm
COPY --from=build /opt/teacherfarm /opt/teacherfarm
ENV PATH=/opt/teacherfarm/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
# gRPC, ZeroMQ, and /metrics, /healthz, /readyz
EXPOSE 7000 7001 7002
ENTRYPOINT ["teacherfarm"]
CMD ["serve", "--help"]
