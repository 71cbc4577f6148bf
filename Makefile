.PHONY: install check test test-slow docs quickstart benchmark

install:      ## package with everything its development needs
	python -m pip install -c .ci/constraints.txt -e ".[dev]"

check:        ## style and types
	ruff check .
	ruff format --check .
	mypy

test:         ## the default suite, offline
	python -m pytest -n 2 -m "not slow"

test-slow:    ## what takes longer
	python -m pytest -n 2 -m slow

docs:         ## guides and reference as HTML in build/docs; a warning is an error
	python -m sphinx -E -W --keep-going -n -q -b html docs build/docs

quickstart:   ## the whole road once, on the CPU
	python -m msctr_hf train --config quickstart

benchmark:    ## ratios of speed and memory, against their targets
	for name in loss sampling together projection data upsampling metric; do python scripts/benchmark.py $$name --check || exit 1; done
