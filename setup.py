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
        "packaging",
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
        "eval": ["lm-eval>=0.4.9", "wonderwords"],
        "dev": ["hypothesis", "mypy", "pytest", "pytest-xdist", "ruff"],
    },
    entry_points={
        "console_scripts": [
            "longrope2-factors = megatron_longrope2.tools.rescale_rope:main",
            "longrope2-import = megatron_longrope2.tools.convert_hf_to_megatron:main",
            "longrope2-export = megatron_longrope2.tools.convert_megatron_to_hf:main",
            "longrope2-verify = megatron_longrope2.tools.verify_checkpoint:main",
            "longrope2-preprocess = megatron_longrope2.tools.preprocess_data:main",
            "longrope2-needles = megatron_longrope2.tools.make_needles:main",
            "longrope2-search = megatron_longrope2.tools.search_factors:main",
            "longrope2-evaluate = megatron_longrope2.tools.evaluate:main",
            "longrope2-plan = megatron_longrope2.tools.plan:main",
            "longrope2-benchmark = megatron_longrope2.tools.benchmark:main",
        ]
    },
)
