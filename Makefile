# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
PIP := .venv/bin/python -m pip install --quiet
SOURCES := setup.py pyproject.toml $(shell find csrc inception_fused bench triton_kernels -type f \
	-not -name '*.so' -not -name '*.pyc')

.PHONY: bench test test-full test-random gpu-check lint docs clean

bench: .venv/installed
	.venv/bin/inception-fused bench --output bench/out

test: .venv/installed
	.venv/bin/python -m pytest

# Long: the emulated kernels at every size, format, precision and seed, and sanitized.
test-full: .venv/installed
	.venv/bin/python -m pytest -m "full or not full"

# On a machine with a GPU; elsewhere the emulated tests.
gpu-check: .venv/installed
	.venv/bin/inception-fused gpu-check

# fuse on 2,000 random modules; prints how many were fused, and why the others were not.
test-random: .venv/installed
	.venv/bin/python -m pytest -s tests/test_random_modules.py --hypothesis-profile=full

lint: .venv/linters
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	git ls-files 'csrc/*' 'tests/*.cpp' 'tests/*.h' | grep -E '\.(h|cpp|inl|cu|cuh)$$' | \
		xargs .venv/bin/clang-format --dry-run --Werror

# The site, build/site/index.html. It loads nothing from the network; its search needs a server.
docs: .venv/site
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

clean:
	rm -rf .venv build bench/out *.egg-info inception_fused/*.so

# torch first: the build uses the one that will run it, instead of downloading another.
.venv/tools:
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip
	$(PIP) "setuptools>=77" ninja "torch>=2.10" torchvision
	touch $@

.venv/installed: .venv/tools $(SOURCES)
	@echo "installing inception_fused and building its native library"
	$(PIP) --no-build-isolation -e ".[test]"
	touch $@

.venv/site: .venv/installed
	$(PIP) --no-build-isolation -e ".[docs]"
	touch $@

.venv/linters: .venv/installed
	$(PIP) --no-build-isolation -e ".[dev]"
	touch $@
