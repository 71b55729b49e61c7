# onnxprune in a container:  docker build -t onnxprune . && docker run --rm -v "$PWD:/work" onnxprune run prune.yaml
FROM python:3.11-slim

# extras to install, with commas: docker build --build-arg EXTRAS=openvino .
ARG EXTRAS=""

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY onnxprune ./onnxprune
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}" && useradd --create-home --uid 1000 user

USER 1000
WORKDIR /work
ENTRYPOINT ["onnxprune"]
CMD ["--help"]
