"""The words of the model card."""

TEMPLATE = """\
# {name}

{summary}

## Numbers

On {samples} test samples, used once, after everything was chosen on the validation split:

{table}

{explained}Latency is that of one sample through onnxruntime on one thread of `{cpu}`.
{faster}{gain}
## What it is

- Data: `{data}` ({data_digest}), {data_source}. Samples: {counts}. Classes: {classes}.
{teachers}- Student: `{student}`.
- Licences of the data and of weights that were given are not known here: ask where they come from.
- Input: {input}. Output: {output}, (batch, {count}).
- Spec `{spec_digest}`, seed {seed}. `model.json` says the rest, `result.json` holds every number.

## How to run it

Each block runs in this folder, and needs only what it imports.

ONNX, any batch size, normalisation inside:

```python
import numpy
import onnxruntime

{samples_code}
session = onnxruntime.InferenceSession("student.onnx")
logits = session.run(["logits"], {{"input": samples}})[0]
print({shown})
```
{int8}{raw}
torch.export, any batch size, normalisation inside:

```python
import numpy
import torch

{samples_code}
student = torch.export.load("student.pt2").module()
with torch.no_grad():
    logits = student(torch.from_numpy(samples)).numpy()
print({shown})
```
{original}{bare}"""

INT8 = """
`student-int8.onnx`, of 8-bit whole numbers ({method}), is run in the same way.
"""
LEFT_OUT = """
There is no `{name}`: {reason}.
"""
RAW = """
ONNX, for a picture of any size: resized as in training and normalised inside, with the names of the classes.

```python
import json

import numpy
import onnxruntime
from PIL import Image, ImageOps

made_up = numpy.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype="uint8")
Image.fromarray(made_up).save("picture.png")  # or one of your own

with Image.open("picture.png") as opened:
    picture = ImageOps.exif_transpose(opened).convert("{mode}")
pixels = numpy.asarray(picture).reshape(1, picture.height, picture.width, {channels})
session = onnxruntime.InferenceSession("student-raw.onnx")
logits = session.run(["logits"], {{"pixels": pixels}})[0]
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
print({shown})
```
"""
ORIGINAL = """
The bare weights, in {module}, which defines the network:

```python
import json

import numpy
import torch
import {module}
from safetensors.torch import load_file

student = {expression}
student.load_state_dict(load_file("student.safetensors"))
student.eval()
{channel}
{samples_code}
inputs = torch.from_numpy(samples)
with torch.no_grad():
    logits = student((inputs - channel["mean"]) / channel["std"]).numpy()
print({shown})
```
"""
BARE = """
The bare weights, in plain torch:

```python
import json

import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

weights = load_file("student.safetensors")
{channel}

{code}


{samples_code}
logits = student(torch.from_numpy(samples)).numpy()
print({shown})
```
"""
CHANNEL = """\
with open("model.json") as file:
    preprocessing = json.load(file)["preprocessing"]
channel = {{name: torch.tensor(preprocessing[name]).view({view}) for name in ("mean", "std")}}

"""

OUTPUTS = {
    "classification": "logits",
    "multi_label": "logits, one for each class that may be there",
    "regression": "the targets",
    "embedding": "an embedding, to be compared by cosine",
}
SHOWN = {
    "classification": "logits.argmax(1)",
    "multi_label": "logits > 0",
    "regression": "logits",
    "embedding": "logits / numpy.linalg.norm(logits, axis=1, keepdims=True)",
}
