# make demo     build, import some files, find them, serve them until Ctrl-C; VIEWER=ohif with a viewer (needs npm);
#               DEMO=check asks the server a few questions instead of waiting, and ends
# make test     lint, types, tests; needs Python, gcc, make and the package index
# make peers    the tests against DCMTK, Orthanc, dicom3tools, Chromium with OHIF, and schemathesis;
#               HILUM_SCHEMATHESIS=10000 sends that many requests
# make fuzz     mutated files against a sanitizer build; SECONDS=60
# make bench    measure, and write benchmarks/RESULTS.md
# make clean    remove all that the others made, but no store that is yours
#
# All of it happens in .venv, made with PYTHON: the first that is 3.11 or newer and can build extensions.

SHELL = /bin/sh
SECONDS = 60
PYTEST_ARGS =
VIEWER =
# Nobody is there to end it.
DEMO = $(if $(CI),check)

CAN_BUILD = import ensurepip, os, sys, sysconfig, venv; \
	sys.exit(sys.version_info < (3, 11) or not os.path.exists(sysconfig.get_path("include") + "/Python.h"))
PYTHON = $(shell for python in python3 python3.11 python3.12 python3.13 python3.14 /usr/bin/python3; do \
	"$$python" -c '$(CAN_BUILD)' 2>/dev/null && { echo "$$python"; break; }; done)

BIN = .venv/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet install
SOURCES = setup.py pyproject.toml $(wildcard src/*.pyx src/*.pxi)

# Debian's packages, and a program of each by which it is known.
PEERS = dcmtk orthanc orthanc-dicomweb dicom3tools chromium npm
PEER_PROGRAMS = dcmdump Orthanc dcdump chromium npm

.PHONY: demo test peers fuzz bench clean
.DELETE_ON_ERROR:

demo: .venv/built
	@rm -rf demo-store
	@samples=$$($(BIN)/python -c '$(SAMPLES)') && { \
	echo '$$ hilum import' "$$samples" && \
	$(BIN)/hilum import "$$samples" --store demo-store; \
	test $$? -le 1; } # 1: some of the samples are broken on purpose
	@echo && echo '$$ hilum find studies'
	@$(BIN)/hilum find studies --store demo-store
	@echo && echo '$$ hilum stats'
	@$(BIN)/hilum stats --store demo-store
	@$(BIN)/python tools/demo.py demo-store $(if $(VIEWER),--viewer $(VIEWER)) $(if $(filter check,$(DEMO)),--check)

# Found, not imported: importing pydicom takes half a second, and its own helper goes to the network.
SAMPLES = import importlib.util, os; \
	print(os.path.join(os.path.dirname(importlib.util.find_spec("pydicom").origin), "data", "test_files"))

test: .venv/tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not peers" --ignore tests/peers -n 2 --dist loadfile $(PYTEST_ARGS)

peers: .venv/peers
	@missing=; for program in $(PEER_PROGRAMS); do \
		PATH="$$PATH:/usr/sbin" command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	ls /usr/share/orthanc/plugins/*DicomWeb* >/dev/null 2>&1 || missing="$$missing orthanc-dicomweb"; \
	if [ -z "$$missing" ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get -qq update && \
		DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $(PEERS) >/dev/null; \
	else \
		echo "Not here:$$missing. As root, on Debian: apt-get install --no-install-recommends $(PEERS)"; \
		echo "The tests that need them are skipped."; \
	fi
	$(BIN)/python -m pytest -q -m peers -rs tests/peers $(PYTEST_ARGS)

fuzz: .venv/tools
	tests/fuzz/run.sh $(SECONDS)

bench: .venv/tools
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf .venv build dist demo-store src/*.egg-info src/*.c src/*.html src/hilum/*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find src tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, in four steps; each is done again when what it is made of has changed.

.venv/made:
	@if [ -z "$(PYTHON)" ]; then \
		echo "No python3 of 3.11 or newer with venv and its headers (Debian: python3-venv, python3-dev)."; \
		exit 1; \
	fi
	rm -rf .venv
	$(PYTHON) -m venv .venv
	@touch $@

.venv/built: .venv/made $(SOURCES)
	$(PIP) --editable .
	@touch $@

.venv/tools: .venv/built
	$(BIN)/python -c '$(EXTRA)' test | $(PIP) --requirement /dev/stdin
	@touch $@

.venv/peers: .venv/tools
	$(BIN)/python -c '$(EXTRA)' peers | $(PIP) --requirement /dev/stdin
	@touch $@

# What pip installs for ".[test]" without building the project a second time.
EXTRA = import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*project["optional-dependencies"].get(sys.argv[1], ()), sep="\n")
