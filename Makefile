# Each target sets up what it needs in .venv, and says what it does. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two times quiet: pip's warnings are left out, its errors are not.
INSTALL := $(BIN)/pip install -qq --constraint constraints.txt
NOTEBOOKS := $(sort $(wildcard notebooks/[0-9]*.ipynb))

# Two torch threads on two busy cores can be far slower than one, and results don't depend on it.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help run test test-ui course book lint fuzz notebooks table figures studies bench data links clean
.SILENT:

help:  ## list the targets
	sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

run: $(STAMP)  ## run every notebook; executed copies, HTML pages and figures go to runs/ (6 minutes)
	echo "running every notebook (6 minutes) …"
	$(BIN)/vilamp reproduce

test: $(STAMP)  ## run every test, then compare the stored outputs of every notebook (10 minutes)
	echo "running the tests (6 minutes) …"
	$(BIN)/python -m pytest --quiet -n auto --dist loadfile
	echo "running the notebooks, two at a time, to compare their outputs with the stored ones (4 minutes) …"
	VILAMP_HEADLESS=1 $(BIN)/python -m pytest --quiet --nbval --nbval-current-env --nbval-cell-timeout=300 \
		-n 2 --dist loadfile $(NOTEBOOKS)

test-ui: book  ## run every notebook in JupyterLab and visit every page of the book, in headless Chromium
	echo "installing what drives a browser …"
	$(INSTALL) --editable ".[ui]"
	{ command -v chromium && command -v chromedriver; } > /dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		apt-get install -y -qq chromium chromium-driver > /dev/null; } || { \
		echo "No Chromium: run 'sudo apt install chromium chromium-driver' and try again."; exit 1; }
	echo "testing notebooks and book in Chromium (15 minutes) …"
	$(BIN)/python -m pytest --quiet tests_ui

course: $(STAMP)  ## make the students' version of the course in runs/course, and check the grading (6 minutes)
	echo "installing nbgrader …"
	$(INSTALL) --editable ".[course]"
	echo "making and grading the course (6 minutes) …"
	$(BIN)/python notebooks/assignments/make_course.py

book: $(STAMP)  ## build the notebooks, the pages of book/ and the API reference as a site, in runs/book
	echo "installing jupyter-book …"
	$(INSTALL) --editable ".[book]"
	echo "building the book (2 minutes) …"
	rm -rf runs/book book/modules
	$(BIN)/sphinx-apidoc -q --separate --no-toc --templatedir book/templates --output-dir book/modules vilamp_lite
	$(BIN)/jupyter-book build . --quiet --config book/_config.yml --toc book/_toc.yml --path-output runs/book
	echo "Read runs/book/_build/html/index.html."

lint: $(STAMP)  ## check style and format
	echo "checking style and format …"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

N ?= 720
SEEDS ?= 0
fuzz: $(STAMP)  ## damage N small videos by seed and say what comes of them: make fuzz N=720 SEEDS="1 2" (a minute)
	echo "damaging $(N) videos for each of the seeds $(SEEDS); those that fail stay in runs/fuzz (a minute) …"
	PYTHONPATH=tests $(BIN)/python -m fuzz $(N) --seeds $(SEEDS)

notebooks: $(STAMP)  ## run the notebooks in place and store their outputs
	echo "running the notebooks in place …"
	VILAMP_HEADLESS=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=300 \
		--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.store_widget_state=False $(NOTEBOOKS)

table: $(STAMP)  ## run the quoted notebooks, and write the tables of README and book from their results
	echo "running the notebooks that the tables quote (4 minutes) …"
	$(BIN)/python -m figures.make_table

figures: $(STAMP)  ## draw the committed figures again
	echo "drawing the figures …"
	$(BIN)/vilamp keyframes data/photo_tour.mp4 "a cup of coffee on a wooden table" --encoder conse --max-keyframes 8 \
		--strip figures/film_strip.png --overwrite
	$(BIN)/python -m figures.make_figures

studies: $(STAMP)  ## record the full runs of notebooks 05, 07 and 08 in figures/results (90 minutes); a stopped run goes on
	echo "recording the studies (90 minutes) …"
	$(BIN)/python -m figures.make_results --processes 2
	$(BIN)/python -m figures.make_streaming
	$(BIN)/python -m figures.make_streaming --name streaming_100000 --frames 100000 --repeats 1 --folder runs/streaming_100000

bench: $(STAMP)  ## run all benchmarks and write benchmarks/RESULTS.md
	echo "running the benchmarks …"
	$(BIN)/python -m benchmarks

data: $(STAMP)  ## make data/photo_tour.mp4 again (2 minutes)
	echo "making data/photo_tour.mp4 (2 minutes) …"
	$(BIN)/python data/make_photo_tour.py

links:  ## write the repository's address into every page and notebook: make links REPO=owner/name
	echo "writing the address into pages and notebooks; the changed ones:"
	$(PYTHON) -m book.make_links "$$REPO"

clean:  ## remove .venv and runs/
	echo "removing $(VENV) and runs/ …"
	rm -rf $(VENV) runs

# torch is named first so that its pin decides which build comes.
$(STAMP): pyproject.toml constraints.txt
	echo "setting up $(VENV) (3 minutes) …"
	$(PYTHON) -m venv $(VENV) || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv > /dev/null && \
		$(PYTHON) -m venv $(VENV); } || { echo "No virtual environment: run 'sudo apt install python3-venv' and try again."; exit 1; }
	$(INSTALL) torch --editable ".[offline,dev]"
	touch $@
