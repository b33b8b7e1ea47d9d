# `make demo` and `make test` set up .venv by themselves; nothing outside this folder is touched.
PYTHON ?= python3
BIN := .venv/bin
USABLE := .venv/.usable
READY := .venv/.ready

.PHONY: help demo test slow long lowest gpu wheels check size dev link clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(USABLE): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "bieff needs Python 3.11 or newer, got " + sys.version'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $(USABLE)

$(READY): $(USABLE)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(USABLE)  ## both stages and the zero-shot evaluation on clips made here, no download
	$(BIN)/bieff demo

test: $(READY)  ## the fast tests, on all cores (pytest-xdist)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow and not long and not gpu"

slow: $(READY)  ## the slow tests: killed processes, Dask over TCP, large lists, full-size CLIP
	$(BIN)/python -m pytest -n auto --maxprocesses 2 -m "slow and not long and not gpu"

long: $(READY)  ## whole matrices (every tower of open_clip), full size, the wheel: most of an hour
	$(BIN)/python -m pytest -m long

LOWEST = av==17.1.0 zarr==3.1.6 open_clip_torch==3.1.0
LOWEST_TORCH = torch==2.6.0 torchvision==0.21.0

lowest: $(READY)  ## decoding, stores, CLIPs and training with the lowest av, zarr, open_clip and torch
	rm -rf .lowest
	$(BIN)/python -m pip install --quiet --target .lowest $(LOWEST_TORCH)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .lowest $(LOWEST)
	PYTHONPATH=$(CURDIR)/.lowest $(BIN)/python -m pytest -m "not slow and not long and not gpu" \
	  tests/extract/decode tests/features tests/train/fit tests/train/method tests/train/text tests/test_clip.py

GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
GPU_VERSION ?= 3.12
CARRIED = anyio av beartype cloudpickle dask distributed donfig execnet ftfy google-crc32c h11 httpcore2 \
  httpx2 huggingface_hub idna importlib_metadata jaxtyping lazy-importer locket msgpack numcodecs \
  open_clip_torch partd protobuf psutil pytest-timeout pytest-xdist PyYAML regex safetensors \
  sortedcontainers starlette tblib tensorboardX timm toolz tornado tqdm truststore uvicorn \
  wadler_lindig wcwidth zarr zict zipp

gpu: link  ## on a GPU, with a python that has torch: tests marked gpu, then benches; ten minutes
	export PYTHONPATH=$(CURDIR)/.typing:$(CURDIR)/.wheels/here; \
	timeout 150 $(GPU_PYTHON) -m pytest -m gpu; tests=$$?; \
	$(GPU_PYTHON) tests/bench_gpu.py --out $(or $(OUT),.)/gpu.jsonl && exit $$tests

wheels: $(READY)  ## what `make gpu` needs beside torch, for a machine without network
	rm -rf .wheels
	$(BIN)/python -m pip download --quiet --no-deps --only-binary :all: --dest .wheels \
	  --python-version $(GPU_VERSION) \
	  --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
	  $$(for name in $(CARRIED); do grep -i "^$$name==" constraints.txt; done)

check: $(READY) link  ## linters, types and the fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test

SOURCES = find extract features train apps cli.py clip.py -name '*.py'

size:  ## lines and files of the source, and its fullest folder
	@echo "$$($(SOURCES) | xargs cat | wc -l) lines in $$($(SOURCES) | wc -l) files;" \
	  "fullest folder: $$($(SOURCES) -printf '%h\n' | sort | uniq -c | sort -rn | head -1)"

dev: $(READY) link  ## a working folder for developers

link:  ## what type checkers and editors read as the package `bieff`
	@mkdir -p .typing/bieff
	@for f in extract features train apps cli.py clip.py; do ln -sfn ../../$$f .typing/bieff/$$f; done

clean:  ## remove everything made here but data, features and runs
	rm -rf .venv .lowest .wheels .typing build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
