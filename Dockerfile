# The image of the gateway: the binary, its presets, nothing to build with, no root.
FROM rust:1-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cmake \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
# Dependencies first, from a crate without content: a change of our code does not build them again. Cargo wants
# every target that the manifest declares to exist, hence the benches.
COPY benches benches
RUN mkdir src \
    && echo 'fn main() {}' >src/main.rs \
    && touch src/lib.rs \
    && cargo build --profile dist --locked
COPY config config
COPY src src
# Cargo compares modification times, and those of the context are older than the build above.
RUN touch src/main.rs src/lib.rs \
    && cargo build --profile dist --locked --bin tollgate

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home --shell /usr/sbin/nologin --uid 10001 tollgate
COPY --from=build /build/target/dist/tollgate /usr/local/bin/tollgate
COPY --from=build /build/config/*.toml /etc/tollgate/
USER 10001
# The public listener and the admin listener.
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
    CMD ["tollgate", "health"]
ENTRYPOINT ["tollgate"]
CMD ["run", "--config", "/etc/tollgate/tollgate.toml"]
