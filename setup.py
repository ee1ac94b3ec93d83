"""What pyproject.toml cannot say: packages found by name plus one folder from elsewhere.

shaders/ lives at the top of the repository and is installed as tqlab/shaders.
"""

from setuptools import find_packages, setup

found = find_packages(include=["tqlab", "tqlab.*", "metalsim", "metalsim.*"])

setup(
    packages=[*found, "tqlab.shaders"],
    package_dir={"tqlab.shaders": "shaders"},
    package_data={
        "tqlab": ["texts/*.txt"],
        "tqlab.formats": ["*.npz"],
        "tqlab.shaders": ["**/*.metal", "**/*.h"],
        # Stub headers such as <metal_stdlib> have no extension, so everything goes in.
        "metalsim": ["**/*"],
    },
    exclude_package_data={"": ["__pycache__/*", "**/__pycache__/*", "*.pyc"]},
)
