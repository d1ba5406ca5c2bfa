# Debian's Prometheus, for places that do not reach the official image:
#   PROMETHEUS_IMAGE=loaded-mp-prometheus docker compose --profile debian-prometheus build prometheus-debian
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends prometheus && rm -rf /var/lib/apt/lists/*
USER prometheus
ENTRYPOINT ["prometheus"]
