# syntax=docker/dockerfile:1
# Diffuser API for CPUs. For NVIDIA cards: Dockerfile.cuda.
#
#   docker build -t diffuser-api:0.1.0 .
#   docker run --rm -p 127.0.0.1:8000:8000 diffuser-api:0.1.0
#
# Paths of the build are below /build, and commands name them from there: so
# deploy/container/build-without-docker runs the same lines in a folder of its own.

FROM rust:1.95.0-slim-bookworm AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /build/source
COPY . .
ARG FEATURES=""
ENV CARGO_INCREMENTAL=0 CARGO_TERM_COLOR=never
# Crates and what was compiled of them outlive the build: the next one compiles what changed.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/source/target,sharing=locked \
    cargo build --release --locked --bin diffuser-api --features "$FEATURES" \
    && install -D -m 0755 target/release/diffuser-api ../image/usr/local/bin/diffuser-api
# The rest of the image, so that its last stage has nothing to run: the check of its health,
# the certificates with which it fetches weights, and the folder that holds them.
RUN install -m 0755 deploy/container/healthy ../image/usr/local/bin/healthy \
    && install -D -m 0644 LICENSE ../image/usr/share/doc/diffuser-api/LICENSE \
    && install -D -m 0644 /etc/ssl/certs/ca-certificates.crt ../image/etc/ssl/certs/ca-certificates.crt \
    && mkdir -p ../state/huggingface

FROM debian:12.11-slim AS run
ARG VERSION="0.1.0"
ARG REVISION="unknown"
LABEL org.opencontainers.image.title="Diffuser API" \
      org.opencontainers.image.description="Qwen-Image-Edit, and the diffusion models around it, behind OpenAI's images API" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /build/image/ /
COPY --from=build --chown=65532:65532 /build/state/ /var/lib/diffuser-api/
# DIFFUSER_PORT is what the check of the health asks, too.
ENV DIFFUSER_HOST=0.0.0.0 \
    DIFFUSER_PORT=8000 \
    HF_HOME=/var/lib/diffuser-api/huggingface
# Nobody's number: it needs no entry in /etc/passwd, and Kubernetes sees that it is not root.
USER 65532:65532
WORKDIR /var/lib/diffuser-api
# Weights, fetched once.
VOLUME ["/var/lib/diffuser-api"]
EXPOSE 8000
# Stops admission, finishes the running picture within DIFFUSER_GRACE_S, and leaves.
STOPSIGNAL SIGTERM
# Alive, not ready: a container that fetches weights for an hour is healthy.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["healthy", "/health"]
ENTRYPOINT ["diffuser-api"]
