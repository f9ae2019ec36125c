# make train   set up .venv for this machine and train copy at 4,096 noise tokens
# make test    run the test suite
# make soak    run the tests that take minutes to hours
# make report  run the benchmarks of a report on this machine, in a quarter of an hour; make report FLAGS=--quick
# make lint    lint, format and type-check, with automatic fixes
# make check   the same without changing files
# make docs    build the API reference in build/api
# BACKEND=metal|cpu|cuda13 overrides the choice of the MLX backend, PYTHON=... the interpreter (3.11 or newer)

PYTHON ?= python3
BACKEND ?= $(shell if [ "$$(uname -s)" = Darwin ]; then echo metal; \
             elif command -v nvidia-smi >/dev/null 2>&1; then echo cuda13; else echo cpu; fi)
RUN := .venv/bin/python
READY := .venv/ready-$(BACKEND)

.PHONY: train report test soak check lint docs setup

# a Linux CPU needs OpenBLAS; as long as it is missing, each call tries to fetch it
setup: $(READY)
	@test $(BACKEND) != cpu || scripts/fetch_openblas.sh .venv

# one backend per environment, because backends share a file; another one needs a new .venv
$(READY): pyproject.toml
	@echo "setting up .venv with MLX for $(BACKEND) (to change it: make BACKEND=metal|cpu|cuda13)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; choose a newer one with make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -m venv --clear .venv
	@$(RUN) -m pip install -q --disable-pip-version-check -e ".[$(BACKEND),data,plot,scaling,export,tokenizers,dev]"
	@touch $@

# resumes a training that was stopped
train: setup
	@echo "training copy at 4,096 noise tokens: about 4 minutes on 2 CPU cores with OpenBLAS"
	@$(RUN) -m mlx_rtx.train copy --noise 4096 $$(test ! -e runs/copy/config.json || echo --resume)
	@echo "next, after source .venv/bin/activate:"
	@echo "  python -m mlx_rtx.evaluate runs/copy --samples 1000"
	@echo "  python -m mlx_rtx.train copy --help"

report: setup
	@$(RUN) benchmarks/report.py $(FLAGS)

# loadfile: tests of a file share fixtures, so they run in one process
test: setup
	@$(RUN) -m pytest -n 2 --dist loadfile

soak: setup
	@$(RUN) -m pytest -m soak

check: $(READY)
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

# from the docstrings; a package's public names, or else its modules
API := mlx_rtx $(patsubst mlx_rtx/%/__init__.py,mlx_rtx.%,$(wildcard mlx_rtx/*/__init__.py)) \
  !mlx_rtx.interchange.model_files
docs: $(READY)
	$(RUN) -W error -m pdoc $(API) --docformat google --output-directory build/api

lint: $(READY)
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format
	$(RUN) -m mypy
