"""The model card of a model of texts: README.md of its folder."""

import dataclasses
import json
import re
from collections.abc import Sequence

from pcjax import __version__

STATIC, TRANSFORMER = "static", "bert"
Cell = str | int | float | None


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """Facts about an exported student; None and () leave a line out.

    name: of the student, as its folder is called; or the path of this folder.
    architecture: one of `pcjax.models.text.TEXT_MODELS`.
    features: the length of its vectors.
    parameters: how many numbers it has learnt.
    size: of its weights in bytes.
    max_tokens: longer texts are cut to so many tokens; None: never.
    formats: of the export, among "sentence-transformers", "model2vec" and "onnx".
    teacher: its name, or the path of its files, of which only the last part is printed.
    losses: of the training, by name.
    texts: how many the student was trained on.
    fingerprint: of these texts.
    columns: the titles of the table of measured numbers.
    rows: its rows.
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
    max_tokens: int | None
    formats: tuple[str, ...]
    teacher: str
    losses: tuple[str, ...]
    texts: int
    fingerprint: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    base_model: str | None = None
    licence: str | None = None
    teacher_licence: str | None = None
    languages: tuple[str, ...] = ()
    aligned: bool = False


def model_card(facts: CardFacts) -> str:
    """Return the text of README.md."""
    sections = [
        _front_matter(facts),
        f"# {without_folders(facts.name)}\n\n{_summary(facts)}",
        *_loading(facts),
        *_numbers(facts),
        f"## Size\n\n{_size(facts)}",
        f"## Data\n\n{facts.texts:,} texts without labels, fingerprint `{facts.fingerprint}`.",
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
    static = facts.architecture == STATIC
    values = {
        "library_name": "model2vec" if "model2vec" in facts.formats else "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "license": facts.licence,
        "base_model": facts.base_model,
        "language": [*facts.languages] or None,
        "tags": [
            *("embeddings", "sentence-transformers", "distillation", "pcjax"),
            *(["static-embeddings"] if static else []),
        ],
    }
    # A JSON value is a YAML value.
    lines = [f"{key}: {json.dumps(value)}" for key, value in values.items() if value is not None]
    return "\n".join(["---", *lines, "---"])


def _summary(facts: CardFacts) -> str:
    kind = {
        STATIC: "a table of token vectors: the vector of a text is the mean of its tokens' vectors",
        TRANSFORMER: "a small transformer",
    }[facts.architecture]
    losses = ", ".join(f"`{loss}`" for loss in facts.losses)
    return (
        f"A student distilled with pcjax {__version__} from {_teacher(facts)} by {losses}, without "
        f"labels. It maps a text to {facts.features:,} numbers. It is {kind}."
    )


def _teacher(facts: CardFacts) -> str:
    if facts.base_model is None:
        return f"`{without_folders(facts.teacher)}`"
    return f"[{facts.base_model}](https://huggingface.co/{facts.base_model})"


def _loading(facts: CardFacts) -> list[str]:
    folder = json.dumps(without_folders(facts.name))
    snippets = {
        "sentence-transformers": f"""\
            from sentence_transformers import SentenceTransformer

            model = SentenceTransformer({folder})
            vectors = model.encode(["one text", "another text"])""",
        "model2vec": f"""\
            from model2vec import StaticModel

            model = StaticModel.from_pretrained({folder})
            vectors = model.encode(["one text", "another text"])""",
        "onnx": """\
            import numpy as np
            import onnxruntime
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file("onnx/tokenizer.json")
            tokenizer.enable_padding()
            session = onnxruntime.InferenceSession("onnx/model.onnx")
            encoded = tokenizer.encode_batch(["one text", "another text"])
            inputs = {
                "input_ids": np.array([each.ids for each in encoded]),
                "attention_mask": np.array([each.attention_mask for each in encoded]),
            }
            (vectors,) = session.run(["sentence_embedding"], inputs)""",
    }
    titles = {"onnx": "onnxruntime"}
    return ["## Usage"] + [
        f"With {titles.get(name, name)}:\n\n```python\n{_dedented(snippets[name])}\n```"
        for name in facts.formats
    ]


def _dedented(text: str) -> str:
    return "\n".join(line.removeprefix(" " * 12) for line in text.splitlines())


def _numbers(facts: CardFacts) -> list[str]:
    if not facts.rows:
        return []
    lines = [_row(facts.columns), _row(["---"] * len(facts.columns)), *map(_row, facts.rows)]
    return ["## Measured\n\n" + "\n".join(lines)]


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
    if facts.max_tokens is not None:
        cut = f"Longer texts are cut to {facts.max_tokens:,} tokens."
    return f"{facts.parameters:,} parameters, {facts.size:,} bytes of weights. {cut}"


def _licences(facts: CardFacts) -> str:
    licences = {"teacher": facts.teacher_licence, "student": facts.licence}
    stated = [
        f"The licence of the {model} is {licence}."
        if licence
        else f"The licence of the {model} is not known: check it before you use the student."
        for model, licence in licences.items()
    ]
    return " ".join([f"The teacher is {_teacher(facts)}.", *stated])


def _limits(facts: CardFacts) -> str:
    space = "It lives in a space of its own: it cannot query the teacher's index."
    if facts.aligned:
        space = (
            "It lives in the teacher's space: it can query the teacher's index, less accurately "
            "than the teacher."
        )
    order = "\n- The order of the tokens does not count." if facts.architecture == STATIC else ""
    return (
        f"- {space}\n- It has learnt from the texts above: measure it on yours first.\n"
        f"- It has the teacher's biases.{order}"
    )
