"""The benchmark: `./run bench`, or `.venv/bin/python -m tests.bench`. docs/BENCHMARKS.md says what it measures.

Never collected by pytest. Its data and whatever it starts live outside the checkout.
"""
