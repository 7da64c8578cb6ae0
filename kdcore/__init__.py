"""Knowledge distillation in plain PyTorch: a spec, its plan, its training and the files it leaves.

Importing this package loads nothing heavy; import what you need: `from kdcore.losses.kd import kd`.
"""

__version__ = "0.1.0"
