# make demo: the main job.  make test: everything that is checked.  make lab: the notebooks.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
export HF_HUB_DISABLE_TELEMETRY ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo real real-seeds test old-cpu test-colab versions newest licences lab app site \
  adapters summaries selection parting ablation bench wheel clean

help:
	@grep '^# make' Makefile

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info < (3, 14); \
	  ok or sys.exit("Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] \
	  + "; run make with PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $(STAMP)

demo: export HF_HUB_OFFLINE = 1
demo: $(STAMP)
	@$(BIN)/secalign-kit demo

# make real: the main job on a real model (half an hour on two cores, after a download of 93 MB)
real: export HF_HUB_OFFLINE = 1
real: $(STAMP)
	@$(BIN)/python -c 'import gguf' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[gguf]'
	@$(BIN)/secalign-kit real $(REAL)

# make real-seeds: the same with three seeds and all held-out tasks, for the tables of docs/real.md
# (an hour for each seed on two cores)
real-seeds: export HF_HUB_OFFLINE = 1
real-seeds: $(STAMP)
	for seed in 0 1 2; do \
	  $(BIN)/secalign-kit real --n 378 --seed $$seed --output runs/seeds/$$seed || exit 1; \
	  mkdir -p data/real && cp runs/seeds/$$seed/summary.json data/real/summary_$$seed.json; \
	done

# a process for each core, four at most, with a thread each; what was skipped is said
# (nproc would obey OMP_NUM_THREADS)
CORES = $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
PARALLEL = -n $(CORES) --maxprocesses 4 --dist worksteal -rs
test versions newest: export OMP_NUM_THREADS = 1
test versions newest: export HF_HUB_OFFLINE = 1
test: $(STAMP)
	$(BIN)/ruff check .
	rm -rf build/notebooks && mkdir -p build && cp -r notebooks build/notebooks
	$(BIN)/python -m pytest -q $(PARALLEL) --nbmake --overwrite --nbmake-timeout=600 \
	  build/notebooks tests
	$(BIN)/python notebooks/refresh.py --compare build/notebooks

# make old-cpu: all tests, or TESTS=tests/test_x.py, on one core (Linux) and as on a CPU that does not
# multiply in bf16
old-cpu: export HF_HUB_OFFLINE = 1
old-cpu: export ONEDNN_MAX_CPU_ISA = AVX512_CORE
old-cpu: $(STAMP)
	taskset -c 0 $(BIN)/python -m pytest -q $(TESTS)

# make test-colab: the notebooks with Colab's versions, in an environment of its own
# (trl asks for newer datasets than Colab has; pip remarks on it, and it works)
COLAB := datasets==4.0.0 transformers==5.15.0 peft==0.20.0 accelerate==1.14.0
test-colab: export HF_HUB_OFFLINE = 1
test-colab: $(STAMP)
	$(PYTHON) -m venv .venv-colab
	.venv-colab/bin/python -m pip install --quiet --disable-pip-version-check \
	  ipywidgets==7.7.1 ipython==7.34.0 ipykernel setuptools
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $$(.venv-colab/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/kit.pth
	.venv-colab/bin/python -m pip install --quiet --disable-pip-version-check $(COLAB)
	rm -rf build/colab && mkdir -p build && cp -r notebooks build/colab
	PYTHONPATH=$(CURDIR) .venv-colab/bin/python -c \
	  'import IPython, ipywidgets, datasets; print(IPython.__version__, ipywidgets.__version__, \
	  datasets.__version__)'
	PYTHONPATH=$(CURDIR) .venv-colab/bin/python -m pytest -q -p no:cacheprovider --nbmake \
	  --nbmake-timeout=600 build/colab
	PYTHONPATH=$(CURDIR) .venv-colab/bin/python -m pytest -q tests/test_widgets.py

# make versions: a part of the tests with each Python of 3.12 and 3.13 that is here
QUICK := $(addprefix tests/test_,frontend.py pairs.py prompts.py samples.py preference.py \
  evaluation.py cli.py reliability.py training.py)
NOT_QUICK := megabyte or killed or trls or memory_change or without_a_network
VERSIONS ?= build
versions:
	@for version in 3.12 3.13; do \
	  found=; \
	  for python in python$$version "$$HOME"/.pyenv/versions/$$version.*/bin/python; do \
	    "$$python" -c '' 2>/dev/null && found=$$python && break; \
	  done; \
	  [ -n "$$found" ] || { echo "Python $$version is not here: skipped"; continue; }; \
	  place=$(VERSIONS)/python$$version && "$$found" -m venv $$place && \
	  $$place/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	    -e '.[test]' && \
	  $$place/bin/python -m pytest -q $(PARALLEL) -p no:cacheprovider \
	    -k "not ($(NOT_QUICK))" $(QUICK) || exit 1; \
	done

# make newest: all tests with the newest versions that pyproject.toml admits (in build/newest)
newest:
	$(PYTHON) -m venv build/newest
	build/newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
	  --upgrade-strategy eager -e '.[test]'
	build/newest/bin/python -m pip freeze --exclude-editable > build/newest/versions.txt
	build/newest/bin/python -m pytest -q $(PARALLEL) -p no:cacheprovider

# make licences: docs/licences.md, of all that .venv holds
licences: $(STAMP)
	$(BIN)/python docs/licences.py > build/licences.md && mv build/licences.md docs/licences.md

# a default setting beside the notebooks shows the start page rendered; the user's own settings win
lab: export JUPYTER_CONFIG_PATH := \
  $(CURDIR)/notebooks/.jupyter$(if $(JUPYTER_CONFIG_PATH),:$(JUPYTER_CONFIG_PATH))
lab: $(STAMP)
	$(BIN)/jupyter lab --notebook-dir=notebooks --LabApp.default_url=/lab/tree/README.md

# make app: the explorer without its code, in a browser
app: $(STAMP)
	$(BIN)/voila notebooks/09_explorer.ipynb

# make site: the course as pages that need no kernel, in build/site
site: $(STAMP)
	$(BIN)/python notebooks/pages.py build/site

# make adapters: the shipped adapters of the embedded model, made anew (an hour on two cores)
adapters: $(STAMP)
	$(BIN)/secalign-kit adapters

# make summaries: the demo with three seeds, for the tables of the documents (half an hour)
summaries: $(STAMP)
	for seed in 0 1 2; do \
	  $(BIN)/secalign-kit demo --n 300 --set seed=$$seed --output runs/summaries/$$seed || exit 1; \
	  mkdir -p data/demo && cp runs/summaries/$$seed/summary.json data/demo/summary_$$seed.json; \
	done

# make selection: the recipes that were tried on the validation split (half an hour)
selection: $(STAMP)
	$(BIN)/python -m secalign_kit.studies.selection

# make parting: the two pictures of the README, from a short training (two minutes)
parting: $(STAMP)
	$(BIN)/python -m secalign_kit.studies.parting

# make ablation: the attacker in the training loop, one setting varied at a time (an hour)
ablation: export HF_HUB_OFFLINE = 1
ablation: $(STAMP)
	$(BIN)/python -m secalign_kit.studies.ablation

# make bench: the tables of docs/performance.md, into runs/bench (an hour and a half)
bench: $(STAMP)
	$(BIN)/python -m benchmarks startup pretraining scoring asr dpo memory growth loop pairs

wheel: $(STAMP)
	$(BIN)/python -m pip wheel --quiet --no-deps -w dist .

clean:
	rm -rf .venv .venv-colab build dist runs *.egg-info
