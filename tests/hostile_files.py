"""Files that pretend to be checkpoints: every container, wrong in every way, and bombs."""

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Iterator

from tests.hostile_pickles import (
    GADGETS,
    NO_HOOKS,
    called,
    integer,
    laughs,
    named,
    numbered,
    payload,
    program,
    several,
    storage,
    table,
    tensor,
    text,
    variants,
)

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz")
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
WEIGHTS = program(table(weight=tensor()))


def archive(
    pickled: bytes, held: int = 4, method: int = zipfile.ZIP_STORED, more: dict[str, bytes] | None = None
) -> bytes:
    """Put a pickle where torch.save puts it, beside one storage of ``held`` float32."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archived, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        archived.writestr("archive/data.pkl", pickled)
        archived.writestr("archive/byteorder", b"little")
        archived.writestr("archive/data/0", bytes(4 * held))
        archived.writestr("archive/version", b"3\n")
        for name, content in (more or {}).items():
            archived.writestr(name, content)
    return out.getvalue()


def legacy(pickled: bytes) -> bytes:
    """Put a pickle into the format of torch before 1.6."""
    system = table(protocol_version=integer(1001), little_endian=b"\x88")
    return LEGACY + program(integer(1001)) + program(system) + pickled + program(b"]")


def tarred(pickled: bytes) -> bytes:
    """Put a pickle into the oldest format of torch."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in (
            ("storages", program(integer(0))),
            ("tensors", program(integer(0))),
            ("pickle", pickled),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def safetensors(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def row(dtype="F32", shape=(4,), place=(0, 16)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


def members(*rows: tuple[str, bytes]) -> bytes:
    """Make a zip archive of just these members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archived:
        for name, content in rows:
            archived.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def odd_files() -> dict[str, tuple[bytes, str]]:
    """Return files that are wrong as files, and a part of what must be said."""
    good = archive(WEIGHTS)
    start = struct.unpack("<L", good[-6:-2])[0]
    local = good.index(b"PK\x03\x04", 1)
    central = good.index(b"PK\x01\x02")
    refused = "was refused"
    extra = {
        "absolute": "/etc/x",
        "climbing": "archive/../../x",
        "dot": "archive/./x",
        "backslash": "archive\\..\\x",
        "drive": "C:\\x",
        "steering": "archive/\x1b[2Jx",
        "long": "archive/" + "x" * 600,
        "twice": "archive/data.pkl",
        "twice-in-capitals": "archive/DATA.PKL",
    }
    odd = {f"member-{how}.pt": (archive(WEIGHTS, more={name: b"x"}), refused) for how, name in extra.items()}
    odd |= {
        "two-folders.pt": (archive(WEIGHTS, more={"other/data.pkl": WEIGHTS}), "more than one folder"),
        "no-folder.pt": (members(("data.pkl", WEIGHTS)), "without data.pkl"),
        "no-pickle.pt": (members(("archive/version", b"3")), "without data.pkl"),
        "npz.pt": (members(("weight.npy", b"\x93NUMPY")), "NumPy .npz"),
        "objects.npz": (members(("a.npy", b"\x93NUMPY\x01\x00O")), "NumPy .npz"),
        "script.pt": (archive(WEIGHTS, more={"archive/constants.pkl": program(b")")}), "TorchScript"),
        "script-code.pt": (archive(WEIGHTS, more={"archive/code/x.py": b"x"}), "TorchScript"),
        "package.pt": (archive(WEIGHTS, more={"archive/.data/extern_modules": b"x"}), "torch.package"),
        "word.pt": (members(("word/document.xml", b"<a/>")), "without data.pkl"),
        "archive-in-archive.pt": (members(("archive/model.pt", good)), "without data.pkl"),
        "empty-archive.pt": (good[-22:-14] + bytes(14), "empty zip"),
        "deflated.pt": (archive(WEIGHTS, 4, zipfile.ZIP_DEFLATED), "compressed"),
        "bzip2.pt": (archive(WEIGHTS, 4, zipfile.ZIP_BZIP2), "compressed"),
        "lzma.pt": (archive(WEIGHTS, 4, zipfile.ZIP_LZMA), "compressed"),
        "before.pt": (b"x" * 10 + good, "no checkpoint"),
        "member-before.pt": (good[:local] + good, "adds? up|before"),
        "pickle-before.pt": (program(named("os", "system")) + good, "could run code"),
        "behind.pt": (good + b"x", "behind its end"),
        "comment.pt": (good[:-2] + b"\x01\x00x", "behind its end"),
        "comment-length.pt": (good[:-2] + b"\x01\x00", "add up"),
        "archive-twice.pt": (good + good, "add up"),
        "wrong-count.pt": (good[:-12] + b"\x03\x00" + good[-10:], "add up"),
        "wrong-counts.pt": (good[:-14] + b"\x03\x00\x03\x00" + good[-10:], "add up"),
        "many-claimed.pt": (good[:-14] + b"\xff\xff\xff\xff" + good[-10:], "breaks off"),
        "no-members.pt": (good[:-14] + bytes(4) + good[-10:], refused),
        "wrong-start.pt": (good[:-6] + struct.pack("<L", start - 1) + good[-2:], "add up"),
        "on-disk-two.pt": (good[:-18] + b"\x01\x00" + good[-16:], "add up"),
        "two-directories.pt": (_with_large_end(good, lie=46), "breaks off"),
        "large-end-elsewhere.pt": (_with_large_end(good, where=8), "add up"),
        "large-end-other-count.pt": (_with_large_end(good, count=7), "two different"),
        "encrypted.pt": (good[: central + 8] + b"\x01" + good[central + 9 :], "encrypted"),
        "flags-disagree.pt": (good[:6] + b"\x08" + good[7:], "do not agree"),
        "methods-disagree.pt": (good[:8] + b"\x08" + good[9:], "do not agree"),
        "names-disagree.pt": (good[:30] + b"X" + good[31:], "do not agree"),
        "no-header.pt": (good[:local] + b"XX" + good[local + 2 :], "do not agree"),
        "wrong-checksum.pt": (good[: central + 16] + b"\x01" + good[central + 17 :], "checksum"),
        "marked-folder.pt": (good[: central + 38] + b"\x10" + good[central + 39 :], "marked as a folder"),
        "folder.pt": (archive(WEIGHTS, more={"archive/data/": b""}), refused),
        "not-utf-8.pt": (good.replace(b"archive/version", b"archive/\xff\xfe\xfdsion"), "no text"),
        "sizes-missing.pt": (good[: central + 20] + b"\xff" * 8 + good[central + 28 :], "size is missing"),
        "larger.pt": (good[: central + 20] + b"\xff\xff\x00\x00" * 2 + good[central + 28 :], "overlap"),
        "smaller.pt": (good[: central + 20] + b"\x01\0\0\0" * 2 + good[central + 28 :], "leave gaps"),
        "inner-size.pt": (good[: central + 24] + b"\xff\xff" + good[central + 26 :], "compressed"),
        "protocol-4.pt": (archive(b"\x80\x04\x95" + bytes(8) + b"}."), "protocol 2"),
        "no-protocol.pt": (archive(b"}."), "protocol 2"),
        "empty-pickle.pt": (archive(b""), "protocol 2"),
        "empty.pt": (b"", "is empty"),
        "empty.safetensors": (b"", "is empty"),
        "one-byte.pt": (b"P", "no checkpoint"),
        "signature.pt": (b"PK\x03\x04", "cut off"),
        "text.pt": (b"hello", "no checkpoint"),
        "table.pt": (b"epoch,loss\n1,2\n", "no checkpoint"),
        "page.pt": (b"<!DOCTYPE html><html></html>", "web page"),
        "pointer.pt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        "gzip.pt": (gzip.compress(good), "gzip"),
        "bzip2-whole.pt": (bz2.compress(good), "bzip2"),
        "xz.pt": (lzma.compress(good), "xz"),
        "7z.pt": (b"7z\xbc\xaf\x27\x1c" + bytes(64), "7z"),
        "zstd.pt": (b"\x28\xb5\x2f\xfd" + bytes(64), "zstandard"),
        "array.pt": (b"\x93NUMPY\x01\x00" + bytes(120), "NumPy array"),
        "hdf.pt": (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        "gguf.bin": (b"GGUF" + bytes(64), "GGUF"),
        "tar-of-good.pt": (tarred(WEIGHTS), "tar archive"),
        "tar-and-legacy.pt": (LEGACY + tarred(WEIGHTS)[len(LEGACY) :], "before 1.6"),
        "legacy-good.pt": (legacy(WEIGHTS), "before 1.6"),
        "bare-pickle.pt": (WEIGHTS, "could run code"),
    }  # fmt: skip
    return odd | _odd_safetensors()


def _odd_safetensors() -> dict[str, tuple[bytes, str]]:
    def header(**changed: object) -> bytes:
        return safetensors({"a": {**row(), **changed}})

    two = {"a": row(shape=(2,), place=(0, 8)), "b": row(shape=(2,), place=(8, 16))}
    damaged = "is damaged|is a damaged"
    cases = {
        "length": (safetensors({"a": row()}, length=1 << 40), "cut off"),
        "length-high-bit": (safetensors({"a": row()}, length=(1 << 64) - 1), "cut off"),
        "length-short": (safetensors({"a": row()}, length=20), damaged),
        "length-long": (safetensors({"a": row()}, length=70), damaged),
        "no-tensors-but-data": (safetensors({}), "behind its end"),
        "behind": (safetensors({"a": row()}, bytes(17)), "behind its end"),
        "cut": (safetensors({"a": row()}, bytes(15)), "cut off"),
        "beyond": (header(shape=[400], data_offsets=[0, 1600]), "cut off"),
        "far-beyond": (header(shape=[1 << 40], data_offsets=[0, 1 << 42]), "cut off"),
        "gap": (safetensors({**two, "b": row(shape=(1,), place=(12, 16))}), "gaps"),
        "overlap": (safetensors({**two, "b": row(shape=(3,), place=(4, 16))}), "overlap"),
        "same-place": (safetensors({"a": row(), "b": row()}), "overlap"),
        "starts-late": (header(shape=[2], data_offsets=[8, 16]), "gaps"),
        "other-size": (header(shape=[5]), "another size"),
        "wrap-around": (header(shape=[1 << 32, 1 << 32, 4]), "another size"),
        "zero-and-huge": (
            safetensors({"a": row(shape=(0, 1 << 62, 1 << 62), place=(0, 0)), "b": row()}),
            "another size",
        ),
        "backwards": (header(shape=[0], data_offsets=[16, 0]), "another size"),
        "negative-shape": (header(shape=[-4]), "no proper shape"),
        "negative-place": (header(data_offsets=[-16, 0]), "no proper shape"),
        "boolean-shape": (header(shape=[True]), "no proper shape"),
        "text-shape": (header(shape="4"), "no proper shape"),
        "three-places": (header(data_offsets=[0, 8, 16]), "no proper shape"),
        "many-dimensions": (header(shape=[4] + [1] * 64), "no proper shape"),
        "unknown-type": (header(dtype="F4"), "which is not read"),
        "object-type": (header(dtype="O"), "which is not read"),
        "type-no-text": (header(dtype=["F32"]), "which is not read"),
        "steering-type": (header(dtype="\x1b[2J\u202e" * 99), "which is not read"),
        "long-name": (safetensors({"n" * 1_000_000: {}}), "incomplete"),
        "steering-name": (safetensors({"\x1b]0;x\x07\n": {}}), "incomplete"),
        "no-row": (safetensors({"a": 3}), "incomplete"),
        "more-in-row": (header(code="import os"), "incomplete"),
        "less-in-row": (safetensors({"a": {"dtype": "F32"}}), "incomplete"),
        "fraction": (safetensors(b'{"a":{"dtype":"F32","shape":[4.0],"data_offsets":[0,16]}}'), "no JSON"),
        "nan": (safetensors(b'{"a":NaN}'), "no JSON"),
        "twice": (safetensors(b'{"a":{},"a":{}}'), "twice"),
        "twice-in-row": (safetensors(b'{"a":{"dtype":"F32","dtype":"F64"}}'), "twice"),
        "not-closed": (safetensors(b'{"a":'), "no JSON"),
        "not-utf-8": (safetensors(b'{"\xff":{}}'), "no JSON"),
        "null-bytes": (safetensors(b"{" + bytes(40)), "no JSON"),
        "deep": (safetensors(b'{"a":' * 5000), "no JSON"),
        "deep-list": (safetensors(b'{"a":' + b"[" * 50_000), "no JSON"),
        "long-number": (safetensors(b'{"a":' + b"9" * 10_000 + b"}"), "no JSON"),
        "metadata-list": (safetensors({"__metadata__": [], "a": row()}), "metadata"),
        "metadata-nested": (safetensors({"__metadata__": {"a": {}}, "a": row()}), "metadata"),
        "list": (safetensors([row()]), "no checkpoint"),
    }
    return {f"{name}.safetensors": case for name, case in cases.items()}


def _with_large_end(good: bytes, lie: int = 0, where: int = 0, count: int = 4) -> bytes:
    """Add the end record for large archives, with something wrong in it."""
    length, start = struct.unpack("<2L", good[-10:-2])
    end = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length - lie, start + lie)
    pointer = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(good) - 22 + where, 1)
    tail = good[-22:] if not lie else good[-22:-14] + b"\xff" * 12 + good[-2:]
    return good[:-22] + end + pointer + tail


def files_with_code(target: str) -> Iterator[tuple[str, bytes]]:
    """Every gadget in every protocol, bare and behind real weights, in every container; suffixes in turn."""
    count = 0
    for which, gadget in enumerate(GADGETS):
        pickles = []
        for protocol in range(6):
            head = bytes([0x80, protocol]) if protocol >= 2 else b""
            code = payload(gadget, target, protocol)
            pickles += [
                (f"bare{protocol}", head + code + b"."),
                (f"inside{protocol}", head + table(weight=tensor(), x=code) + b"."),
            ]
        pickles += variants(gadget, target)
        for how, pickled in pickles:
            for container, content in (
                ("raw", pickled),
                ("zip", archive(pickled)),
                ("legacy", legacy(pickled)),
            ):
                yield f"{which}-{how}-{container}{SUFFIXES[count % len(SUFFIXES)]}", content
                count += 1
        yield f"{which}-tar{SUFFIXES[which % len(SUFFIXES)]}", tarred(pickles[0][1])


def bombs() -> dict[str, bytes]:
    """Return files whose content would take memory or time out of proportion to their size."""
    million, full = 1_000_000, 1 << 24
    weights = table(weight=tensor(size=(10**12,), stride=(0,)))
    large = table(weight=tensor(storage(10**12), size=(10**12,)))
    rebuild = named("torch._utils", "_rebuild_tensor_v2") + b"q\x00" + storage() + b"q\x01K\x00q\x02"
    rebuild += b"K\x01\x85q\x03" + NO_HOOKS + b"q\x04"
    views = b"h\x00(h\x01h\x02h\x03h\x03\x89h\x04tR"
    line = b"](" + b"h\x00" * 1000 + b"e"
    pickles = {
        "deep-list": b"]" * 200_000 + b"a" * 199_999,
        "deep-tuple": b")" + b"\x85" * million,
        "deep-table": b"}" + (text("a") + b"}") * 200_000 + b"s" * 200_000,
        "deep-marks": b"(" * million,
        "laughs": laughs(b"](", b"e", 200),
        "laughs-in-tables": laughs(b"}(", b"u", 200),
        "wide-laughs": b"(](" + b"N" * 1000 + b"eq\x00" + (line + b"q\x00") * 4 + b"t",
        "lists": b"](" + b"]" * million + b"e",
        "tables": b"](" + b"}" * million + b"e",
        "ordered-tables": b"](" + (named("collections", "OrderedDict") + b")R") * 340_000 + b"e",
        "floats": b"](" + (b"G" + bytes(8)) * million + b"e",
        "nothing": b"](" + b"N" * (2 * million) + b"e",
        "copied-text": b"](" + text("x" * million) + b"q\x00" + (named("_codecs", "encode") + b"h\x00"
                       + text("latin1") + b"\x86R") * 60_000 + b"e",
        "copied-list": b"](" + b"](" + b"K\x01" * 100_000 + b"eq\x00"
                       + (named("builtins", "set") + b"h\x00\x85R") * 60_000 + b"e",
        "copied-table": b"](" + numbered(50_000, 1, b"K\x01") + b"q\x00"
                        + (named("collections", "Counter") + b"h\x00\x85R") * 60_000 + b"e",
        "copied-bytes": b"](" + called("_codecs", "encode", text("x" * million), text("latin1")) + b"q\x00"
                        + (named("builtins", "bytearray") + b"h\x00\x85R") * 60_000 + b"e",
        "colliding-keys": numbered(60_000, (1 << 61) - 1),
        "views": b"(" + rebuild + b"](" + views * 100_000 + b"et",
        "stride-0": weights,
        "stride-0-squared": table(weight=tensor(size=(10**6, 10**6), stride=(0, 0))),
        "large-storage": large,
        "large-bytearray": called("builtins", "bytearray", integer(10**12)),
        "large-size": called("torch", "Size", several(*[integer(1 << 40)] * 60)),
        "large-integers": b"](" + integer(1 << 2000) * 60_000 + b"e",
        "large-text": text("\U0001f600" + "x" * 30_000_000),
        "long-name": named("a" * 30_000_000, "b"),
        "cut-text": b"X" + struct.pack("<I", (1 << 32) - 1) + b"x" * 1000,
        "too-long": b"N" * ((1 << 26) + 1),
    }  # fmt: skip
    files = {f"{name}.pt": archive(program(body)) for name, body in pickles.items()}
    return files | {
        "deflated.pt": archive(WEIGHTS, 1 << 24, zipfile.ZIP_DEFLATED),
        "deflated-pickle.pt": archive(program(b"N" * 50_000_000), method=zipfile.ZIP_DEFLATED),
        "lzma.pt": archive(WEIGHTS, 1 << 20, zipfile.ZIP_LZMA),
        "members.pt": members(*((f"archive/{i}", b"") for i in range(66_000))),
        "fewer-members.pt": members(*((f"archive/{i}", b"") for i in range(60_000))),
        "overlapping.pt": overlapping(),
        "raw.pt": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x" * 1000,
        "legacy.pt": legacy(program(large)),
        "zeros.pt": bytes(full),
        "zeros.safetensors": bytes(full),
        "long-header.safetensors": safetensors(b"{" + b" " * (1 << 24) + b"}", b""),
        "deep-header.safetensors": safetensors(b'{"a":' * million, b""),
        "deep-lists.safetensors": safetensors(b'{"a":' + b"[" * 8_000_000, b""),
        "lists.safetensors": safetensors(b'{"a":[' + b"[]," * 2_700_000 + b"[]]}", b""),
        "tables.safetensors": safetensors(b'{"a":[' + b"{}," * 2_700_000 + b"{}]}", b""),
        "number.safetensors": safetensors(b'{"a":' + b"9" * 8_000_000 + b"}", b""),
        "rows.safetensors": safetensors(
            {str(i): row(shape=(0,), place=(0, 0)) for i in range(120_000)}, b"x"
        ),
        "shape.safetensors": safetensors({"a": row(shape=(1 << 40,), place=(0, 1 << 42))}),
        "header.safetensors": safetensors(b"{}", length=1 << 62),
    }


def overlapping() -> bytes:
    """Let a thousand members of the directory share the bytes of one."""
    whole = archive(WEIGHTS, 1 << 18)
    start = struct.unpack("<L", whole[-6:-2])[0]
    directory = whole[start:-22]
    first = directory.index(b"archive/data/0") - 46
    entry = directory[first : first + 46]
    rows = b"".join(
        entry[:28] + struct.pack("<H", 19) + entry[30:] + f"archive/data/{i:06}".encode() for i in range(1000)
    )
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1004, 1004, len(directory + rows), start, 0)
    return whole[:start] + directory + rows + end
