"""The package, its extras and its console commands."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (ROOT / "megatron_longrope2/__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

# Transformer Engine and Apex belong to a CUDA machine. Transformer Engine is the `gpu` extra; NVIDIA's Apex
# has no release on the package index (the `apex` there is an unrelated project), so it is never listed here:
# the README says where it comes from.
setup(
    name="megatron-longrope2",
    version=VERSION,
    description="LongRoPE2 context window extension on Megatron-Core",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.12",
    packages=[*find_packages(include=["megatron_longrope2*"]), "megatron_longrope2.tools"],
    # The thin command lines live in tools/; installed, they are megatron_longrope2.tools.
    package_dir={"megatron_longrope2.tools": "tools"},
    package_data={"megatron_longrope2": ["py.typed", "data/mixes/*.yaml", "rope/published/*.json"]},
    install_requires=[
        "megatron-core[training]==0.19.*",
        "torch>=2.11",
        "numpy",
        "scipy",
        "packaging",
        "cyclopts>=5",
        "tabulate",
        "pydantic>=2.11",
        "safetensors",
        "transformers>=5",
        "tokenizers",
        "sentencepiece",
        "tiktoken",
        "matplotlib",
        "tensorboard",
        "tqdm",
        "pyyaml",
        "pyarrow",
    ],
    extras_require={
        "gpu": ["transformer-engine[pytorch]>=2.10"],
        "eval": ["lm-eval>=0.4.13", "wonderwords", "nltk"],
        "dev": ["hypothesis", "mypy", "pytest", "pytest-xdist", "ruff"],
    },
    entry_points={"console_scripts": ["longrope2 = megatron_longrope2.cli:run_main"]},
)
