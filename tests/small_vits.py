"""Small vision transformers: their formulas in NumPy, and folders and files of their weights."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from small_texts import write_json, write_safetensors

from pcjax._checks import RequestError
from pcjax.data.examples import Arrays, Dataset, Examples
from pcjax.teachers.sources import find_encoder
from pcjax.training.embedding import jitted_outputs

SIDE, PATCH, WIDTH, HEADS, LAYERS, HIDDEN = 12, 4, 8, 2, 2, 10
GRID = SIDE // PATCH
erf = np.vectorize(math.erf)


def normalised(x, tensors, name, epsilon):
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def linear(x, tensors, name):
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def block(x, tensors, before, epsilon=1e-6):
    """Compute a block of timm's names for the tokens (t, d) of one image."""
    size = WIDTH // HEADS
    query, key, value = np.split(
        linear(normalised(x, tensors, before + "norm1", epsilon), tensors, before + "attn.qkv"),
        3,
        axis=1,
    )
    heads = []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        scores = np.exp(query[:, part] @ key[:, part].T / math.sqrt(size))
        heads.append(scores / scores.sum(axis=1, keepdims=True) @ value[:, part])
    mixed = linear(np.concatenate(heads, axis=1), tensors, before + "attn.proj")
    x = x + mixed * tensors.get(before + "ls1.gamma", 1)
    hidden = linear(normalised(x, tensors, before + "norm2", epsilon), tensors, before + "mlp.fc1")
    hidden = hidden / 2 * (1 + erf(hidden / math.sqrt(2)))
    return x + linear(hidden, tensors, before + "mlp.fc2") * tensors.get(before + "ls2.gamma", 1)


def oracle(images, tensors, epsilon=1e-6):
    """Return the normalised tokens (n, t, d) of a small ViT, in float64; timm's names."""
    tensors = {name: x.astype(np.float64) for name, x in tensors.items()}
    registers = tensors.get("reg_token", np.zeros((1, 0, WIDTH)))[0]
    results = []
    for image in images.astype(np.float64):
        tokens = []
        for row in range(GRID):
            for column in range(GRID):
                pixels = image[row * PATCH :][:PATCH, column * PATCH :][:, :PATCH]
                kernel = tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
                tokens.append(np.tensordot(pixels, kernel, 3) + tensors["patch_embed.proj.bias"])
        x = np.concatenate([tensors["cls_token"][0], tokens]) + tensors["pos_embed"][0]
        x = np.concatenate([x[:1], registers, x[1:]])
        for number in range(LAYERS):
            x = block(x, tensors, f"blocks.{number}.", epsilon)
        results.append(normalised(x, tensors, "norm", epsilon))
    return np.array(results)


def vit_tensors(*, registers=0, layer_scale=False, seed=0):
    """Return random tensors of a small ViT, by timm's names."""
    random = np.random.default_rng(seed)
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + GRID**2, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    if registers:
        shapes["reg_token"] = (1, registers, WIDTH)
    for number in range(LAYERS):
        before = f"blocks.{number}."
        for name, (outputs, inputs) in {
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "mlp.fc1": (HIDDEN, WIDTH),
            "mlp.fc2": (WIDTH, HIDDEN),
        }.items():
            shapes |= {f"{before}{name}.weight": (outputs, inputs)}
            shapes |= {f"{before}{name}.bias": (outputs,)}
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[before + name] = (WIDTH,)
        if layer_scale:
            shapes |= {f"{before}ls{part}.gamma": (WIDTH,) for part in (1, 2)}
    return {
        name: random.normal(size=shape, scale=0.4).astype(np.float32)
        for name, shape in shapes.items()
    }


def huggingface_names(tensors, kind):
    """Rename tensors as Hugging Face does: of "vit", or of "dinov2" with registers or not."""
    dino = kind != "vit"
    layers = {
        "norm1": "norm1" if dino else "layernorm_before",
        "norm2": "norm2" if dino else "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "mlp.fc1" if dino else "intermediate.dense",
        "mlp.fc2": "mlp.fc2" if dino else "output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
    }
    ends = {
        "cls_token": "embeddings.cls_token",
        "reg_token": "embeddings.register_tokens",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    }
    named = {}
    for name, tensor in tensors.items():
        if not name.startswith("blocks."):
            stem = next(x for x in ends if name == x or name.startswith(f"{x}."))
            named[ends[stem] + name.removeprefix(stem)] = tensor
            continue
        _, number, rest = name.split(".", 2)
        before = f"encoder.layer.{number}."
        if rest.startswith("attn.qkv"):
            leaf = rest.rpartition(".")[2]
            for part, each in zip(("query", "key", "value"), np.split(tensor, 3), strict=True):
                named[f"{before}attention.attention.{part}.{leaf}"] = each
            continue
        stem = next(x for x in layers if rest.startswith(x))
        named[before + layers[stem] + rest.removeprefix(stem)] = tensor
    return named


PREPROCESSOR = {
    "crop_size": {"height": SIDE, "width": SIDE},
    "do_center_crop": True,
    "size": {"shortest_edge": 2 * SIDE},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def write_preprocessor(folder):
    """Write the size and the normalisation of a folder's images."""
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)


def write_folder(folder, kind, tensors, **changes):
    """Write a folder as `save_pretrained` does."""
    folder.mkdir(exist_ok=True)
    registers = tensors["reg_token"].shape[1] if "reg_token" in tensors else 0
    config = {
        "model_type": kind,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "image_size": SIDE,
        "patch_size": PATCH,
        "mlp_ratio": HIDDEN / WIDTH,
        "intermediate_size": HIDDEN,
        "layer_norm_eps": 1e-6,
        "num_register_tokens": registers,
    }
    write_json(folder / "config.json", config | changes)
    write_preprocessor(folder)
    write_safetensors(folder / "model.safetensors", huggingface_names(tensors, kind))
    return folder


IMAGES = np.random.default_rng(5).normal(size=(3, SIDE, SIDE, 3)).astype(np.float32)


def outputs(encoder, batch=IMAGES):
    """Return the features that a teacher computes."""
    model = encoder.model
    arrays = (model.parameters, model.statistics)
    return np.asarray(jitted_outputs(model.function, *arrays, jnp.asarray(batch)).features)


def dataset(shape=(9, 10, 3), count=5, dtype=np.uint8):
    """Return a data set of random images."""
    random = np.random.default_rng(7)
    stored = random.integers(0, 256, (count, *shape)).astype(dtype)
    examples = Examples(Arrays(stored, None), np.arange(count))
    return Dataset("made-up", examples, examples, examples)


def one_line(source, reason):
    """Check that a teacher.source is refused for this reason, in one line."""
    with pytest.raises(RequestError, match=reason) as refusal:
        find_encoder(source)
    message = str(refusal.value)
    assert "\n" not in message
    assert len(message) < 1800
