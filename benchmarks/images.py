"""Compare the batches of images:PATH with bare loops of the same decoding and resizing.

    python -m benchmarks.images [--count 2000] [--side 224] [--rounds 5]
    python -m benchmarks.images --teachers torchvision:resnet18 timm:vit_tiny_patch16_224

It writes JPEGs of 500 x 375 into a temporary folder, and prints the medians of interleaved rounds:
the batches of pcjax, ready for a model; Pillow in a pool of threads, which stops at uint8; the
same with every image normalised to float32, as pcjax does; and that in Grain. Every round decodes
all images anew.

With --teachers, it embeds 128 images with models of random weights instead, by PyTorch
and by pcjax as `pcjax embed` does, from the same decoded pixels.
"""

import argparse
import concurrent.futures
import importlib
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import grain
import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from pcjax.data import Examples, evaluation_batches, load
from pcjax.data import images as source
from pcjax.data.normalise import Normaliser
from pcjax.display import Display
from pcjax.teachers import find_encoder

SIZE = (500, 375)
BATCH = 64
MEAN, FACTOR = np.full(3, 127.5, np.float32), np.full(3, 1 / 64, np.float32)
EMBEDDED = 160
THREADS = os.cpu_count() or 1
BARE = "Pillow in threads, uint8"


def write(folder: pathlib.Path, count: int) -> None:
    """Write smooth random images with a little noise, some 50 kB each."""
    random = np.random.default_rng(0)
    noise = random.normal(0, 6, (SIZE[1], SIZE[0], 3))
    for number in range(count):
        coarse = random.integers(0, 256, (16, 21, 3), np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC))
        rolled = np.roll(noise, tuple(random.integers(0, 300, 2)), (0, 1))
        image = Image.fromarray(np.clip(pixels + rolled, 0, 255).astype(np.uint8))
        image.save(folder / f"{number:06}.jpg", quality=90)


def decode(path: pathlib.Path, side: int) -> np.ndarray:
    """Decode an image, scale its shorter side and cut out the middle."""
    with Image.open(path) as image:
        image.draft(None, (2 * side, 2 * side))
        scale = min(image.size) / side
        left, top = ((length - scale * side) / 2 for length in image.size)
        box = (left, top, left + scale * side, top + scale * side)
        small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC, box)
        return np.asarray(small)


def normalised(path: pathlib.Path, side: int) -> np.ndarray:
    """Decode an image and normalise it."""
    return (decode(path, side) - MEAN) * FACTOR


def pool_batches(
    paths: list[pathlib.Path], side: int, one: Callable[[pathlib.Path, int], np.ndarray]
) -> Iterator[np.ndarray]:
    """Decode in a pool of threads, a batch ahead of the one in use."""
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:

        def begin(start: int) -> list[concurrent.futures.Future]:
            return [pool.submit(one, path, side) for path in paths[start : start + BATCH]]

        ahead = begin(0)
        for start in range(BATCH, len(paths) + BATCH, BATCH):
            ahead, current = begin(start), ahead
            yield np.stack([future.result() for future in current])


def grain_batches(paths: list[pathlib.Path], side: int) -> Iterable[np.ndarray]:
    """Decode in Grain's threads."""
    dataset = grain.MapDataset.source(paths).map(lambda path: normalised(path, side))
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=2 * BATCH)
    return dataset.to_iter_dataset(options).batch(BATCH)


def measured(
    functions: Mapping[str, Callable[[], int]], rounds: int
) -> dict[str, tuple[float, float]]:
    """Return the median seconds an image, on the clock and of processors, in interleaved rounds."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            clock, processors = time.perf_counter(), time.process_time()
            count = function()
            spent = (time.perf_counter() - clock, time.process_time() - processors)
            times[name].append((spent[0] / count, spent[1] / count))
    # The first round warms up.
    return {name: tuple(np.median(spent[1:], axis=0)) for name, spent in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--teachers", nargs="+", default=[])
    options = parser.parse_args()
    if options.teachers:
        for each in options.teachers:
            compare_with_torch(each, options.side, options.rounds)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        count = max(1, options.count // BATCH) * BATCH
        write(folder, count)
        paths = sorted(folder.iterdir())
        source.IN_MEMORY = 0  # or the second round decodes nothing
        store = source.read(temporary, image_size=options.side).train
        examples = Examples(store, np.arange(count))
        normalise = (MEAN / 255, 1 / (255 * FACTOR))
        functions = {
            BARE: lambda: sum(map(len, pool_batches(paths, options.side, decode))),
            "Pillow in threads": lambda: sum(
                map(len, pool_batches(paths, options.side, normalised))
            ),
            "Pillow in Grain": lambda: sum(map(len, grain_batches(paths, options.side))),
            "pcjax": lambda: sum(
                len(batch["image"])
                for batch in evaluation_batches(examples, batch=BATCH, normalise=normalise)
            ),
        }
        times = measured(functions, options.rounds)
    title = f"{count} JPEGs of {SIZE[0]} x {SIZE[1]} to {options.side}, {THREADS} threads"
    show(title, times, BARE)


def show(title: str, times: Mapping[str, tuple[float, float]], base: str) -> None:
    """Print a table."""
    bare = times[base]
    rows = [
        [
            *(name, f"{1 / clock:.0f}", f"{bare[0] / clock:.2f}"),
            *(f"{processors * 1e3:.2f}", f"{bare[1] / processors:.2f}"),
        ]
        for name, (clock, processors) in times.items()
    ]
    columns = ["", "images a second", f"x {base}", "processor ms an image", f"x {base}"]
    Display().table(title, columns, rows)


def compare_with_torch(name: str, side: int, rounds: int) -> None:
    """Print how fast PyTorch and pcjax embed images with one model."""
    torch: Any = importlib.import_module("torch")
    package, _, architecture = name.partition(":")
    library: Any = importlib.import_module(package)
    if package == "timm":
        options = {"img_size": side} if "dinov2" in architecture else {}
        module = library.create_model(architecture, num_classes=0, **options).eval()
    else:
        module = getattr(library.models, architecture)().eval()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        (folder / "images").mkdir()
        write(folder / "images", EMBEDDED)  # a fifth is held out
        path = folder / "weights.safetensors"
        save_file({name: x.numpy() for name, x in module.state_dict().items()}, path)
        encoder = find_encoder(f"{name}@{path}", side)
        dataset = load(f"images:{folder}/images", image_size=side, validation=0.0)
        assert encoder is not None
        seen = encoder.view(dataset)
        examples, normalise = seen.train, seen.normalise
        normaliser = Normaliser(examples, normalise)

        def by_torch() -> int:
            with torch.inference_mode():
                for start in range(0, len(examples), BATCH):
                    rows = np.arange(start, min(start + BATCH, len(examples)))
                    images = normaliser(examples.take(rows)).transpose(0, 3, 1, 2)
                    module(torch.from_numpy(np.ascontiguousarray(images)))
            return len(examples)

        functions = {
            "PyTorch": by_torch,
            "pcjax": lambda: len(encoder.features(examples, normalise, BATCH)),
        }
        show(f"{name}, {THREADS} threads", measured(functions, rounds), "PyTorch")


if __name__ == "__main__":
    main()
