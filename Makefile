# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
PIP := .venv/bin/python -m pip install --quiet
SOURCES := setup.py pyproject.toml $(shell find csrc inception_fused bench triton_kernels -type f \
	-not -name '*.so' -not -name '*.pyc')

.PHONY: bench bench-baseline bench-compare test test-full test-random gpu-check lint docs clean

bench: .venv/installed
	.venv/bin/inception-fused bench --output bench/out

# Every module by back end and dtype: first the state to compare with, later the one to judge.
MODULES := .venv/bin/python -m pytest bench/test_modules.py --benchmark-only --benchmark-max-time=0.3 \
	--benchmark-min-rounds=10 --benchmark-warmup=on --benchmark-warmup-iterations=3 \
	--benchmark-group-by=group --benchmark-columns=median,iqr,outliers,rounds

bench-baseline: .venv/installed
	mkdir -p bench/out
	$(MODULES) --benchmark-json=bench/out/baseline.json

# Fails if a back end is slower than in bench/out/baseline.json, beyond the noise of both runs.
bench-compare: .venv/installed
	@test -f bench/out/baseline.json || { echo "first: make bench-baseline"; exit 2; }
	$(MODULES) --benchmark-json=bench/out/now.json
	.venv/bin/python -m inception_fused.bench.compare bench/out/baseline.json bench/out/now.json

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
