# make run: set-up and a first guest.  make test, lint, bench, sanitize, fuzz, linux, oracle, clean: see README.md.
.DEFAULT_GOAL := run
SHELL := /bin/bash
.DELETE_ON_ERROR:
.SUFFIXES:

VENV   := .venv
HOST_PYTHON ?= $(shell command -v python3)
PYTHON ?= $(VENV)/bin/python
ABSPYTHON = $(if $(filter /%,$(PYTHON)),$(PYTHON),$(CURDIR)/$(PYTHON))

ifeq ($(origin CC),default)
CC := gcc
endif
CFLAGS_COMMON := -std=gnu11 -Wall -Wextra -fno-strict-aliasing -fPIC -Ikvmpy -Ikvmpy/soft/core
WERROR ?= -Werror
# Functions begin with a cache line: without it a page fault takes 400 to 460 ns, as what stands before a handler grows or shrinks.
OPT    ?= -O2 -falign-functions=64
NATIVE ?= kvmpy/_native.abi3.so
NATIVE_OBJ ?= build/native

CORE_C   := $(sort $(wildcard kvmpy/soft/core/*.c kvmpy/soft/core/*/*.c))
GLUE_C   := $(sort $(wildcard kvmpy/kvm/*.c) kvmpy/iovector.c kvmpy/devices/virtio/vring.c)
CORE_O    = $(patsubst kvmpy/%.c,$(NATIVE_OBJ)/%.o,$(CORE_C))
GLUE_O    = $(patsubst kvmpy/%.c,$(NATIVE_OBJ)/%.o,$(GLUE_C))
INC      := $(sort $(wildcard kvmpy/abi/*.inc kvmpy/kvm/*.inc) kvmpy/iovector.inc kvmpy/devices/virtio/vring.inc)
BLOBS    :=

.PHONY: run setup test lint bench sanitize fuzz linux oracle clean native blobs firmware guests headers

# --- firmware and guests: their fragments add files to BLOBS (kvmpy/blobs/NAME) and give the rules --------------
-include firmware/build.mk
-include guests/build.mk

blobs: $(BLOBS)
	@mkdir -p kvmpy/blobs

# --- native module ----------------------------------------------------------------------------------------------
native: $(NATIVE)

headers: | $(VENV)/.ready
	@inc=$$($(ABSPYTHON) -P kvmpy/_build.py include); test -e $$inc/Python.h || \
	  { echo "Python.h is missing in $$inc: sudo apt-get install python3-dev" >&2; exit 1; }

# A wheel's build brings its own Python; the development tree uses the virtual environment.
ifneq ($(PYTHON),$(VENV)/bin/python)
$(VENV)/.ready: ;
endif

$(NATIVE_OBJ)/wrapper.c: kvmpy/_build.py $(INC) | headers
	@mkdir -p $(@D)
	@$(ABSPYTHON) -P kvmpy/_build.py wrapper $@ >/dev/null; touch $@

$(NATIVE_OBJ)/abi_check.c: kvmpy/_build.py $(INC) | headers
	@mkdir -p $(@D)
	$(ABSPYTHON) -P kvmpy/_build.py check $@

# cffi's generated code is not ours to warn about.
$(NATIVE_OBJ)/wrapper.o: $(NATIVE_OBJ)/wrapper.c
	$(CC) $(OPT) $(CFLAGS_COMMON) -w -I$$($(ABSPYTHON) -P kvmpy/_build.py include) -MMD -MP -c $< -o $@

$(NATIVE_OBJ)/abi_check.o: $(NATIVE_OBJ)/abi_check.c
	$(CC) $(OPT) $(CFLAGS_COMMON) $(WERROR) -MMD -MP -c $< -o $@

$(NATIVE_OBJ)/%.o: kvmpy/%.c
	@mkdir -p $(@D)
	$(CC) $(OPT) $(CFLAGS_COMMON) -fno-plt -fvisibility=hidden $(WERROR) -MMD -MP -c $< -o $@

# A core with functions missing would keep the module from loading, and KVM with it: it is left out then, by name.
$(NATIVE): $(CORE_O) $(GLUE_O) $(NATIVE_OBJ)/wrapper.o $(NATIVE_OBJ)/abi_check.o
	@core="$(CORE_O)"; \
	if [ -n "$$core" ] && ! $(CC) -shared -Wl,-z,defs $(LDFLAGS) $$core -o $(NATIVE_OBJ)/core.so -lm -lpthread 2>$(NATIVE_OBJ)/core.log; then \
	  echo "software core left out of the module, it lacks:" $$(grep -o 'undefined reference to .*' $(NATIVE_OBJ)/core.log | cut -c24- | tr -d "\`';" | sort -u) >&2; core=; fi; \
	$(CC) -shared -Wl,-z,relro,-z,now $(LDFLAGS) $$core $(GLUE_O) $(NATIVE_OBJ)/wrapper.o $(NATIVE_OBJ)/abi_check.o -o $@.new -lm -lpthread
	@mv $@.new $@

-include $(patsubst %.o,%.d,$(CORE_O) $(GLUE_O) $(NATIVE_OBJ)/wrapper.o)

# --- virtual environment ----------------------------------------------------------------------------------------
ifeq ($(PYTHON),$(VENV)/bin/python)
$(VENV)/.ready: pyproject.toml
	@test -n "$(HOST_PYTHON)" || { echo "python3 is missing: sudo apt-get install python3 python3-venv python3-dev" >&2; exit 1; }
	@$(HOST_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "kvmpy needs Python 3.11 or newer" >&2; exit 1; }
	@$(HOST_PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "the venv module is missing: sudo apt-get install python3-venv" >&2; exit 1; }
	@command -v $(CC) >/dev/null || { echo "$(CC) is missing: sudo apt-get install gcc" >&2; exit 1; }
	@test -x $(VENV)/bin/python || $(HOST_PYTHON) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	  $$($(VENV)/bin/python -P -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["dev"], *p["optional-dependencies"]["spy"])')
	@touch $@
endif

# editable_mode=compat puts the tree's path into a .pth file. What setuptools would install otherwise is a module that finds the
# package, and costs every start of this interpreter 8 ms.
$(VENV)/.installed: pyproject.toml Makefile $(NATIVE) | $(VENV)/.ready
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e . --config-settings editable_mode=compat
	@touch $@

# The editable install depends on the metadata alone; touching it after every compile would be slow.
setup: $(VENV)/.ready native blobs
	@test $(VENV)/.installed -nt pyproject.toml -a $(VENV)/.installed -nt Makefile || $(MAKE) --no-print-directory $(VENV)/.installed
# For whoever sets PYTHONDONTWRITEBYTECODE: else each start would compile every module anew, 60 ms.
	@$(VENV)/bin/python -m compileall -q kvmpy

# --- jobs -------------------------------------------------------------------------------------------------------
PYTEST_ARGS ?=

run: setup
	@for guest in hello64 hello32 hello16; do \
	  for image in kvmpy/blobs/$$guest.elf kvmpy/blobs/$$guest.bin kvmpy/blobs/$$guest; do \
	    test -e $$image && exec $(VENV)/bin/kvmpy run $$image; done; done; \
	 $(VENV)/bin/kvmpy info

test: setup
	@$(VENV)/bin/python -m pytest -q -rs $(PYTEST_ARGS)

lint: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(MAKE) --no-print-directory native NATIVE=build/lint/_native.abi3.so NATIVE_OBJ=build/lint OPT=-O1

bench: setup
	@$(VENV)/bin/python -m tests.bench $(BENCH)

# The whole module with ASan and UBSan, loaded under the sanitizers' runtime; Python's own leaks are not reported. Tests, then random
# programs in random states (build/fuzz-case tells the number of a case that broke the process), then the oracle's cases.
SAN := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g
SAN_ENV = KVMPY_NATIVE=$(CURDIR)/build/sanitize/_native.abi3.so \
  LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
  ASAN_OPTIONS=detect_leaks=0:handle_segv=0:allow_user_segv_handler=1 PYTHONMALLOC=malloc
CASES_SECONDS ?= 60
SAN_TESTS ?= $(wildcard tests/soft tests/kvm tests/backends tests/fuzz/test_targets.py)
sanitize: setup
	@mkdir -p build/sanitize/site/kvmpy
	@$(MAKE) --no-print-directory native NATIVE=build/sanitize/_native.abi3.so NATIVE_OBJ=build/sanitize OPT="-O1 $(SAN)" LDFLAGS="$(SAN)"
	@$(SAN_ENV) $(VENV)/bin/python -m pytest -q -rs -p no:cacheprovider $(SAN_TESTS) $(PYTEST_ARGS)
	@$(SAN_ENV) $(VENV)/bin/python -m tests.fuzz.core_fuzz --first $$RANDOM$$RANDOM --seconds $(CASES_SECONDS)
	@$(MAKE) --no-print-directory build/sanitize/oracle ORACLE=build/sanitize/oracle NATIVE_OBJ=build/sanitize OPT="-O1 $(SAN)"
	@$(SAN_ORACLE) -c -n 20 -q 4000
	@$(SAN_ORACLE) -c -r tests/oracle/cases.txt
# The oracle takes the signals and runs on a stack of its own.
SAN_ORACLE = ASAN_OPTIONS=detect_leaks=0:handle_segv=0:handle_sigbus=0:handle_sigfpe=0:handle_sigill=0:handle_sigtrap=0:allow_user_segv_handler=1:use_sigaltstack=0 \
  build/sanitize/oracle

# Every fuzz target for FUZZ_SECONDS, FUZZ_JOBS at a time, or TARGET alone: docs/fuzzing.md. The C parts are built once more by
# clang, with coverage and sanitizers; a target of a chip, a page walk or a whole CPU is one file of tests/fuzz/core.
FUZZ_SECONDS ?= 20
FUZZ_JOBS ?= 1
FUZZ_CC := clang
FUZZ_SAN := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g
FUZZ_SHARED := $(addprefix tests/fuzz/core/,machine.c guest.c assemble.c)
FUZZ_CORE := $(patsubst tests/fuzz/core/%.c,%,$(filter-out $(FUZZ_SHARED) tests/fuzz/core/replay.c,$(wildcard tests/fuzz/core/*.c)))
fuzz: fuzz-tools setup
	@$(MAKE) --no-print-directory fuzz-core FUZZ_BUILD=build/fuzz/bin CC=$(FUZZ_CC) WERROR= NATIVE_OBJ=build/fuzz/obj \
	  OPT="-O1 -fsanitize=fuzzer-no-link $(FUZZ_SAN)" FUZZ_LINK="-fsanitize=fuzzer $(FUZZ_SAN)" FUZZ_MAIN=
	@$(VENV)/bin/python -m tests.fuzz --seconds $(FUZZ_SECONDS) --jobs $(FUZZ_JOBS) $(TARGET)

.PHONY: fuzz-tools fuzz-core
fuzz-tools: $(VENV)/.ready
	@command -v $(FUZZ_CC) >/dev/null || { echo "$(FUZZ_CC) is missing: sudo apt-get install clang" >&2; exit 1; }
	@echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' | $(FUZZ_CC) -x c - -fsanitize=fuzzer $(FUZZ_SAN) -o /dev/null 2>/dev/null || \
	  { echo "libFuzzer is missing: sudo apt-get install libclang-rt-$$($(FUZZ_CC) -dumpversion | cut -d. -f1)-dev" >&2; exit 1; }
	@$(VENV)/bin/python -P -c 'import atheris' 2>/dev/null || \
	  $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $$($(VENV)/bin/python -P -c 'import tomllib; \
	    print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["fuzz"])')

# Without a fuzzer: replay.c runs files, and inputs of a generator. Tests use these, linked with the module's own objects.
FUZZ_BUILD ?= build/fuzz/replay
FUZZ_MAIN ?= tests/fuzz/core/replay.c
FUZZ_LINK ?=
fuzz-core: $(FUZZ_CORE:%=$(FUZZ_BUILD)/%)
$(FUZZ_CORE:%=$(FUZZ_BUILD)/%): $(FUZZ_BUILD)/%: tests/fuzz/core/%.c $(FUZZ_SHARED) $(FUZZ_MAIN) $(wildcard tests/fuzz/core/*.h) $(CORE_O)
	@mkdir -p $(@D)
	@$(CC) $(OPT) $(CFLAGS_COMMON) $(WERROR) -Itests/fuzz/core $(filter %.c %.o,$^) $(FUZZ_LINK) -o $@ -lm -lpthread

linux: setup
	@$(VENV)/bin/python -m tests.guests_fetch

# Compares the core's instructions with the host's: the program links the core's objects.
ORACLE := build/oracle/oracle
$(ORACLE): $(wildcard tests/oracle/*.c tests/oracle/*.h) $(CORE_O)
	@mkdir -p $(@D)
	$(CC) $(OPT) $(CFLAGS_COMMON) $(WERROR) -Itests/oracle $(filter %.c %.o,$^) -lm -lpthread -o $@

ORACLE_ARGS ?= -n 650 -q 100000
oracle: setup $(ORACLE)
	@$(ORACLE) $(ORACLE_ARGS)
	@$(ORACLE) -r tests/oracle/cases.txt
	@$(ORACLE) -f -n 1000 vf

clean:
	rm -rf build dist kvmpy/blobs kvmpy/_native*.so kvmpy/_native*.c *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find kvmpy tests -name __pycache__ -prune -exec rm -rf {} +
