# Openbook in a container, on the CPU:
#
#   docker build -t openbook .
#   docker run -it --rm -v openbook-runs:/openbook/runs openbook                  # train the small model, then talk with it
#   docker run -it --rm -v /my/models:/models openbook openbook chat /models/x    # any verb
#
# g++ and Python's headers (in this image) let torch compile the training step.

FROM python:3.12-slim-bookworm
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*

ARG TORCH="torch==2.13.0"
WORKDIR /openbook
RUN pip install --no-cache-dir $TORCH

COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY recipes recipes
COPY corpus corpus
RUN pip install --no-cache-dir --editable '.[plot,hub]'
RUN useradd --create-home reader && mkdir runs && chown -R reader runs
USER reader
VOLUME /openbook/runs

CMD ["sh", "-c", "openbook pretrain recipes/stories.toml --out runs/stories && exec openbook chat runs/stories"]
