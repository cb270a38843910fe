"""The list of packages, which pyproject.toml cannot say: conf/ stands at the top here and inside the package there."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["lightning_apps*", "datamodules*", "models*"]),
        "lightning_apps.conf",
        "hydra_plugins",  # a namespace that other packages share: no __init__.py
    ],
    package_dir={"lightning_apps.conf": "conf"},
    package_data={"lightning_apps.conf": ["**/*.yaml"], "lightning_apps.reports": ["templates/*"]},
)
