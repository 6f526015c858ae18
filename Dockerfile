# predict.py as a BIDS App, on the CPU:
#   docker build -t hippo .
#   docker run --rm -v /data/study:/in:ro -v /data/derivatives/hippo:/out hippo /in /out participant --participant_label 01 02
ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /hippo
COPY requirements.txt .
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python3 -m venv /venv \
    && /venv/bin/pip install --no-cache-dir "torch>=2.8,<2.14,!=2.9.*" --index-url "${TORCH_INDEX}" \
    && /venv/bin/pip install --no-cache-dir -r requirements.txt
COPY . .
ENV MPLCONFIGDIR=/tmp/matplotlib
ENTRYPOINT ["/venv/bin/python", "/hippo/predict.py"]
