# docker build -t sculpt . && docker run --rm --user "$(id -u)" -v "$PWD:/work" sculpt repair base/ sft/ --data train.jsonl
# Whoever runs it needs no home: HOME is a folder that all may write to.
FROM python:3.12-slim

WORKDIR /opt/sculpt
COPY . .
RUN pip install --no-cache-dir torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir --no-deps --require-hashes -r constraints.txt \
    && pip install --no-cache-dir --no-deps --no-build-isolation . \
    && useradd --no-create-home --uid 1000 sculpt

ENV HOME=/tmp USER=sculpt
USER 1000
WORKDIR /work
ENTRYPOINT ["sculpt"]
