# Each target installs what it needs into .venv; a second run finds it there.
PYTHON ?= python3
BIN := .venv/bin
export UV_PYTHON_DOWNLOADS := never
export NO_MKDOCS_2_WARNING := 1
# Where Python keeps no bytecode, every process compiles all that it imports, which takes it seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check bench docs clean

demo: .venv/base
	@$(BIN)/artifex demo --output demo.png
	@$(BIN)/artifex demo --model mnist-diffusion --output demo-diffusion.png

test: .venv/test
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: .venv/check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/test
	$(BIN)/python benchmarks/run.py

docs: .venv/docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv site dist

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Artifex needs Python 3.11 or newer; say make PYTHON=...")'
	@$(PYTHON) -m venv --without-pip .venv

# The machine's uv where it has one, else one of our own from the package registry.
.venv/uv: .venv/bin/python
	@if command -v uv >/dev/null; then ln -sf "$$(command -v uv)" $@; \
	else $(PYTHON) -m pip --quiet --python $(BIN)/python install -c constraints.txt uv && ln -sf bin/uv $@; fi

.venv/base: pyproject.toml constraints.txt | .venv/uv
	@echo "installing Artifex into .venv"
	@.venv/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e .
	@touch $@

.venv/test .venv/check .venv/docs: .venv/%: .venv/base
	@.venv/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[plot,serve,ray]" --group $*
	@touch $@
