# Two commands do everything on a fresh machine: make quickstart, make test.
PYTHON ?= python3
BIN := .venv/bin
# The build that development and tests are pinned to; the package accepts what Colab and Kaggle hold.
TORCH := torch==2.13.0

.PHONY: env quickstart test test-slow test-real gpu gpu-older lint notebooks pretrain bench clean

env: .venv/.ready  ## the environment alone

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[notebooks,test]"
	touch $@

quickstart: env  ## the main job: a QLoRA run from a raw file to evidence, offline
	$(BIN)/lorakit run notebooks/quickstart.ipynb
	$(BIN)/lorakit report outputs/quickstart
	@$(BIN)/python -c "import lorakit; print('status:', lorakit.Folder('outputs/quickstart').record['status'])"

test: env  ## the whole suite but what is marked slow
	$(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses 2 --dist loadfile

test-slow: env  ## what takes minutes: twenty kills, the notebooks at full size
	$(BIN)/python -m pytest -m slow --timeout 3000

test-real: env  ## the tests on real data; fails when the folder is missing
	LORAKIT_REQUIRE_REAL=1 $(BIN)/python -m pytest -m real

gpu: env  ## on a machine with a CUDA card: what only that can show, offline, in one table
	$(BIN)/python -m pytest -m gpu -s tests/test_gpu.py

gpu-older: .venv-older/.ready  ## the same with a torch and a transformers a little older
	.venv-older/bin/python -m pytest -m gpu -s tests/test_gpu.py

.venv-older/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-older
	.venv-older/bin/python -m pip install --quiet --disable-pip-version-check torch==2.11.0 transformers==5.17.0
	.venv-older/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[notebooks,test]"
	touch $@

lint: env
	$(BIN)/ruff check
	$(BIN)/nbstripout --verify notebooks/*.ipynb

notebooks: env  ## every notebook, at the parameters it is read with
	for n in notebooks/*.ipynb; do $(BIN)/lorakit run $$n || exit 1; done

pretrain: env  ## the embedded base from scratch, as shipped (minutes are in the README)
	$(BIN)/lorakit run notebooks/pretrain_tiny.ipynb -p install true

bench: env  ## one curve in many layouts, and the speed of each
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	$(BIN)/python bench/layouts.py

clean:
	rm -rf .venv .venv-older outputs
