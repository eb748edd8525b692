"""The model card of a student: README.md of its folder."""

import dataclasses
import json
import re
from collections.abc import Sequence

from pcjax import __version__

STATIC, TRANSFORMER = "static", "bert"
PIPELINES = {
    "text": "sentence-similarity",
    "image": "image-feature-extraction",
    "example": "feature-extraction",
}
TITLES = {
    "safetensors": "pcjax",
    "stablehlo": "JAX",
    "onnx": "onnxruntime",
    "onnx-int8": "onnxruntime",
}
TEXTS = {
    "sentence-transformers": """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(FOLDER)
vectors = model.encode(["one text", "another text"])""",
    "model2vec": """\
from model2vec import StaticModel

model = StaticModel.from_pretrained(FOLDER)
vectors = model.encode(["one text", "another text"])""",
}
FILES = {
    ("safetensors", "text"): """\
import pcjax

student = pcjax.load("student.safetensors")
vectors = student.features(["one text", "another text"])""",
    ("safetensors", "example"): """\
import numpy as np
import pcjax

student = pcjax.load("student.safetensors")
batch = np.zeros(SHAPE, np.STORED)  # of any number of KINDs, as they were stored
vectors = student.features(batch)""",
    ("stablehlo", "text"): """\
import jax.export
import numpy as np

with open("student.stablehlo", "rb") as file:
    student = jax.export.deserialize(bytearray(file.read()))
ids = np.array([[2, 3, 1], [4, -1, -1]], np.int32)  # of the tokens of two texts, padded with -1
vectors = student.call(ids)["embedding"]""",
    ("stablehlo", "example"): """\
import jax.export
import numpy as np

with open("student.stablehlo", "rb") as file:
    student = jax.export.deserialize(bytearray(file.read()))
batch = np.zeros(SHAPE, np.STORED)  # of any number of KINDs, as they were stored
vectors = student.call(batch)["embedding"]""",
}
SESSIONS = {
    "onnx": 'session = onnxruntime.InferenceSession("model.onnx")',
    "onnx-int8": """\
options = onnxruntime.SessionOptions()
# The weights in eight bits are then converted once, not in every call.
options.add_session_config_entry("session.disable_quant_qdq", "1")
session = onnxruntime.InferenceSession("model.onnx", options)""",
}
ONNX = {
    "text": """\
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.enable_padding()
SESSION
encoded = tokenizer.encode_batch(["one text", "another text"])
inputs = {
    "input_ids": np.array([each.ids for each in encoded]),
    "attention_mask": np.array([each.attention_mask for each in encoded]),
}
(vectors,) = session.run(["sentence_embedding"], inputs)""",
    "image": """\
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

SESSION


def pixels(path):  # of 8 bits and opaque; pcjax lays transparency over white
    image = ImageOps.exif_transpose(Image.open(path)).convert("MODE")
    image = ImageOps.fit(image, SIZE, Image.Resampling.BICUBIC)
    # From 0 to 1, channels first; the file holds the normalisation.
    return np.asarray(image, np.float32).reshape(SHAPE).transpose(2, 0, 1) / 255


batch = np.stack([pixels("one.jpg"), pixels("another.jpg")])  # of any number of images
(vectors,) = session.run(["embedding"], {"pixel_values": batch})""",
    "example": """\
import numpy as np
import onnxruntime

SESSION
batch = np.zeros(SHAPE, np.float32)  # of any number of examples
(vectors,) = session.run(["embedding"], {"inputs": batch})""",
}
Cell = str | int | float | None


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """Facts about an exported student; None and () leave a line out.

    name: of the student, as its folder is called; or the path of this folder.
    architecture: one of `pcjax.models.MODELS`.
    features: the length of its vectors.
    parameters: how many numbers it has learnt.
    size: of its weights in bytes.
    shape: of one example: (height, width, channels) of an image, (tokens,) of a text.
    stored: the dtype of the examples; int32 for texts.
    max_tokens: longer texts are cut to so many tokens; None: never.
    formats: that the card tells how to load, its own first.
    code: that loads it, where it is another for every student.
    teacher: its name, or the path of its files, of which only the last part is printed.
    losses: of the training, by name.
    examples: how many the student was trained on.
    fingerprint: of these examples.
    columns: the titles of the table of measured numbers.
    rows: its rows.
    measured: sentences on what was measured with the exported file.
    base_model: the teacher's repository on the Hugging Face hub, OWNER/NAME.
    licence: of the student, as the Hugging Face hub calls it: apache-2.0.
    teacher_licence: of the teacher.
    languages: of the texts, by code: en.
    aligned: whether the student's vectors lie in the teacher's space.
    """

    name: str
    architecture: str
    features: int
    parameters: int
    size: int
    shape: tuple[int, ...]
    stored: str
    max_tokens: int | None
    formats: tuple[str, ...]
    teacher: str
    losses: tuple[str, ...]
    examples: int
    fingerprint: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    measured: tuple[str, ...] = ()
    code: str | None = None
    base_model: str | None = None
    licence: str | None = None
    teacher_licence: str | None = None
    languages: tuple[str, ...] = ()
    aligned: bool = False

    @property
    def kind(self) -> str:
        """The examples: "text", "image" or, of flat features, "example"."""
        if self.stored == "int32":
            return "text"
        return "image" if len(self.shape) == 3 else "example"


def model_card(facts: CardFacts) -> str:
    """Return the text of README.md."""
    sections = [
        _front_matter(facts),
        f"# {without_folders(facts.name)}\n\n{_summary(facts)}",
        *_loading(facts),
        *_numbers(facts),
        f"## Size\n\n{_size(facts)}",
        f"## Data\n\n{facts.examples:,} {facts.kind}s, fingerprint `{facts.fingerprint}`.",
        f"## Teacher and licences\n\n{_licences(facts)}",
        f"## Limits\n\n{_limits(facts)}",
    ]
    return "\n\n".join(sections) + "\n"


def without_folders(name: str) -> str:
    """Return the last part of a path: folders of this machine mean nothing elsewhere.

    >>> without_folders("/home/me/models/MiniLM"), without_folders("MiniLM")
    ('MiniLM', 'MiniLM')
    """
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def _front_matter(facts: CardFacts) -> str:
    texts, library = facts.kind == "text", facts.formats[0].partition("-int8")[0]
    values = {
        "library_name": library,
        "pipeline_tag": PIPELINES[facts.kind],
        "license": facts.licence,
        "base_model": facts.base_model,
        "language": [*facts.languages] or None,
        "tags": [
            *("embeddings", "distillation", "pcjax"),
            *(["sentence-transformers"] if texts else [library]),
            *(["static-embeddings"] if facts.architecture == STATIC else []),
        ],
    }
    # A JSON value is a YAML value.
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items() if value is not None]
    return "\n".join(["---", *lines, "---"])


def _summary(facts: CardFacts) -> str:
    kind = {
        STATIC: "a table of token vectors: the vector of a text is the mean of its tokens' vectors",
        TRANSFORMER: "a small transformer",
    }.get(facts.architecture, f"a `{facts.architecture}`")
    losses = ", ".join(f"`{loss}`" for loss in facts.losses)
    return (
        f"A student distilled with pcjax {__version__} from {_teacher(facts)} by {losses}. It maps "
        f"{_one(facts)} to {facts.features:,} numbers. It is {kind}."
    )


def _one(facts: CardFacts) -> str:
    return f"a {facts.kind}" if facts.kind == "text" else f"an {facts.kind}"


def _teacher(facts: CardFacts) -> str:
    if facts.base_model is None:
        return f"`{without_folders(facts.teacher)}`"
    return f"[{facts.base_model}](https://huggingface.co/{facts.base_model})"


def _loading(facts: CardFacts) -> list[str]:
    codes = {name: _code(facts, name) for name in facts.formats}
    sections = [
        f"With {TITLES.get(name, name)}:\n\n```python\n{code}\n```"
        for name, code in codes.items()
        if code is not None
    ]
    return ["## Usage", *sections] if sections else []


def _code(facts: CardFacts, format_name: str) -> str | None:
    """Return the code that loads a student; None for a format of another package."""
    if facts.code is not None:
        return facts.code
    if format_name in TEXTS:
        folder = f"{without_folders(facts.name)}/{facts.formats[0]}"
        return TEXTS[format_name].replace("FOLDER", json.dumps(folder))
    batch = f"(2, {', '.join(map(str, facts.shape))})"
    file = format_name, "text" if facts.kind == "text" else "example"
    if file in FILES:
        code = FILES[file].replace("STORED", facts.stored).replace("KIND", facts.kind)
        return code.replace("SHAPE", batch)
    if format_name not in SESSIONS:
        return None
    code = ONNX[facts.kind].replace("SESSION", SESSIONS[format_name])
    if facts.kind == "image":
        height, width, channels = facts.shape
        code = code.replace("MODE", {1: "L", 4: "RGBA"}.get(channels, "RGB"))
        return code.replace("SIZE", f"({width}, {height})").replace("SHAPE", str(facts.shape))
    return code.replace("SHAPE", batch)


def _numbers(facts: CardFacts) -> list[str]:
    lines = [_row(facts.columns), _row(["---"] * len(facts.columns)), *map(_row, facts.rows)]
    parts = [*(["\n".join(lines)] if facts.rows else []), *facts.measured]
    return ["\n\n".join(["## Measured", *parts])] if parts else []


def _row(cells: Sequence[Cell]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        is_path = re.match(r"[/~]|[A-Za-z]:\\", value)
        return (without_folders(value) if is_path else value).replace("|", "\\|")
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _size(facts: CardFacts) -> str:
    cut = "Texts of every length are read whole."
    if facts.kind != "text":
        cut = f"The shape of {_one(facts)} is {facts.shape}."
    elif facts.max_tokens is not None:
        cut = f"Longer texts are cut to {facts.max_tokens:,} tokens."
    return f"{facts.parameters:,} parameters, {facts.size:,} bytes of weights. {cut}"


def _licences(facts: CardFacts) -> str:
    teacher = facts.teacher_licence or "not known: check it before you use the student"
    student = facts.licence or "not stated: its owner chooses it"
    return (
        f"The teacher is {_teacher(facts)}. The licence of the teacher is {teacher}. The licence "
        f"of the student is {student}."
    )


def _limits(facts: CardFacts) -> str:
    space = "It lives in a space of its own: it cannot query the teacher's index."
    if facts.aligned:
        space = (
            "It lives in the teacher's space: it can query the teacher's index, less accurately "
            "than the teacher."
        )
    order = "\n- The order of the tokens does not count." if facts.architecture == STATIC else ""
    return (
        f"- {space}\n- It has learnt from the {facts.kind}s above: measure it on yours first.\n"
        f"- It has the teacher's biases.{order}"
    )
