# Two commands do everything on a fresh machine with Python 3.11 or newer: `make reproduce` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
# Three test processes with a thread each, for two cores: the browser's wait half of the time. (Threads that wait for a
# busy core make small tensors many times slower.) The lessons and the browser come first: they are long, and what is
# short fills the gaps at the end.
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: help setup reproduce test lab notebooks site gallery diagrams benchmark gpu clean

help:
	@echo "make reproduce   execute every lesson headless and write a report of the paper's claims"
	@echo "make lab         open JupyterLab"
	@echo "make test        ruff, mypy, pytest (with a real browser where there is one) and nbval"
	@echo "make notebooks   execute the lessons in place, to commit them with fresh outputs"
	@echo "make site        write the lessons as pages that need no kernel and no network, in build/site"
	@echo "make gallery     extract the paper's figures from the executed lessons into docs/figures"
	@echo "make diagrams    draw the diagrams of the lessons in notebooks/diagrams"
	@echo "make benchmark   speed as ratios in one run"
	@echo "make gpu         tests, episodes and the quick profile on a GPU, as a table: benchmarks/gpu.md"
	@echo "make clean       remove the environment and what was built"

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

reproduce: setup
	$(BIN)/l2l reproduce --profile quick

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(ONE_THREAD) $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --nbval --nbval-current-env --nbval-cell-timeout 300 \
		--nbval-sanitize-with tests/nbval_sanitize.cfg notebooks tests

# .jupyter turns off the pop-up that asks about Jupyter's news.
lab: setup
	JUPYTER_CONFIG_PATH=$(CURDIR)/.jupyter $(BIN)/jupyter lab notebooks/00_start_here.ipynb

notebooks: setup
	TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False \
		--ExecutePreprocessor.store_widget_state=False notebooks/[0-9]*.ipynb

# REPOSITORY=https://github.com/owner/name adds links that open a lesson on Binder or Colab.
site: setup
	$(BIN)/l2l site $(if $(REPOSITORY),--repository $(REPOSITORY))

gallery: setup
	$(BIN)/python docs/figures/make.py

diagrams: setup
	$(BIN)/python notebooks/diagrams/draw.py

benchmark: setup
	$(BIN)/python benchmarks/episode.py quadratics
	$(BIN)/python benchmarks/episode.py mnist
	$(BIN)/python benchmarks/episode.py mnist --memory
	$(BIN)/python benchmarks/episode.py cifar
	$(BIN)/python benchmarks/episode.py cifar --memory --unroll 20
	$(BIN)/python benchmarks/episode.py cifar --memory --unroll 100
	$(ONE_THREAD) $(BIN)/python benchmarks/curves.py quadratics
	$(ONE_THREAD) $(BIN)/python benchmarks/processes.py

gpu: setup
	$(BIN)/python benchmarks/gpu.py

clean:
	rm -rf .venv build
