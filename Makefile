# make serve   sets up .venv, fetches the model, serves it on http://127.0.0.1:8000
# make test    sets up .venv with the test packages, runs the null, cpu and conformance tiers
# Both can be repeated; what is already there is not done again.

PORT ?= 8000
# Not ?=: shells export HOST as the name of the machine, and the server would listen there.
HOST = 127.0.0.1
MODEL ?= smollm2
FLAGS ?=
TIERS ?= null cpu conformance
export PORT HOST MODEL PYTHON

.DEFAULT_GOAL := help
.PHONY: help install serve test test-aot check docs clean

help:
	@echo "make serve [PORT=8000] [HOST=127.0.0.1] [MODEL=smollm2] [FLAGS='--max-model-len 4096']"
	@echo "make test [TIERS='null cpu conformance']"
	@echo "make test-aot   compile every Triton kernel for every target, without their hardware"
	@echo "make check      format, lint, types, import contracts, sizes, generated pages"
	@echo "make docs       write docs/generated again"
	@echo "make install    only set up .venv"
	@echo "make clean      remove .venv, builds and caches"

install:
	@scripts/install runtime

serve: install
	@exec .venv/bin/penstock serve "$$MODEL" --host "$$HOST" --port "$$PORT" $(FLAGS)

test:
	@scripts/test $(TIERS)

test-aot:
	@scripts/install test
	@.venv/bin/python scripts/compile_kernels.py

check:
	@scripts/check

docs:
	@scripts/docs

clean:
	rm -rf build penstock/_native*.so .venv .venv.lock .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
