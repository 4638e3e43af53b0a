"""What goes into a wheel: the package, and conf/ as hvlm/conf/, where hvlm/config/compose.py looks first.

Everything else stands in pyproject.toml, which cannot say both "find the packages" and "this folder is one of them".
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["hvlm", "hvlm.*"]), "hvlm.conf"],
    package_dir={"hvlm.conf": "conf"},
    package_data={"hvlm": ["py.typed"], "hvlm.conf": ["*.yaml", "*/*.yaml"]},
)
