# docker build --build-arg EXTRAS=tpu,gcs --tag uncertainty .      (or cuda,gcs; none for CPU)
FROM python:3.12-slim
ARG EXTRAS=
WORKDIR /uncertainty
COPY . .
RUN pip install --no-cache-dir --editable ".${EXTRAS:+[$EXTRAS]}"
CMD ["python", "-m", "experiments.quickstart"]
