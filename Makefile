# `make run` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NOTEBOOKS := $(sort $(wildcard notebooks/[0-9]*.ipynb))

# Two torch threads on two busy cores can be far slower than one, and results don't depend on it.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1

.PHONY: run test test-ui notebooks figures studies table course book lint bench data clean

run: $(STAMP)  ## every notebook on the bundled data; executed copies, HTML and figures in runs/
	$(BIN)/python -m vilamp_lite reproduce

test: $(STAMP)  ## every test, then the stored outputs of every notebook
	$(BIN)/python -m pytest -n auto --dist loadfile
	VILAMP_HEADLESS=1 $(BIN)/python -m pytest --nbval --nbval-current-env --nbval-cell-timeout=300 $(NOTEBOOKS)

test-ui: book  ## every notebook in JupyterLab and every page of the book, in headless Chromium
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[ui]"
	{ command -v chromium && command -v chromedriver; } > /dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		apt-get install -y -qq chromium chromium-driver; } || { \
		echo "No Chromium: run 'sudo apt install chromium chromium-driver' and try again."; exit 1; }
	$(BIN)/python -m pytest tests_ui

notebooks: $(STAMP)  ## run the notebooks in place and store their outputs
	VILAMP_HEADLESS=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=300 \
		--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.store_widget_state=False $(NOTEBOOKS)

figures: $(STAMP)  ## make the committed figures/ again
	$(BIN)/vilamp keyframes data/photo_tour.mp4 "a cup of coffee on a wooden table" --encoder conse --max-keyframes 8 \
		--strip figures/film_strip.png
	$(BIN)/python -m figures.make_figures

studies: $(STAMP)  ## the recorded full runs of notebooks 05, 07 and 08, in figures/results; goes on where it was stopped
	$(BIN)/python -m figures.make_results --processes 2
	$(BIN)/python -m figures.make_streaming
	$(BIN)/python -m figures.make_streaming --name streaming_100000 --frames 100000 --repeats 1 --folder runs/streaming_100000

table: $(STAMP)  ## the README's results against the paper, from the notebooks it quotes
	$(BIN)/python -m figures.make_table

course: $(STAMP)  ## the graded course: release version in runs/course, grading checked
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[course]"
	$(BIN)/python notebooks/assignments/make_course.py

book: $(STAMP)  ## the notebooks as stored, glossary, help and API reference as a site: runs/book/_build/html/index.html
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[book]"
	rm -rf runs/book book/modules
	$(BIN)/sphinx-apidoc -q --separate --no-toc --templatedir book/templates --output-dir book/modules vilamp_lite
	$(BIN)/jupyter-book build . --quiet --config book/_config.yml --toc book/_toc.yml --path-output runs/book

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(STAMP)  ## all benchmarks, then benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks

data: $(STAMP)  ## make data/photo_tour.mp4 again
	$(BIN)/python data/make_photo_tour.py

clean:
	rm -rf $(VENV) runs

# torch is named first so that its pin decides which build comes.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV) || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv && \
		$(PYTHON) -m venv $(VENV); } || { echo "No virtual environment: run 'sudo apt install python3-venv' and try again."; exit 1; }
	$(BIN)/pip install --quiet --constraint constraints.txt torch --editable ".[offline,dev]"
	touch $@
