FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /project
COPY . .
RUN pip install --no-cache-dir -e ".[template]"
CMD ["python", "train.py", "fit", "--config", "configs/clip_probe.yaml"]
