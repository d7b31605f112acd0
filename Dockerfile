# docker build --tag esvit-hf .                          a CPU image
# docker build --tag esvit-hf --build-arg TORCH=cuda .   with PyTorch for NVIDIA's GPUs
FROM python:3.12-slim

ARG TORCH=cpu
RUN if [ "$TORCH" = cpu ]; then \
        pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu; \
    else \
        pip install --no-cache-dir torch torchvision; \
    fi

WORKDIR /esvit-hf
COPY . .
RUN pip install --no-cache-dir ".[plots]"

WORKDIR /data
ENTRYPOINT ["esvit"]
