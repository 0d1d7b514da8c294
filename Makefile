# Everything a newcomer or CI runs. `make demo` and `make test` need nothing but make itself:
# they create .venv, and install the Debian packages they need when run as root.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
APT_PACKAGES := python3 python3-venv python3-dev g++
TEST_APT_PACKAGES := libgtest-dev libucx0 libucx-dev etcd-server
NATIVE_BUILD := build/native
SANITIZER_BUILD := build/sanitizers
MUTATION_BUILD := build/mutations
MUTATION_OPTIONS := --seeds 4000
PEERS_VENV := .venv-peers
PEERS_PACKAGES := mooncake-transfer-engine-non-cuda==0.3.13.post1 'redis[hiredis]>=5.0'
PEERS_APT_PACKAGES := redis-server libibverbs1 librdmacm1 libnuma1 libcurl4
BENCH_OPTIONS :=
FAULT_CYCLES := 50
ATTACK_ROUNDS := 6
# Tests wait more than they compute.
TEST_JOBS := $(shell expr $$(nproc) + 1)
SIM_OPTIONS := --seeds 1..2000 --jobs 2
FUZZ_SECONDS := 60
FUZZ_TARGETS :=
FUZZ_APT_PACKAGES := libclang-rt-dev
FUZZ_PACKAGES := atheris
AARCH64_APT_PACKAGES := g++-aarch64-linux-gnu qemu-user googletest
DEPLOY_APT_PACKAGES := buildah mmdebstrap systemd
DEPLOY_BUDGET_S := 3600
CONSOLE_APT_PACKAGES := chromium
CONSOLE_BUDGET_S := 900
ENGINES_BUDGET_S := 2400
ENGINES_OPTIONS :=
RDMA_APT_PACKAGES := qemu-system-x86 iproute2 ibverbs-providers libucx0 ucx-utils python3-pyverbs
RDMA_BUDGET_S := 900
RDMA_TESTS := tests/rdma --ignore tests/rdma/test_contract.py
GPU_PYTHON := python3
GPU_BUILD := build/gpu
GPU_BUDGET_S := 110
GPU_BENCH_S := 50
PYTHON_SOURCES := kvstore tests bench deploy
CXX_SOURCES = $(shell find native tests/sim tests/gpu -name '*.h' -o -name '*.cpp')
EXTENSION_SOURCES = $(shell find native/src native/bindings -name '*.h' -o -name '*.cpp')
# One build folder serves the extension and the native tests, so that nothing is compiled twice.
PIP_INSTALL = $(PY) -m pip install --quiet --no-build-isolation --config-settings=build-dir=$(NATIVE_BUILD)
CMAKE = PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cmake -S native -G Ninja \
    -DPython_EXECUTABLE=$(CURDIR)/$(PY) -Dnanobind_DIR="$$($(PY) -m nanobind --cmake_dir)"
NINJA = NINJA_STATUS='[%f/%t, %e s] ' $(VENV)/bin/ninja

# What the named extras of pyproject.toml ask for, one a line.
REQUIREMENTS = $(PY) -c 'import sys; \
    from pip._vendor import tomli as t; p = t.load(open("pyproject.toml", "rb"))["project"]; \
    e = p["optional-dependencies"]; r = [r for extra in sys.argv[1:] for r in e[extra]]; \
    print(*[one for one in r if not one.startswith("kvcache-store")], sep="\n")'

.PHONY: help demo test lint types native-test python-test format bench bench-peers bench-programs \
        test-sanitizers fuzz test-aarch64 test-sim test-attack test-fault test-mutations test-console test-deploy test-engines test-ucx-wheel test-rdma test-rdma-suite test-gpu sdist wheel wheels promtool proto system-packages test-packages clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Installs Debian packages that are missing, as root; else names them.
define install_packages
	@missing=$$(for p in $(1); do \
	    dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done | xargs); \
	if [ -n "$$missing" ]; then \
	    if [ "$$(id -u)" = 0 ]; then \
	        apt-get update -q && DEBIAN_FRONTEND=noninteractive \
	            apt-get install -y -q --no-install-recommends $$missing; \
	    else echo "please run: sudo apt-get install $$missing" >&2; exit 1; fi; \
	fi
endef

system-packages:
	$(call install_packages,$(APT_PACKAGES))

test-packages: system-packages
	$(call install_packages,$(TEST_APT_PACKAGES))

# What it takes to build and run, without what only tests and lint need.
$(VENV)/.tools: pyproject.toml | system-packages
	test -x $(PY) || python3 -m venv $(VENV)
	$(REQUIREMENTS) server build > $(VENV)/requirements.txt
	@echo "Installing the packages of the servers and of the build …"
	$(PY) -m pip install --quiet -r $(VENV)/requirements.txt
	touch $@

$(VENV)/.dev: $(VENV)/.tools | test-packages
	$(REQUIREMENTS) dev > $(VENV)/dev-requirements.txt
	$(PY) -m pip install --quiet -r $(VENV)/dev-requirements.txt
	touch $@

# The package itself, editable: Python files are used in place, the extension is rebuilt when needed.
# Compiled here already, and not by pip, which would say nothing meanwhile.
$(VENV)/.installed: $(VENV)/.tools $(EXTENSION_SOURCES) native/CMakeLists.txt
	@echo "Compiling the native core …"
	$(CMAKE) -B $(NATIVE_BUILD) -DCMAKE_BUILD_TYPE=Release -DKVSTORE_TESTS=OFF >/dev/null
	$(NINJA) -C $(NATIVE_BUILD) _native
	$(PIP_INSTALL) --no-deps --editable .
	touch $@

demo: $(VENV)/.installed  ## build, install, and replay a workload on the embedded store
	$(VENV)/bin/kvstore replay

test: $(VENV)/.installed lint types native-test python-test  ## lint, types, native and Python tests

lint: $(VENV)/.dev  ## formats, ruff, clang-tidy, and clang's analysis of which mutex guards what
	$(VENV)/bin/ruff check $(PYTHON_SOURCES)
	$(VENV)/bin/ruff format --check $(PYTHON_SOURCES)
	@echo "clang-format, $(words $(CXX_SOURCES)) files"
	@$(VENV)/bin/clang-format --dry-run --Werror $(CXX_SOURCES) bench/limits.cpp
	@$(MAKE) --no-print-directory -j "$$(nproc)" $(LINTED_ROOMS)

# A room at a time, its sources in one translation unit: clang reads the same headers once. What the
# unit includes goes to a depfile, so that an edit has only the rooms that see it analyzed again.
LINTED_ROOMS = $(patsubst native/src/%,build/lint/%.ok,$(wildcard native/src/*))
.SECONDEXPANSION:
build/lint/%.ok: $$(wildcard native/src/$$*/*.cpp) native/.clang-tidy
	@mkdir -p $(@D)
	@echo "clang-tidy: $*"
	@printf '#include "%s"\n' $(abspath $(wildcard native/src/$*/*.cpp)) > build/lint/$*.cpp
	@$(CXX) -std=c++20 -Inative/src -MM -MP -MT $@ -MF build/lint/$*.d build/lint/$*.cpp
	@$(VENV)/bin/clang-tidy --quiet --config-file=native/.clang-tidy build/lint/$*.cpp \
	    -- -std=c++20 -Inative/src -Wthread-safety
	@touch $@
-include $(wildcard build/lint/*.d)

types: $(VENV)/.installed $(VENV)/.dev  ## mypy on the package, the benchmark and the tests
	$(VENV)/bin/mypy

native-test: $(VENV)/.installed $(VENV)/.dev  ## GoogleTest, one executable a test file; the simulation
	$(CMAKE) -B $(NATIVE_BUILD) -DKVSTORE_TESTS=ON >/dev/null
	$(NINJA) -C $(NATIVE_BUILD) --quiet
	$(VENV)/bin/ctest --test-dir $(NATIVE_BUILD) --output-on-failure

# Prometheus and promtool for tests/monitoring: unpacked, not installed, which would start a server.
# Where there is no Debian package those tests are skipped, and say so.
promtool: build/prometheus/unpacked  ## unpack Prometheus and promtool, for tests/monitoring

build/prometheus/unpacked:
	mkdir -p $(@D)
	cd $(@D) && { apt-get download -q prometheus && dpkg-deb -x prometheus_*.deb . && rm prometheus_*.deb \
	    || echo "without prometheus"; }
	touch $@

python-test: $(VENV)/.installed $(VENV)/.dev promtool  ## unit, property and cluster tests, each fault of tests/fault once
	$(PY) -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder -m "not alone"
	$(PY) -m pytest -m alone

format: $(VENV)/.dev  ## rewrite the sources in the house format
	$(VENV)/bin/ruff check --fix --quiet $(PYTHON_SOURCES) || true
	$(VENV)/bin/ruff format $(PYTHON_SOURCES)
	$(VENV)/bin/clang-format -i $(CXX_SOURCES) bench/limits.cpp

proto: $(VENV)/.dev  ## regenerate kvstore/_proto from proto/
	$(PY) proto/generate.py

# The checksums that it measures are the store's own.
LIMITS_SOURCES := bench/limits.cpp $(addprefix native/src/,base/checksum.cpp base/checksum_wide.cpp base/status.cpp net/transfer_cursor.cpp)
build/bench/limits: $(LIMITS_SOURCES)
	mkdir -p $(@D)
	$(CXX) -std=c++20 -O3 -Wall -Wextra -Inative/src $^ -o $@

$(VENV)/.bench: $(VENV)/.dev
	$(REQUIREMENTS) bench > $(VENV)/bench-requirements.txt
	$(PY) -m pip install --quiet -r $(VENV)/bench-requirements.txt
	touch $@

bench-programs: build/bench/limits $(VENV)/.installed  ## the C++ programs that `make bench` runs
	$(CMAKE) -B $(NATIVE_BUILD) >/dev/null
	$(NINJA) -C $(NATIVE_BUILD) --quiet directory_bench scale_generator

bench: $(VENV)/.installed $(VENV)/.bench bench-programs  ## stores and this machine's limits in turns: table, plots, JSON
	$(PY) -m bench $(BENCH_OPTIONS)

# What cannot be installed is left out of the benchmark, with a sentence there; never an error here.
bench-peers:  ## what `make bench` compares with, in an environment of its own
	@if [ "$$(id -u)" = 0 ]; then \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q \
	        --no-install-recommends $(PEERS_APT_PACKAGES) || echo "without: $(PEERS_APT_PACKAGES)"; \
	else echo "if they are missing: sudo apt-get install $(PEERS_APT_PACKAGES)"; fi
	@test -x $(PEERS_VENV)/bin/python || python3 -m venv $(PEERS_VENV)
	@for package in $(PEERS_PACKAGES); do \
	    $(PEERS_VENV)/bin/python -m pip install --quiet "$$package" || echo "without: $$package"; done

test-sanitizers: $(VENV)/.dev  ## ASan + UBSan for every native test, TSan for process-private state
	tests/sanitizers.sh $(SANITIZER_BUILD)

# Atheris has wheels for some versions of Python only; without it the native targets run.
fuzz: $(VENV)/.installed $(VENV)/.dev  ## FUZZ_SECONDS (60) of each fuzz target; FUZZ_TARGETS="fuzz_messages http_port"
	$(call install_packages,$(FUZZ_APT_PACKAGES))
	@$(PY) -m pip install --quiet $(FUZZ_PACKAGES) || echo "without: $(FUZZ_PACKAGES)"
	tests/fuzz/run.sh build/fuzz $(FUZZ_SECONDS) $(FUZZ_TARGETS)

test-aarch64: $(VENV)/.dev  ## native tests compiled for aarch64, run by qemu
	$(call install_packages,$(AARCH64_APT_PACKAGES))
	tests/aarch64.sh build/aarch64

# Builds the container image and runs it; the units and the manifest are checked by `make test`, too.
test-deploy: $(VENV)/.installed $(VENV)/.dev  ## deploy/: image built and run, systemd units, Kubernetes manifest
	@if [ "$$(id -u)" = 0 ]; then apt-get update -q && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -q --no-install-recommends $(DEPLOY_APT_PACKAGES); \
	else echo "without root the image is not built"; fi
	timeout $(DEPLOY_BUDGET_S) $(PY) -m pytest --deploy tests/deploy

# Its screenshots are to be looked at: build/console.
test-console: $(VENV)/.installed $(VENV)/.dev  ## the web console in a headless Chromium: values, hostile names, looks
	$(call install_packages,$(CONSOLE_APT_PACKAGES))
	timeout $(CONSOLE_BUDGET_S) $(PY) -m pytest --console tests/console

# The engines' environments (2 to 4 GB each) stay in $$KVSTORE_ENGINES, else in the user's cache folder.
test-engines: $(VENV)/.installed $(VENV)/.dev  ## the integrations inside real vLLM, SGLang and LMCache, without a GPU
	$(PY) -m tests.engines.environments
	timeout $(ENGINES_BUDGET_S) $(PY) -m pytest --engines $(ENGINES_OPTIONS) tests/engines

# A process that uses UCX was seen to abort when a link died, once in three runs: what it says then is
# shown (--capture=sys), and the tests run once more.
RUN_RDMA = $(PY) -m tests.rdma.vm --timeout-s $(RDMA_BUDGET_S) -- \
    $(CURDIR)/$(PY) -m pytest --capture=sys --rdma $(RDMA_TESTS)

# A virtual machine, because a kernel with soft-RoCE is rarely the one of CI. Its kernel is downloaded
# once, into the user's cache folder; without KVM its processor is emulated, which takes minutes.
test-rdma: $(VENV)/.installed $(VENV)/.dev  ## tests/rdma in a virtual machine with RDMA devices; a skipped test is a failure
	$(call install_packages,$(RDMA_APT_PACKAGES))
	@$(RUN_RDMA) || { [ $$? = 134 ] && echo "aborted: once more" && $(RUN_RDMA); }

test-rdma-suite: RDMA_TESTS := tests/rdma/test_contract.py
test-rdma-suite: test-rdma  ## in the same machine, the tests of the API over verbs: minutes

# The UCX that comes with a wheel of nixl (70 MB), where no other is to be seen: that takes root.
$(VENV)/nixl/.downloaded: | $(VENV)/.tools
	$(PY) -m pip download --quiet --no-deps --dest $(@D) nixl-cu12
	touch $@

test-ucx-wheel: $(VENV)/.installed $(VENV)/.dev $(VENV)/nixl/.downloaded  ## the API by the UCX of a nixl wheel
	KVSTORE_NIXL_WHEEL="$$(ls $(CURDIR)/$(VENV)/nixl/*.whl)" $(PY) -m pytest tests/cluster/test_ucx_wheel.py

# `make test` runs seeds 1..200, with and without --keep-memory (nodes find their files again).
test-sim: $(VENV)/.installed $(VENV)/.dev  ## seeded simulation of the protocol; SIM_OPTIONS="--seeds 1..20000 --keep-memory"
	$(CMAKE) -B $(NATIVE_BUILD) -DKVSTORE_TESTS=ON >/dev/null
	$(NINJA) -C $(NATIVE_BUILD) --quiet sim
	$(NATIVE_BUILD)/sim/sim $(SIM_OPTIONS)

# Ends with a table: case, cycles, wrong bytes, leaks, longest outage.
test-attack: $(VENV)/.installed $(VENV)/.dev  ## tests/attack ATTACK_ROUNDS (6) times, 60,000 frames: half an hour on a quiet machine
	$(PY) -m pytest tests/attack --attack-rounds $(ATTACK_ROUNDS)

test-fault: $(VENV)/.installed $(VENV)/.dev  ## every fault of tests/fault FAULT_CYCLES (50) times: an hour or two
	$(PY) -m tests.fault.table --fault-cycles $(FAULT_CYCLES)

test-mutations: $(VENV)/.installed $(VENV)/.dev  ## takes guards out one by one: do simulation and fault suite see it?
	$(CMAKE) -B $(MUTATION_BUILD) -DKVSTORE_MUTATIONS=ON >/dev/null
	$(NINJA) -C $(MUTATION_BUILD) --quiet sim _native
	$(PY) tests/sim/mutations.py $(MUTATION_BUILD)/sim/sim $(MUTATION_OPTIONS)
	$(PY) -m tests.fault.mutations $(MUTATION_BUILD)

# Takes what is installed there (PyTorch, CMake, Ninja, nanobind), and downloads nothing.
test-gpu:  ## the calls for GPU memory on a real GPU, with the packages of GPU_PYTHON
	cmake -S native -G Ninja -B $(GPU_BUILD) -DCMAKE_BUILD_TYPE=Release -DKVSTORE_TESTS=OFF \
	    -DPython_EXECUTABLE="$$(command -v $(GPU_PYTHON))" \
	    -Dnanobind_DIR="$$($(GPU_PYTHON) -m nanobind --cmake_dir)" >/dev/null
	cmake --build $(GPU_BUILD) --target _native
	rm -rf $(GPU_BUILD)/tree && mkdir $(GPU_BUILD)/tree && cp -r kvstore tests $(GPU_BUILD)/tree
	rm -f $(GPU_BUILD)/tree/kvstore/_native*.so && cp $(GPU_BUILD)/_native*.so $(GPU_BUILD)/tree/kvstore
	cd $(GPU_BUILD)/tree && timeout $(GPU_BUDGET_S) $(GPU_PYTHON) -m tests.gpu.real_device
	cd $(GPU_BUILD)/tree && timeout $(GPU_BENCH_S) $(GPU_PYTHON) -m tests.gpu.device_bench

sdist: $(VENV)/.tools  ## source distribution in dist/
	mkdir -p dist
	rm -f dist/*.tar.gz
	$(PY) -c 'from scikit_build_core.build import build_sdist; build_sdist("dist")'

# From the source distribution, so that what is in dist/ is known to build.
wheel: sdist  ## and a wheel for the Python in .venv
	$(PY) -m pip wheel --quiet --no-build-isolation --no-deps -w dist dist/*.tar.gz

wheels: sdist  ## for Python 3.10, 3.11 and all later ones, x86-64 and aarch64, glibc 2.28 (PYTHONS, ARCHITECTURES)
	deploy/wheels.sh build/wheels

clean:  ## remove what was built
	rm -rf build dist $(VENV)/.installed
