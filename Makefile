# On a machine with Python >= 3.11 and make: `make demo` shows it, `make test` proves it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Towers must also load in the last release of transformers 4; it lives beside the environment, not in it.
COMPAT := .compat
# The Hub's JavaScript client, which asks the embedded Hub for other things than Python's; where there is node.
NPM_CLIENT := .npm-client
# So does Gradio, which the Space runs on: it asks for an older Pillow than the constraints have.
SPACE := .space
# open_clip, of which towers come: what it imports is built for one release of torch.
OPEN_CLIP := .open-clip
# What a published CLIP is used in: hfcart imports neither.
SENTENCES := .sentence-transformers
ONNX := .onnx

.PHONY: demo test browser quick lint docs pictures bench clean

demo: $(VENV)/.ready
	$(BIN)/hfcart demo

test: $(VENV)/.ready $(COMPAT)/.ready $(NPM_CLIENT)/.ready $(SPACE)/.ready $(OPEN_CLIP)/.ready \
		$(SENTENCES)/.ready $(ONNX)/.ready
	$(BIN)/python -m pytest --numprocesses 2

# What people look at is tested in a real browser: Debian's, where there is none (installing it takes root).
browser:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		(apt-get update -qq && apt-get install -y -qq chromium)

# What runs in seconds: rules, formats, records and cards, without a server or a process of its own.
quick: $(VENV)/.ready
	$(BIN)/python -m pytest --numprocesses 2 -m quick

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m hfcart.cli._reference --check

# The README's table of methods, and the reference of every option.
docs: $(VENV)/.ready
	$(BIN)/python -m hfcart.cli._reference

# The README's pictures and the notebook's outputs, of a demo.
pictures: demo browser
	$(BIN)/python tests/bench/pictures.py hfcart-demo .github
	$(BIN)/python tests/bench/notebook.py hfcart-demo

# In less than 20 minutes on two cores that nothing else uses. It writes RESULTS.md, which the README quotes.
bench: $(VENV)/.ready
	$(BIN)/python tests/bench

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(COMPAT)/.ready: tests/compat.txt $(VENV)/.ready
	rm -rf $(COMPAT)
	$(BIN)/python -m pip install --quiet --no-deps --target $(COMPAT) --requirement tests/compat.txt
	touch $@

$(NPM_CLIENT)/.ready: tests/npm/package.json tests/npm/package-lock.json
	rm -rf $(NPM_CLIENT)
	mkdir $(NPM_CLIENT)
	cp tests/npm/*.json $(NPM_CLIENT)
	if command -v npm; then npm ci --prefix $(NPM_CLIENT) --ignore-scripts --no-audit --no-fund --loglevel error; fi
	touch $@

$(SPACE)/.ready: tests/space.txt $(VENV)/.ready
	rm -rf $(SPACE)
	$(BIN)/python -m pip install --quiet --no-deps --target $(SPACE) --requirement tests/space.txt
	touch $@

$(OPEN_CLIP)/.ready: tests/open_clip.txt $(VENV)/.ready
	rm -rf $(OPEN_CLIP)
	$(BIN)/python -m pip install --quiet --no-deps --target $(OPEN_CLIP) --requirement tests/open_clip.txt
	touch $@

$(SENTENCES)/.ready: tests/sentence_transformers.txt $(VENV)/.ready
	rm -rf $(SENTENCES)
	$(BIN)/python -m pip install --quiet --no-deps --target $(SENTENCES) --requirement tests/sentence_transformers.txt
	touch $@

$(ONNX)/.ready: tests/onnx.txt $(VENV)/.ready
	rm -rf $(ONNX)
	$(BIN)/python -m pip install --quiet --no-deps --target $(ONNX) --requirement tests/onnx.txt
	touch $@

clean:
	rm -rf $(VENV) $(COMPAT) $(NPM_CLIENT) $(SPACE) $(OPEN_CLIP) $(SENTENCES) $(ONNX) hfcart-demo
