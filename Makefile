# Every command of the project. `make setup` is part of the others and quick when nothing changed.
JOBS ?= $(shell env -u OMP_NUM_THREADS nproc)
PY := .venv/bin/python
PYTEST_ARGS ?=
# The CMake preset whose build `make test` runs the C++ tests of.
PRESET ?= developer
# COVERAGE=1 measures the Python lines that the tests reach, those of some subprocesses included
# (tests/python/line_counting.py).
PYTEST := $(PY) -m $(if $(COVERAGE),coverage run -m )pytest -n $(JOBS) --dist worksteal
# The packages that the CUDA tests find at run time are those of .venv. Storing whole stacks of every
# allocation takes an eighth of the sanitized tests' time.
CTEST := VIRTUAL_ENV=$(CURDIR)/.venv ASAN_OPTIONS=malloc_context_size=5 ctest --output-on-failure -j$(JOBS)
CPP_SOURCES = $(shell git ls-files 'include/*.hpp' 'src/*.hpp' 'src/*.cpp' 'tests/*.hpp' 'tests/*.cpp' 'examples/*.cpp' 'benchmark/*.cpp' 'benchmark/*.hpp')
CLANG_FORMAT := $(shell command -v clang-format-14 || echo clang-format)
COVERAGE_GATE ?= 90
export OMP_NUM_THREADS ?= 1

.PHONY: setup test test-gpu test-cpp test-python test-families test-sglang-releases test-asan test-tsan test-cuda-links test-transformers coverage coverage-report \
  demo bench bench-cpu tables format lint clean

setup:
	@scripts/setup.sh

test: setup test-cpp test-python

test-cpp:
	cmake --preset $(PRESET)
	cmake --build --preset $(PRESET) -j$(JOBS)
	$(if $(COVERAGE),find build/$(PRESET) -name '*.gcda' -delete)
	$(CTEST) --test-dir build/$(PRESET)

test-python:
	$(if $(COVERAGE),$(PY) -m coverage erase; find build/python-* -name '*.gcda' -delete)
	$(PYTEST) $(PYTEST_ARGS)

# Every model class of SGLang with and without the plugin, then docs/models.md; an hour on two cores.
# FAMILIES_OPTIONS: --resume goes on with an interrupted run, --idle takes only time that nobody wants.
FAMILIES := cd tests/python && $(CURDIR)/$(PY) -m families
OBSERVED := $(CURDIR)/tests/data/sglang_models.json
test-families: setup
	$(FAMILIES) --json $(OBSERVED) --jobs $(JOBS) $(FAMILIES_OPTIONS)
	$(FAMILIES) --names --json $(OBSERVED) --jobs $(JOBS) $(FAMILIES_OPTIONS)
	$(FAMILIES).engines --json $(OBSERVED)
	$(MAKE) test-sglang-releases

# An engine of each release of SGLang, from one environment: two models, plain and with another activation.
SGLANG_RELEASES ?= 0.5.17 0.5.18 0.5.19 0.5.20 0.5.21 0.5.22 0.5.23
test-sglang-releases: setup
	for release in $(SGLANG_RELEASES); do test -d build/sglang/$$release || \
	  $(PY) -m pip install -qq --no-deps --target build/sglang/$$release sglang==$$release; done
	$(FAMILIES).engines --no-parallel --json $(OBSERVED) --sources $(CURDIR)/build/sglang
	$(FAMILIES).page

# The C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer; under ThreadSanitizer.
test-asan test-tsan: test-%: setup
	cmake --preset $*
	cmake --build --preset $* -j$(JOBS)
	$(CTEST) --test-dir build/$*

# Each fuzz target for FUZZ_SECONDS of processor time; FUZZ_TARGETS names some of them, FUZZ_OPTIONS are
# run.py's. docs/testing.md.
FUZZ_SECONDS ?= 1800
FUZZ_TARGETS ?= config expression checkpoint isa
fuzz: setup
	cmake --preset fuzz
	cmake --build --preset fuzz -j$(JOBS) $(addprefix --target fuzz_,$(FUZZ_TARGETS))
	$(PY) tests/fuzz/run.py $(FUZZ_SECONDS) $(FUZZ_TARGETS) $(FUZZ_OPTIONS)

# Small wrong changes in the activation compiler: which tests notice. May be interrupted and started again.
# MUTATION_OPTIONS: --idle takes only time that nobody wants.
mutation: setup
	$(PY) tests/mutation/run.py --jobs $(JOBS) $(MUTATION_OPTIONS)

# Every shipped CUDA kernel with every function: 0 spills, no serialised wgmma. Minutes.
test-cuda-links: setup
	cmake --preset developer
	cmake --build --preset developer -j$(JOBS) --target test_cuda
	bash -o pipefail -c "VIRTUAL_ENV=$(CURDIR)/.venv build/developer/tests/cpp/test_cuda \
	  --gtest_also_run_disabled_tests --gtest_filter='ShippedKernels.*' | tee build/cuda_links.log"
	! grep SKIPPED build/cuda_links.log

# On a machine with a GPU; PY=python3 takes its own torch and an installed flexact.
test-gpu:
	$(PY) -m pytest tests/gpu $(PYTEST_ARGS)

# Every experts class of the pinned transformers and of the newest release that was looked at, each
# through a checkpoint of its own; RECORD=--record writes the table in docs. Minutes.
NEWEST := build/transformers-newest
test-transformers: setup
	$(PY) tests/python/transformers_sweep.py $(RECORD)
	$(PY) -m pip install -qq --no-deps --upgrade --target $(NEWEST) -r requirements/transformers-newest.txt
	PYTHONPATH=$(NEWEST) $(PY) tests/python/transformers_sweep.py $(RECORD)
	PYTHONPATH=$(NEWEST) $(PY) -m pytest -p no:cacheprovider tests/python/test_transformers_adapter.py

# All tests, the C++ ones on the build with sanitizers, which counts lines too; then what they reached.
coverage:
	$(MAKE) test PRESET=asan COVERAGE=1
	$(MAKE) coverage-report

# gcov prints a negative count for a branch that threads counted at once; such lines are passed over.
coverage-report:
	gcovr -j $(JOBS) --gcov-ignore-parse-errors --root . --filter include/ --filter src/ \
	  build/asan $(wildcard build/python-*) --exclude-throw-branches --sort-percentage --fail-under-line $(COVERAGE_GATE)
	$(PY) -m coverage combine -q
	$(PY) -m coverage report --fail-under=$(COVERAGE_GATE)

demo: setup
	$(PY) examples/demo/run.py

# Prints; benchmark/record.py writes the files in benchmark/results.
bench: setup
	cmake --preset developer
	cmake --build --preset developer -j$(JOBS)
	set -e; for program in build/developer/benchmark/bench_*; do $$program; done

# What docs/performance.md says of the CPU: under eight minutes on an idle machine. BUSY=--busy-ok runs on
# another one, counts processor time and marks the results. Writes benchmark/results, then the page.
CPU_BENCH := build/developer/benchmark
MEASURE = $(PY) benchmark/record.py $(BUSY)
CLOCK = --clock $(if $(BUSY),processor,wall)
bench-cpu: setup
	cmake --preset developer
	cmake --build --preset developer -j$(JOBS) --target bench_cpu_moe bench_cpu_tape bench_limits conformance
	test -d build/peers/kt_kernel || $(PY) -m pip install -q --no-deps --target build/peers kt-kernel==0.7.2
	$(PY) benchmark/peers/cpu_moe.py $(BUSY) $(CLOCK)
	$(MEASURE) $(CPU_BENCH)/bench_cpu_moe --name cpu_moe_isas --core all \
	  -- --variants avx512bf16,avx512,avx2 --shape qwen3_30b $(CLOCK)
	$(MEASURE) $(CPU_BENCH)/bench_cpu_moe --name cpu_moe_threads --core all \
	  -- --variants avx512bf16,avx512bf16x2 $(CLOCK)
	FLEXACT_NUM_THREADS=1 $(MEASURE) build/developer/tests/conformance/conformance \
	  --name cpu_moe_activation_cost -- bench --intermediate 512 --tokens 64 --rounds 200
	$(MEASURE) $(CPU_BENCH)/bench_cpu_tape --rounds 3
	$(MAKE) tables
	$(PY) scripts/fill_tables.py --goals

# The tables and pictures of the pages, from the files in benchmark/results.
tables:
	$(PY) scripts/fill_tables.py
	$(PY) scripts/draw_docs.py

format:
	$(CLANG_FORMAT) -i $(CPP_SOURCES)
	.venv/bin/ruff check --fix -q .
	.venv/bin/ruff format -q .

lint: setup
	$(CLANG_FORMAT) --dry-run -Werror $(CPP_SOURCES)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

clean:
	rm -rf build
