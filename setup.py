"""Packages and data of the wheel; the rest is in pyproject.toml, whose tables cannot say this."""

from setuptools import find_namespace_packages, find_packages, setup

# Folders of the repository's root that a wheel carries inside lit_align: lit_align/callbacks, lit_align/configs.
beside = ["callbacks", *find_namespace_packages(include=["configs*"])]

setup(
    packages=[*find_packages(include=["lit_align*"]), *(f"lit_align.{name}" for name in beside)],
    package_dir={f"lit_align.{name}": name.replace(".", "/") for name in beside},
    package_data={"": ["*.yaml", "*.json", "*.jsonl", "pages/*"]},
)
