#!/bin/sh
# Gather what `gpu-day` needs beside jax, flax, optax, torch and torchvision, for a machine without a network: 18 MB.
#
#     benchmarks/wheels.sh FOLDER [PYTHON_VERSION]
#
# There:
#
#     python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl && export PYTHONPATH=SITE
#
# OpenCV (61 MB) is not among them: without it train.py does not run, and that step says so.
set -eu
folder=${1:?expected: wheels.sh FOLDER [PYTHON_VERSION]}
platforms=$(for glibc in 28 27 24 17; do echo "--platform manylinux_2_${glibc}_x86_64"; done)
# shellcheck disable=SC2086  # One word each.
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version "${2:-3.12}" --implementation cp $platforms --platform manylinux2014_x86_64 --dest "$folder" \
    absl-py array-record cloudpickle etils faster-coco-eval grain hotcoco importlib_resources jaxtyping ml-collections \
    pillow portpicker protobuf psutil pycocotools pyyaml safetensors tensorboardX tqdm wadler-lindig
du -sh "$folder"
