"""Hostile files: nothing in them is executed, and no memory is allocated for what they claim."""

import json
import pathlib
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from pcjax import data
from pcjax.config import Config
from pcjax.data import arrays

pytestmark = [pytest.mark.gate, pytest.mark.bad_input]

MEMORY = 64 * 2**20  # bytes that reading any of these files may take
ROWS = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)


class Payload:
    """Create a file when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return pathlib.Path.touch, (self.canary,)


def header(shape, dtype="<f4", version=(1, 0)):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + size + text.encode()


def zipped(path, method=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy(path, array):
    np.save(path, array, allow_pickle=True)
    return path.read_bytes()


def bomb(path, name):
    """Write very many zeros, honestly declared."""
    size = 2**28
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w") as file,
    ):
        file.write(header((size // 4096, 1024)))
        for _ in range(size // 2**22):
            file.write(bytes(2**22))


def hostile(folder, canary):
    """Yield every hostile file, under every name by which it could be read."""
    payload = Payload(canary)
    pickled, objects = (
        pickle.dumps(payload),
        npy(folder / "scratch.npy", np.array([[payload]], object)),
    )
    raw = {
        "a pickle": pickled,
        "an old pickle": pickle.dumps(payload, protocol=0),
        "an array of objects": objects,
    }
    raw["a pickle after a header"] = header((1,), "|O") + pickled
    raw["a header of code"] = (
        b"\x93NUMPY\x01\x00\x60\x00"
        + f"__import__('os').system('touch {canary}')".encode().ljust(96)
    )
    raw["a tag of YAML"] = f"!!python/object/apply:os.system ['touch {canary}']\n".encode()
    for shape in ((10**9, 6), (2**62, 4), (-1, 6), (2**31, 2**31, 2**31), (10**12,) * 30):
        raw[f"a header of {shape}"] = header(shape) + ROWS.tobytes()
    raw["a header longer than any"] = b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"{" * 99
    raw["a header that nests"] = b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000
    for what, content in raw.items():
        for ending in ("npy", "pth") if "header" in what else ("npy", "npz", "pt", "pth"):
            (folder / f"raw.{ending}").write_bytes(content)
            yield f"{what} as .{ending}", folder / f"raw.{ending}"
        zipped(folder / "member.npz", **{"x.npy": content})
        yield f"{what} in a .npz", folder / "member.npz"
        zipped(folder / "member.npz", **{"train.npy": content, "fingerprint.npy": content})
        yield f"{what} as features", folder / "member.npz"
    zipped(folder / "torch.npz", **{"archive/data.pkl": pickled, "archive/version": b"3"})
    yield "a checkpoint of PyTorch as .npz", folder / "torch.npz"
    sound = npy(folder / "sound.npy", ROWS)
    for name in (
        f"../../{canary.name}",
        f"/{canary}",
        f"..\\{canary.name}",
        "x.npy/../../y.npy",
        "C:\\x.npy",
    ):
        zipped(folder / "names.npz", **{"x.npy": sound, name: sound})
        yield f"a member named {name}", folder / "names.npz"
    bomb(folder / "bomb.npz", "x.npy")
    yield "a bomb", folder / "bomb.npz"
    bomb(folder / "bomb.npz", "train.npy")
    yield "a bomb as features", folder / "bomb.npz"
    zipped(
        folder / "main.npz",
        **{"__main__.py": f"import pathlib; pathlib.Path({str(canary)!r}).touch()"},
    )
    yield "an archive that runs", folder / "main.npz"
    (folder / "main.json").write_bytes((folder / "main.npz").read_bytes())
    yield "an archive that runs as .json", folder / "main.json"


def test_nothing_in_a_file_is_run_and_nothing_it_claims_is_allocated(
    tmp_path, command, tried, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(arrays, "IN_MEMORY", MEMORY)
    canary, new = tmp_path / "canary", tmp_path / "new"
    data.load("digits")  # what is loaded once does not count
    command("distill", "--data.source", f"arrays:{tmp_path / 'none.npz'}", "--workdir", new)
    command("distill", "--teacher.features", tmp_path / "none.npz", "--workdir", new)
    ways = {
        "the examples": lambda path: ("distill", "--data.source", f"arrays:{path}"),
        "the teacher's features": lambda path: ("distill", "--teacher.features", path),
        "the config": lambda path: ("distill", path),
    }
    for what, path in hostile(tmp_path, canary):
        for way, arguments in ways.items():
            if "features" in way and not (
                path.suffix == ".npz" and ("features" in what or "pickle" in what)
            ):
                continue  # refused for its name, or as the examples are
            claims = "header" in what or "bomb" in what
            if claims:  # all else is slower while it is watched
                tracemalloc.start()
            status, output, complaint = command(*arguments(path), "--workdir", new)
            peak = tracemalloc.get_traced_memory()[1] if claims else 0
            tracemalloc.stop()
            message = f"{what} as {way}: {status} {complaint[:400]}"
            assert (status, output, complaint.count("\n")) == (2, "", 1), message
            assert "Traceback" not in complaint, message
            assert path.name in complaint, message
            assert peak < MEMORY, f"{message}: {peak / 2**20:.0f} MiB"
            assert not canary.exists(), message
            assert not new.exists(), message
            tried("a file made to harm", "refused, nothing run, little allocated")


def test_links_out_of_a_folder_of_arrays(tmp_path, command, tried):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    np.savez(outside / "train.npz", x=ROWS)
    (outside / "passwords").write_text("secret")
    for target in (
        outside / "train.npz",
        outside / "passwords",
        pathlib.Path("../outside/train.npz"),
        pathlib.Path("/dev/zero"),
    ):
        for name in ("train.npz", "test.npz", "validation.npy"):
            for path in folder.iterdir():
                path.unlink()
            np.savez(folder / "train.npz", x=ROWS)
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(target)
            if target == pathlib.Path("/dev/zero"):
                continue  # no file at all
            status, _, complaint = command(
                "distill", "--data.source", f"arrays:{folder}", "--workdir", tmp_path / "new"
            )
            assert (status, complaint.count("\n")) == (2, 1), complaint
            assert f"{name} is a symbolic link out of its folder" in complaint
            assert "secret" not in complaint
            tried("a link out of a folder", "refused")
    for path in folder.iterdir():
        path.unlink()
    np.savez(folder / "all.npz", x=ROWS)
    (folder / "train.npz").symlink_to("all.npz")
    assert len(data.load(f"arrays:{folder}").train) > 0


def test_code_in_a_config_is_text(tmp_path, command, tried, monkeypatch):
    monkeypatch.chdir(tmp_path)
    canary, new = tmp_path / "canary", tmp_path / "new"
    codes = [
        f"$(touch {canary})",
        f"`touch {canary}`",
        f"__import__('pathlib').Path({str(canary)!r}).touch()",
    ]
    codes += [
        f"; touch {canary}",
        f"!!python/object/apply:os.system ['touch {canary}']",
        "{0.__class__}",
        "%(x)s",
    ]
    codes += ["../" * 9 + "etc/passwd", f"file://{canary}", "\x00", "\x1b[2J\x1b]0;title\x07"]
    whole = json.loads(Config().to_json())
    places = [("data", "source"), ("data", "data_dir"), ("teacher", "run"), ("teacher", "features")]
    places += [("student", "name"), ("evaluation", "other"), ("training", "parallel")]
    path = tmp_path / "config.json"
    for code in codes:
        for section, field in places:
            for prefix in ("", "arrays:", "tfds:") if field in ("source", "other") else ("",):
                changed = whole | {section: whole[section] | {field: prefix + code}}
                path.write_text(json.dumps({"job": "distill", "config": changed}))
                status, output, complaint = command("distill", path, "--workdir", new)
                message = f"{section}.{field} {prefix}{code!r}: {status} {complaint!r}"
                assert (status, output, complaint.count("\n")) == (2, "", 1), message
                assert complaint[:-1].isprintable(), message
                assert [*tmp_path.iterdir()] == [path], message
                tried("code in a config", "refused, nothing run")
