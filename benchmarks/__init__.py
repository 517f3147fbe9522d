"""What things cost, beside what a user would otherwise pick: ``python -m benchmarks --list``.

Each module of a benchmark has one function, ``run(setting)``, and returns groups of rows
(`companion.pages.benchmark_records`). All of them measure by `benchmarks.alternate`.
"""
