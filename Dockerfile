# Mainstay as a container: one binary, the ONNX Runtime library that it loads, and the models that it serves.
# scripts/image.sh builds it, runs it and checks what it does.
#
# The bases are arguments so that a site can name its own copies or pin them by digest.
ARG RUST_IMAGE=rust:1.95-bookworm
ARG DEBIAN_IMAGE=debian:bookworm-slim

# --- the binary ------------------------------------------------------------------------------------------------------
FROM ${RUST_IMAGE} AS build
WORKDIR /src

# The dependencies first, under an empty crate: this layer is made again only when the manifest, the lock file or the configuration of Cargo
# changes. What the manifest says of tests and benches is dropped: their files are not here.
COPY Cargo.toml Cargo.lock ./
COPY .cargo/config.toml .cargo/
RUN awk '/^\[/ { skip = /^\[\[(test|bench|example)\]\]/ } !skip' Cargo.toml > Cargo.image.toml \
 && mv Cargo.image.toml Cargo.toml \
 && mkdir src && touch src/lib.rs && echo 'fn main() {}' > src/main.rs \
 && cargo build --release --locked --bin mainstay \
 && rm -r src

COPY src src
# Files arrive with the dates they have where the image is built, and Cargo goes by dates: untouched, an older file would
# leave the empty crate standing.
RUN touch src/lib.rs src/main.rs \
 && cargo build --release --locked --bin mainstay \
 && install -D target/release/mainstay /out/mainstay

# Training code stays out (.dockerignore). Readable by any uid, whatever the umask of the checkout was.
COPY models /out/models
RUN chmod -R a+rX,go-w /out/models

# --- ONNX Runtime ----------------------------------------------------------------------------------------------------
FROM ${RUST_IMAGE} AS onnxruntime
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-pip \
 && rm -rf /var/lib/apt/lists/*
COPY scripts/fetch-onnxruntime.sh /fetch/scripts/
RUN bash /fetch/scripts/fetch-onnxruntime.sh /opt/onnxruntime

# --- what runs -------------------------------------------------------------------------------------------------------
FROM ${DEBIAN_IMAGE}

# libstdc++6 is ONNX Runtime's. No certificates: the roots by which an issuer is known are compiled in.
# /var/lib/mainstay is the working directory and the one place that it may write to: relative paths of the configuration,
# such as the ledger's, end there.
RUN apt-get update \
 && apt-get install -y --no-install-recommends libstdc++6 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 mainstay \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/mainstay --shell /usr/sbin/nologin mainstay \
 && install -d -o 10001 -g 10001 -m 0750 /var/lib/mainstay

# Licences travel with what they are of: the whole directory, therefore.
COPY --from=onnxruntime /opt/onnxruntime /opt/onnxruntime
COPY LICENSE /usr/share/doc/mainstay/LICENSE
COPY --from=build /out/models /opt/mainstay/models
COPY --from=build /out/mainstay /usr/local/bin/mainstay

# The admin listener stays on the loopback device: who may reach it is for the deployment to say, not for the image.
ENV MAINSTAY__RUNTIME__LIBRARY=/opt/onnxruntime/libonnxruntime.so \
    MAINSTAY__MODELS__DIR=/opt/mainstay/models \
    MAINSTAY__MODELS__POLICY=/opt/mainstay/models/policy/default.toml \
    MAINSTAY__HTTP__LISTEN=0.0.0.0:8080 \
    MAINSTAY__ADMIN__LISTEN=127.0.0.1:8081
EXPOSE 8080

# By number: an orchestrator that demands a user other than root cannot tell from a name.
USER 10001:10001
WORKDIR /var/lib/mainstay
VOLUME /var/lib/mainstay

STOPSIGNAL SIGTERM
# The binary asks its own /readyz: the image needs no curl.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["mainstay", "health"]
ENTRYPOINT ["mainstay"]
CMD ["serve"]

# Last: they change with every commit and must not cost the layers above.
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Mainstay" \
      org.opencontainers.image.description="Self-hosted, low-latency churn decisions: ONNX Runtime behind an Axum API" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
