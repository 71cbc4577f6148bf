.PHONY: install check test test-slow docs quickstart benchmark gpu

install:      ## the package with everything that its development needs
	python -m pip install -c .ci/constraints.txt -e ".[dev]"

check:        ## style and types
	ruff check .
	ruff format --check .
	mypy

test:         ## the default suite, offline
	python -m pytest -n 2 -m "not slow"

test-slow:    ## the tests that take longer
	python -m pytest -n 2 -m slow

docs:         ## guides and reference as HTML in build/docs; a warning is an error
	python -m sphinx -E -W --keep-going -n -q -b html docs build/docs

quickstart:   ## train a small network from random weights on the CPU
	python -m msctr_hf train --config quickstart

benchmark:    ## measure speed and memory as ratios, and compare them with their targets
	for name in loss sampling together projection data upsampling metric; do python scripts/benchmark.py $$name --check || exit 1; done

gpu:          ## everything that needs an NVIDIA GPU, with figures in results/gpu_NAME.json; under 8 minutes on one card
	status=0; \
	OMP_NUM_THREADS=2 python -m pytest -q -m gpu -n 6 tests/gpu --ignore tests/gpu/test_gpu_speed.py || status=1; \
	python -m pytest -q -m gpu tests/gpu/test_gpu_speed.py || status=1; \
	python scripts/gpu_report.py; exit $$status
