"""A calibration as one machine measured it, so that what is estimated from it is the same everywhere."""

from kdcore.machine_speed import MachineSpeed, Rate

RATES = [
    ("linear", 16384, 4.68e-10),
    ("linear", 262144, 4.24e-11),
    ("linear", 4.1943e06, 2.79e-11),
    ("linear", 1.67772e07, 6.16e-11),
    ("linear", 6.71089e07, 2.1e-10),
    ("product", 16, 1.81e-11),
    ("product", 64, 5.47e-12),
    ("product", 256, 4.44e-12),
    ("product", 768, 4.33e-12),
    ("convolution", 4, 3.74e-11),
    ("convolution", 16, 7.21e-12),
    ("convolution", 64, 4.25e-12),
    ("convolution", 256, 4.68e-12),
    ("depthwise", 16, 1.88e-11),
    ("depthwise", 128, 1.47e-11),
    ("recurrent", 6144, 6.3e-11),
    ("recurrent", 98304, 1.47e-11),
    ("recurrent", 1.57286e06, 1.28e-11),
    ("recurrent", 1.41558e07, 6.66e-11),
]
SPEED = MachineSpeed(
    cpu="a processor",
    onnxruntime="1.0",
    call=3.81e-06,
    node=1.32e-07,
    byte=6.2e-11,
    rates=[Rate(kind=kind, size=float(size), seconds=seconds) for kind, size, seconds in RATES],
)
