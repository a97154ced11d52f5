# Eight verbs; `.ci/run` calls the same tools.
.PHONY: setup fmt lint types test cover demo ci

setup:
	uv sync

fmt:
	uv run ruff format
	uv run ruff check --fix

lint:
	uv run ruff format --check
	uv run ruff check
	uv run lint-imports

types:
	uv run mypy

test:
	uv run pytest

cover:
	uv run pytest --cov --cov-report=term-missing

demo:
	uv run nexus demo

ci:
	.ci/run
