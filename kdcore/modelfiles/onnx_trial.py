"""A program: loads an ONNX file, runs one sample of zeros, and says what its inputs and outputs are.

It runs in a process of its own with limits on memory, time and files, so that a file which asks for more ends this
process and no other. It imports nothing of this project.

    python -I onnx_trial.py <file> <shape of a sample, as JSON, or null> <bytes> <seconds>
"""

import json
import resource
import sys

REFUSED = 3
"""Exit status: onnxruntime, or this program, says on standard error what is wrong with the file."""
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


def limit(memory: int, seconds: int) -> None:
    """Of this process: what it may take, and that it may write nothing."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(path: str, shape: list[int] | None, memory: int, seconds: int) -> None:
    import numpy as np
    import onnxruntime

    limit(memory, seconds)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")
    with open(path, "rb") as file:
        session = onnxruntime.InferenceSession(file.read(), options, providers=["CPUExecutionProvider"])
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1:
        raise ValueError(f"it has {len(inputs)} inputs, a teacher has one")
    (read,) = inputs
    if read.type not in DTYPES:
        raise ValueError(f"its input {read.name!r} is a {read.type}; export it with a float32 input")
    own = read.shape[1:]
    sample = own if shape is None else shape
    if not read.shape or not all(isinstance(each, int) and each > 0 for each in sample):
        raise ValueError(f"its input has the shape {read.shape}; say `input_shape`, of one sample")
    if len(sample) != len(own) or any(isinstance(a, int) and a != b for a, b in zip(own, sample, strict=True)):
        raise ValueError(f"its input has the shape {read.shape}, and `input_shape` is {sample}")
    batch = read.shape[0] if isinstance(read.shape[0], int) else 1
    answers = session.run(None, {read.name: np.zeros((batch, *sample), DTYPES[read.type])})
    print(json.dumps({"inputs": [_value(read)], "outputs": [
        {**_value(each), "found": list(np.shape(answer)), "finite": bool(np.isfinite(np.asarray(answer, float)).all())}
        for each, answer in zip(outputs, answers, strict=True)
    ]}))  # fmt: skip


def _value(value: object) -> dict[str, object]:
    return {"name": value.name, "dtype": value.type, "shape": list(value.shape)}  # type: ignore[attr-defined]


if __name__ == "__main__":
    try:
        main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    except Exception as error:
        print(str(error)[:500], file=sys.stderr)
        sys.exit(REFUSED)
