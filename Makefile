# edgepack's two commands: `make demo` and `make test`. Both begin by making .venv.
# `make figures` puts docs/figures/*.json into the documents, `make figures-run TABLE=NAME` measures one again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: demo test lint typecheck pytest test-asan figures figures-run lock sbom fuzz attack wheel clean

demo: $(VENV)/.installed
	@$(BIN)/python tools/demo.py

test: lint typecheck pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the __path__ that joins src/edgepack with the four parts, so it sees them joined by links.
typecheck: $(VENV)/.installed
	@rm -rf build/typed && mkdir -p build/typed/edgepack
	@ln -s $(CURDIR)/src/edgepack/* $(CURDIR)/export $(CURDIR)/quant $(CURDIR)/packaging $(CURDIR)/edge build/typed/edgepack/
	$(BIN)/mypy

# Two workers share two cores: OpenMP threads that spin while they wait would slow each other down tenfold.
pytest: $(VENV)/.installed
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

figures: $(VENV)/.installed
	$(BIN)/python tools/figures.py render
	$(BIN)/python tools/api_document.py

figures-run: $(VENV)/.installed
	$(BIN)/python tools/figures.py run $(TABLE)

# llama-cpp-python is compiled here the first time (about 8 minutes on two cores). Everything is installed from two files
# that name every package's version and hashes, build backends first: `make lock` writes them. torch's hash is that of
# its CPU build, which PyTorch's own index has where the configured one does not. They are made for one Python and
# system; on others, LOCKED=0 takes the same versions of whatever the index gives, without hashes.
#
# llama.cpp is compiled without AMX where the compiler knows it: GCC before 12.4 makes kernels of it that end the process
# (`edge.llama.build.has_amx`).
NO_AMX := -mno-amx-tile -mno-amx-int8 -mno-amx-bf16
KNOWS_AMX := $(shell echo | $${CXX:-c++} $(NO_AMX) -x c++ -E - > /dev/null 2>&1 && echo yes)
$(VENV)/.installed: export CFLAGS += $(if $(KNOWS_AMX),$(NO_AMX))
$(VENV)/.installed: export CXXFLAGS += $(if $(KNOWS_AMX),$(NO_AMX))
LOCKED ?= 1
PIP_LOCKED := -m pip install -qq --no-deps --require-hashes --no-build-isolation

$(VENV)/.installed: pyproject.toml constraints.txt constraints-build.txt setup.py $(wildcard src/edgepack/kernels/*.[ch] src/edgepack/kernels/build.py)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time llama-cpp-python is compiled (about 8 minutes on two cores) ..."
ifeq ($(LOCKED),1)
	$(BIN)/python $(PIP_LOCKED) -r constraints-build.txt
	$(BIN)/python $(PIP_LOCKED) -r constraints.txt \
	  || $(BIN)/python $(PIP_LOCKED) -r constraints.txt --extra-index-url $(TORCH_CPU_INDEX)
	$(BIN)/python -m pip install -qq --no-deps --no-build-isolation -e .
else
	mkdir -p build && sed -n 's/^\([A-Za-z0-9._-]*==[^ +;\\]*\).*/\1/p' constraints.txt > build/versions.txt
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -qq --no-deps torch -c build/versions.txt \
	  --extra-index-url $(TORCH_CPU_INDEX)
	$(BIN)/python -m pip install -qq -c build/versions.txt -e ".[compress,train,cluster,calibrate,clients,sigstore,dev]"
endif
	touch $@

# Resolves the dependencies anew, keeping what is installed here; needs uv (pip install uv).
lock: $(VENV)/.installed
	$(BIN)/python tools/lock.py $(if $(UPGRADE),--upgrade)

# What the installed edgepack consists of, as CycloneDX: dist/edgepack-VERSION.cdx.json.
sbom: $(VENV)/.installed
	$(BIN)/python tools/sbom.py

# Hours of fuzzing, new examples each time; SECONDS for each target.
fuzz: $(VENV)/.installed
	$(BIN)/python tools/fuzz.py --seconds $(or $(SECONDS),3600)

# Everything that attacks edgepack, with counts, worst time and memory; SECURITY.md has its table.
attack: $(VENV)/.installed
	$(BIN)/python tools/attack.py

# Kernels with the address and undefined-behaviour sanitisers, in a build of their own, under everything that hands
# them hostile bytes. Clones for instruction sets are left out: their resolvers run before the sanitiser does.
ASAN_BUILD := build/asan
ASAN_FLAGS := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -DEDGEPACK_NO_CLONES
ASAN_TESTS ?= tests/packaging/test_grid_coder.py tests/packaging/test_planes.py tests/packaging/test_bombs.py \
  tests/packaging/test_mutations.py tests/packaging/test_hostile_archives.py tests/packaging/test_golden.py tests/kernels \
  tests/quant/refine/test_search.py tests/quant/codecs/test_vptq.py

test-asan: $(VENV)/.installed
	EDGEPACK_KERNELS_LEVEL=-O0 CFLAGS="$(ASAN_FLAGS)" LDFLAGS="-fsanitize=address,undefined" \
	  $(BIN)/python setup.py -q build_ext --build-lib $(ASAN_BUILD)/lib --build-temp $(ASAN_BUILD)/objects
	EDGEPACK_ASAN_BUILD=$(CURDIR)/$(ASAN_BUILD)/lib PYTHONPATH=tools ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p asan_kernels -p no:cacheprovider $(wildcard $(ASAN_TESTS)) $(PYTEST_ARGS)

wheel: $(VENV)/.installed
	$(BIN)/python -m pip wheel -q --no-deps -w dist .

clean:
	rm -rf build dist demo .mypy_cache .ruff_cache .pytest_cache
