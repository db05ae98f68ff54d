#!/bin/sh
# Takes what a CPU never loads out of an installed vLLM, and gives it the name that it looks up.
# Usage: slim.sh VENV VERSION
set -eu
site=$(echo "$1"/lib/python3.*/site-packages)

# CUDA libraries that torch opens only when it finds a GPU. The others are linked into it.
rm -rf "$site"/nvidia/cudnn/lib/libcudnn_engines* \
       "$site"/nvidia/cudnn/lib/libcudnn_adv* \
       "$site"/nvidia/cudnn/lib/libcudnn_heuristic* \
       "$site"/nvidia/cudnn/lib/libcudnn_ops* \
       "$site"/nvidia/cu13/lib/libnvrtc.alt* \
       "$site"/nvidia/cu13/lib/libcusolverMg* \
       "$site"/nvidia/cu13/lib/libnvperf*
find "$site" -type d -name include -prune -exec rm -rf {} +

# `vllm serve` asks for the version of a distribution called `vllm`, which the repackaged CPU build
# is not. "cpu" in the version is how vLLM tells its platform.
name="$site/vllm-$2+cpu.dist-info"
mkdir -p "$name"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$2" > "$name/METADATA"
