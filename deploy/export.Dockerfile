# Exports teachers on a CPU: `teacherfarm export`. Built by docker compose; by hand:
#   docker build --file deploy/export.Dockerfile --tag teacherfarm-export:0.1.0 .
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
# torch and torchvision from one index: a CPU torch with torchvision's CUDA build fails at import.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/teacherfarm
WORKDIR /src
COPY constraints.txt ./
RUN /opt/teacherfarm/bin/pip install --constraint constraints.txt --extra-index-url "${TORCH_INDEX}" \
    torch torchvision
COPY pyproject.toml README.md LICENSE ./
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
# scikit-image and scikit-learn bring the photographs that an export is verified with.
RUN /opt/teacherfarm/bin/pip install --constraint constraints.txt '.[export]' scikit-image scikit-learn

FROM python:${PYTHON}
# The home is where published weights are kept between runs of one container; /models is what a fresh volume starts as.
RUN groupadd --gid 10001 teacherfarm \
    && useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin teacherfarm \
    && install --directory --owner 10001 --group 10001 --mode 0755 /models
COPY --from=build /opt/teacherfarm /opt/teacherfarm
ENV PATH=/opt/teacherfarm/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
ENTRYPOINT ["teacherfarm", "export"]
CMD ["--help"]
