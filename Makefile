# The checks of this project, each under one name. CI calls the same names.
.PHONY: check test slow docs build spell

check: ## style and types
	ruff check .
	ruff format --check .
	mypy

test: ## what takes minutes
	pytest -n 2

slow: ## what takes longer
	pytest -m slow

docs: ## the site, with warnings as errors
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

build: ## wheel and sdist
	python -m build

spell: ## typing errors
	codespell
